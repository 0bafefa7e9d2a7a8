"""The figures of many images in columns, in which an image takes a few hundred bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lungseg_ray.evaluation.measure import ImageFigures
from lungseg_ray.text import free_name

_ROWS = 4096
"""Rows that are turned into columns at a time."""


@dataclass(frozen=True)
class FigureTable:
    """The figures of many images.

    Attributes:
        table: A row for each image. The name of a column begins with what it is: `own/` for the id, the patient, the
            height and the width of the image, `group/` for further columns of the corpus, and `value/` for figures.
            What an image does not have is null.
    """

    table: pa.Table

    @classmethod
    def of(cls, rows: Iterable[ImageFigures]) -> FigureTable:
        """Returns the figures of some images.

        Args:
            rows: The figures of each image.
        """
        waiting, parts = iter(rows), []
        while some := list(islice(waiting, _ROWS)):
            named = list(map(_named, some))
            names = dict.fromkeys(name for row in named for name in row)
            parts.append(pa.table({name: [row.get(name) for row in named] for name in names}))
        return cls(pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({}))

    def __len__(self) -> int:
        """Returns the number of images."""
        return int(self.table.num_rows)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Returns a figure of all images.

        Args:
            name: Its name, which all images have.
        """
        found: npt.NDArray[Any] = self.table[f"value/{name}"].to_numpy()
        return found

    @property
    def image_ids(self) -> list[str]:
        """The id of each image."""
        ids: list[str] = self.table["own/image_id"].to_pylist()
        return ids

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """The patient of each image."""
        return np.array(self.table["own/patient_id"].to_pylist(), dtype=np.str_)

    def have(self, name: str) -> bool:
        """Whether all images have a figure.

        Args:
            name: The name of the figure.
        """
        full = f"value/{name}"
        return full in self.table.column_names and not self.table[full].null_count

    def groups(self) -> dict[str, list[str]]:
        """Returns the values of each column of the corpus, by the name of the column, both in order."""
        return {
            name: sorted(value for value in self.table[f"group/{name}"].unique().to_pylist() if value)
            for name in sorted(self._names("group"))
        }

    def of_group(self, name: str, value: str) -> FigureTable:
        """Returns the figures of the images that have a value in a column of the corpus.

        Args:
            name: The name of the column.
            value: The value.
        """
        return FigureTable(self.table.filter(pc.equal(self.table[f"group/{name}"], value)))

    def columns(self) -> list[str]:
        """Returns the names of the columns of `per_image.csv`."""
        own, values = self._names("own"), self._names("value")
        return [*own, *(free_name(name, [*own, *values]) for name in self._names("group")), *values]

    def rows(self) -> Iterator[dict[str, object]]:
        """Yields the rows of `per_image.csv`, by column."""
        order = [f"{kind}/{name}" for kind in ("own", "group", "value") for name in self._names(kind)]
        for part in self.table.select(order).rename_columns(self.columns()).to_batches(max_chunksize=_ROWS):
            yield from part.to_pylist()

    def _names(self, kind: str) -> list[str]:
        found = (name.partition("/") for name in self.table.column_names)
        return [name for prefix, _, name in found if prefix == kind]


def _named(row: ImageFigures) -> dict[str, object]:
    return {
        **{f"own/{name}": getattr(row, name) for name in ("image_id", "patient_id", "height", "width")},
        **{f"group/{name}": value for name, value in row.groups.items()},
        **{f"value/{name}": value for name, value in row.values.items()},
    }
