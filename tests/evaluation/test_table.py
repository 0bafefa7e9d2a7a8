import pytest

from lungseg_ray.evaluation import table
from lungseg_ray.evaluation.measure import ImageFigures
from lungseg_ray.evaluation.table import FigureTable


def figures(number: int, groups: dict[str, str], **values: float) -> ImageFigures:
    return ImageFigures(f"x{number}", f"p{number // 2}", groups, 8 + number, 12, {"dice": number / 10, **values})


ROWS = [
    figures(0, {}),
    figures(1, {"site": "A", "dice": "yes"}, hd95_mm=2.5),
    figures(2, {"site": "B"}, tp=7),
    figures(3, {"site": "A"}),
    figures(4, {"site": ""}),
]


@pytest.fixture(params=[1, 2, 100])
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FigureTable:
    """The rows, taken in parts that have different columns."""
    monkeypatch.setattr(table, "_ROWS", request.param)
    return FigureTable.of(iter(ROWS))


def test_columns_and_rows(found: FigureTable) -> None:
    own = ["image_id", "patient_id", "height", "width"]
    assert found.columns() == [*own, "site", "group_dice", "dice", "hd95_mm", "tp"]
    rows = list(found.rows())
    assert [row["image_id"] for row in rows] == ["x0", "x1", "x2", "x3", "x4"]
    assert [row["site"] for row in rows] == [None, "A", "B", "A", ""]
    assert [row["group_dice"] for row in rows] == [None, "yes", None, None, None]
    assert [row["dice"] for row in rows] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [row["tp"] for row in rows] == [None, None, 7, None, None]
    assert rows[2]["height"] == 10


def test_figures_and_who_has_them(found: FigureTable) -> None:
    assert len(found) == 5
    assert found["dice"].tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert found.patients.tolist() == ["p0", "p0", "p1", "p1", "p2"]
    assert found.have("dice")
    assert not found.have("hd95_mm")
    assert not found.have("nothing")


def test_groups(found: FigureTable) -> None:
    assert found.groups() == {"dice": ["yes"], "site": ["A", "B"]}
    assert found.of_group("site", "A").image_ids == ["x1", "x3"]


def test_no_rows() -> None:
    assert len(FigureTable.of([])) == 0
