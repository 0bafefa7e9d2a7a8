"""The digest of a JSON list, which stands in the fingerprint of shards that were made before it was streamed."""

from __future__ import annotations

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from lungseg_ray.shards.index_builder import JsonDigest

VALUES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(VALUES))
def test_as_of_the_whole(items: list[object]) -> None:
    whole = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
    one, other, third = JsonDigest(), JsonDigest(), JsonDigest()
    for item in items:
        one.add(item)
        if isinstance(item, list):
            other.add_all(json.dumps(inner, sort_keys=True) for inner in item)
            third.open_list()
            for inner in item:
                third.add(inner)
            third.close_list()
        else:
            other.add(item)
            third.add(item)
    assert {digest.hexdigest() for digest in (one, other, third)} == {whole}
