"""What the tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _any_encoder() -> Iterator[None]:
    """Lets an encoder have markup for a name, which settings refuse, so that pages are seen to escape it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lungseg_ray.models.factory.known_encoder", lambda name: name)
        yield
