"""The reference of settings is that of the code, so that every change of a setting is seen in a diff."""

from __future__ import annotations

from lungseg_ray.config import SweepJob, leaves
from tests.docs.settings_page import PAGE, render


def test_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == render(), "run: python -m tests.docs.settings_page"


def test_every_setting_is_on_the_page() -> None:
    page = PAGE.read_text()
    assert [key for key in leaves(SweepJob) if f"| `{key}` |" not in page] == []
