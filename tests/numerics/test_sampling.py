from __future__ import annotations

import pytest

from lungseg_ray.numerics.sampling import evenly_spaced


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 4, []), (1, 4, [0]), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (100, 1, [0])],
)
def test_numbers_at_equal_distances(count: int, most: int, expected: list[int]) -> None:
    assert evenly_spaced(count, most) == expected
