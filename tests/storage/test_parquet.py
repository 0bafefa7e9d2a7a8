"""Extension types of Arrow: each that is registered where Ray is imported is refused by name, wherever it stands."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType
from ray.data._internal.tensor_extensions.arrow import ArrowTensorArray, ArrowVariableShapedTensorArray

from lungseg_ray.storage.parquet import ExtensionTypeError, open_parquet

ARRAYS: dict[str, Any] = {
    "ray.data.arrow_pickled_object": lambda: pa.ExtensionArray.from_storage(
        ArrowPythonObjectType(), pa.array([b"a", b"b"], pa.large_binary())
    ),
    "ray.data.arrow_tensor": lambda: ArrowTensorArray.from_numpy(np.zeros((2, 3, 3))),
    "ray.data.arrow_variable_shaped_tensor": lambda: ArrowVariableShapedTensorArray.from_numpy(
        np.array([np.zeros((1, 2)), np.zeros((2, 2))], dtype=object)
    ),
    "pandas.period": lambda: pa.array(pd.period_range("2020-01", periods=2, freq="M")),
    "pandas.interval": lambda: pa.array(pd.arrays.IntervalArray.from_breaks([0, 1, 2])),
    "arrow.uuid": lambda: pa.array([b"0" * 16, b"1" * 16], pa.uuid()),
    "arrow.json": lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "1"])),
    "arrow.bool8": lambda: pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1], pa.int8())),
    "arrow.fixed_shape_tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3))),
    "arrow.opaque": lambda: pa.ExtensionArray.from_storage(
        pa.opaque(pa.binary(), "type", "vendor"), pa.array([b"a", b"b"])
    ),
}


def written(**columns: pa.Array) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("nested", [False, True])
def test_refused(name: str, nested: bool) -> None:
    array = ARRAYS[name]()
    if nested:
        array = pa.StructArray.from_arrays([pa.array([1, 2]), array], ["plain", "inner"])
    with pytest.raises(ExtensionTypeError, match=name.replace(".", r"\.")):
        open_parquet(written(a=pa.array([1, 2]), b=array))


def test_plain_columns(tmp_path: Path) -> None:
    content = written(a=pa.array([1, 2]), b=pa.array(["x", None]), c=pa.array([[1.5], []]))
    file, footer = open_parquet(content)
    assert file.read().to_pylist() == [{"a": 1, "b": "x", "c": [1.5]}, {"a": 2, "b": None, "c": []}]
    assert footer in content
    assert content.endswith(footer + len(footer).to_bytes(4, "little") + b"PAR1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        b"PAR1PAR1",
        b"PAR1\0\0\0\0PAR1",
        b"PAR1" + b"\xff" * 4 + b"PAR1",
        b"PAR1xx\x02\0\0\0PAR1",
        b"PARE" * 9,
    ],
)
def test_no_parquet(content: bytes) -> None:
    with pytest.raises((pa.ArrowInvalid, OSError)):
        open_parquet(content)
