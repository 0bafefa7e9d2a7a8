"""Clusters of several machines, whose number changes: `make cluster-test` runs these tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/machines/" in item.nodeid:
            item.add_marker(pytest.mark.machines)
            item.add_marker(pytest.mark.own_cluster)
            item.add_marker(pytest.mark.timeout(600))
