"""Makes the index of shards from what the tasks that write them return, one shard after the other."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lungseg_ray.config import Settings
from lungseg_ray.corpus.record import SPLITS, SetAside, Split
from lungseg_ray.shards.checks import Check, CheckTally
from lungseg_ray.shards.format import Contents
from lungseg_ray.shards.index import SCHEMA_VERSION, Shard, ShardIndex, SplitFigures


class IndexBuilder:
    """Adds up what the shards of a corpus contain.

    Of each image, it keeps the hash of its file with its id, and what the warnings need.

    Args:
        settings: The settings of the job, with what was found out about the corpus.
        source: The SHA-256 of the listing and of the settings, as in `ShardIndex`.
        layout: The name of the layout of the corpus.
    """

    def __init__(self, settings: Settings, *, source: str, layout: str) -> None:
        self._settings, self._source, self._layout = settings, source, layout
        self._seen: dict[bytes, str] = {}
        self._set_aside: list[SetAside] = []
        self._shards: list[Shard] = []
        self._checks = CheckTally()
        self._tallies: dict[Split, _Tally] = {split: _Tally() for split in SPLITS}
        self._content = JsonDigest()
        self._content.open_list()

    def add(self, file: str, contents: Contents) -> None:
        """Adds a shard. The order of the shards determines which of several equal images is used: the first.

        Args:
            file: The name of the file.
            contents: What it contains.
        """
        split: Split = next(split for split in SPLITS if file.startswith(f"{split}-"))
        self._set_aside += contents.set_aside
        skip = []
        for number, row in enumerate(contents.rows):
            same = self._seen.setdefault(bytes.fromhex(row["image_sha256"]), row["image_id"])
            if same != row["image_id"]:
                skip.append(number)
                self._set_aside.append(SetAside(row["image_id"], row["image_id"], "duplicate", f"same bytes as {same}"))
            else:
                self._tallies[split].add(row)
                names = (split, row["image_id"], row["patient_id"], row["image_sha256"], row["mask_sha256"])
                self._content.add(names)
        skipped = {contents.rows[number]["image_id"] for number in skip}
        for check in map(Check.of, contents.checks):
            if check.image_id not in skipped:
                self._checks.add(check)
        shard = Shard(file=file, split=split, rows=len(contents.rows), footer=contents.footer, skip=tuple(skip))
        self._shards.append(shard)

    def finish(self) -> tuple[ShardIndex, list[SetAside]]:
        """Returns the index, without the files of the corpus, and the files that are not used."""
        corpus, longer_side = self._settings.corpus, self._settings.shards.longer_side
        self._content.close_list()
        self._content.add([shard.model_dump(exclude={"file", "footer"}) for shard in self._shards])
        self._content.add(corpus.model_dump(mode="json", include={"channels", "classes", "mask_values"}))
        if corpus.classes > 1:
            # Names and mirrored pairs of several classes change what is learned; shards of one class have neither.
            self._content.add(corpus.class_names)
            self._content.add(corpus.mirrored)
        self._content.add(longer_side)
        self._content.add(SCHEMA_VERSION)
        index = ShardIndex(
            schema_version=SCHEMA_VERSION,
            fingerprint=self._content.hexdigest(),
            source=self._source,
            layout=self._layout,
            corpus=corpus,
            longer_side=longer_side,
            splits={split: tally.figures() for split, tally in self._tallies.items()},
            shards=self._shards,
            set_aside={},
            warnings=self._checks.warnings(structure=" and ".join(corpus.class_names)),
        )
        return index, self._set_aside


class _Tally:
    """Adds up the figures of one split."""

    def __init__(self) -> None:
        self.images = 0
        self.patients: set[str] = set()
        self.labels: Counter[int] = Counter()
        self.pixels = 0
        self.mean = 0.0
        self.square = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        pixels = row["height"] * row["width"]
        self.images += 1
        self.patients.add(row["patient_id"])
        self.labels.update(row["label_pixels"])
        self.pixels += pixels
        self.mean += row["intensity_mean"] * pixels
        self.square += row["intensity_square"] * pixels

    def figures(self) -> SplitFigures:
        pixels, valid = max(self.pixels, 1), max(sum(self.labels.values()), 1)
        mean = self.mean / pixels
        return SplitFigures(
            images=self.images,
            patients=len(self.patients),
            label_shares={label: count / valid for label, count in sorted(self.labels.items())},
            intensity_mean=mean,
            intensity_std=math.sqrt(max(self.square / pixels - mean**2, 0.0)),
        )


class JsonDigest:
    """The SHA-256 of a JSON list that need not be in memory: that of `json.dumps(items, sort_keys=True)`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._separator = b"["

    def add(self, item: Any) -> None:
        """Adds an item to the list that was opened last."""
        self._add(json.dumps(item, sort_keys=True))

    def add_all(self, items: Iterable[str]) -> None:
        """Adds a list of items that are JSON texts already."""
        self.open_list()
        for item in items:
            self._add(item)
        self.close_list()

    def open_list(self) -> None:
        """Adds a list, to which the next items belong."""
        self._hash.update(self._separator)
        self._separator = b"["

    def close_list(self) -> None:
        """Ends that list."""
        self._hash.update(b"[]" if self._separator == b"[" else b"]")
        self._separator = b", "

    def hexdigest(self) -> str:
        """Ends the whole, and returns the sum, hexadecimal."""
        self.close_list()
        return self._hash.hexdigest()

    def _add(self, text: str) -> None:
        self._hash.update(self._separator + text.encode())
        self._separator = b", "
