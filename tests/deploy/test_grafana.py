"""deploy/grafana against the names of the metrics."""

from __future__ import annotations

import json
import re

from lungseg_ray.workers.metrics import COUNTERS, GAUGES
from tests.helpers import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/lungseg-ray.json").read_text())
SERVED = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}


def test_the_queries_name_what_is_served() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in DASHBOARD["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"\bray_\w+", query)}
    assert asked <= SERVED
    # The number of the step within its epoch is for queries of one's own.
    assert SERVED - asked == {"ray_lungseg_step"}


def test_the_panels_do_not_overlap() -> None:
    cells = [
        (panel["gridPos"]["x"] + across, panel["gridPos"]["y"] + down)
        for panel in DASHBOARD["panels"]
        for across in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
