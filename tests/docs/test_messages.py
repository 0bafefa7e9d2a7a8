from __future__ import annotations

from tests.docs.messages_page import MISTAKES, PAGE, page


def test_the_page_shows_what_jobs_say() -> None:
    text = PAGE.read_text()
    assert all(f"{number}. {title}" in text for number, title in enumerate(MISTAKES, start=1))
    assert page(text) == text, "write it anew: python -m tests.docs.messages_page"
