from __future__ import annotations

import pytest
from ray.util import placement_group_table

from lungseg_ray.cluster import capacity
from lungseg_ray.cluster.capacity import (
    Capacity,
    NodeType,
    NodeTypes,
    parse_node_types,
    plan_on_cluster,
    present_capacity,
    wait_for_cpu,
)
from lungseg_ray.errors import JobFailedError, UserError
from tests.helpers import ROOT


def test_the_types_of_cluster_yaml() -> None:
    types = parse_node_types((ROOT / "cluster.yaml").read_text())
    assert str(types) == "4 x gpu (4 CPU, 1 GPU) or 2 x cpu (8 CPU)"
    assert (types.total("CPU"), types.total("GPU")) == (4 * 4 + 2 * 8, 4)
    assert types.can_hold({"CPU": 8})
    assert types.can_hold({"CPU": 4, "GPU": 1})
    assert not types.can_hold({"CPU": 8, "GPU": 1})


def test_the_limit_of_all_types_together() -> None:
    large, small = NodeType("large", {"CPU": 8}, 4), NodeType("small", {"CPU": 1, "GPU": 1}, 4)
    assert NodeTypes([large, small], 5).total("CPU") == 4 * 8 + 1
    assert NodeTypes([large, small], 2).total("GPU") == 2
    assert not NodeTypes([NodeType("none", {"CPU": 8}, 0)], 5).can_hold({"CPU": 1})


@pytest.mark.usefixtures("cluster")
class TestWithoutAutoscaler:
    def test_the_plan_is_for_what_is_there(self) -> None:
        planned = plan_on_cluster(lambda has: has, lambda _: [{"CPU": 1000}])
        assert planned.when_up() == present_capacity()
        assert present_capacity().cpus >= 3
        assert not wait_for_cpu()

    def test_what_does_not_fit_is_refused(self) -> None:
        def refuse(_: Capacity) -> None:
            raise UserError("too large")

        with pytest.raises(UserError, match=r"^too large$"):
            plan_on_cluster(refuse, lambda _: [])

    def test_a_wait_without_end_ends(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(capacity, "MACHINES_SECONDS", 3.0)
        monkeypatch.setattr(capacity, "_FIRST_REPORT_SECONDS", 1.0)
        with pytest.raises(JobFailedError, match=r"Nothing has moved for \d s. Waited for: room for 2 x 100 CPU; free"):
            capacity.wait_for([{"CPU": 100}, {"CPU": 100}])
        assert "Waiting for machines since" in capsys.readouterr().err
        # The request ends with the wait, although this process goes on.
        groups = [group for group in placement_group_table().values() if {"CPU": 100.0} in group["bundles"].values()]
        assert [group["state"] for group in groups] == ["REMOVED"]


@pytest.mark.usefixtures("cluster")
class TestWithAutoscaler:
    """The shared cluster has none; here it seems to have one that can start what is named."""

    @pytest.fixture(autouse=True)
    def types(self, monkeypatch: pytest.MonkeyPatch) -> NodeTypes:
        types = NodeTypes([NodeType("gpu", {"CPU": 4, "GPU": 1}, 4), NodeType("cpu", {"CPU": 8}, 2)], 5)
        monkeypatch.setattr(capacity, "_has_autoscaler", lambda *, patient: True)
        monkeypatch.setattr(capacity, "_node_types", lambda: types)
        return types

    def test_the_plan_is_for_what_there_can_be(self) -> None:
        planned = plan_on_cluster(lambda has: has, lambda _: [{"CPU": 1}])
        head = present_capacity().cpus
        assert planned.plan == Capacity(cpus=head + 2 * 8 + 3 * 4, gpus=4, nodes=5)
        assert planned.when_up() == present_capacity()

    def test_what_no_machine_can_hold_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"needs 2 GPU, which no machine .* can start 4 x gpu \(4 CPU, 1 GPU\) or"):
            plan_on_cluster(lambda has: has, lambda _: [{"GPU": 2}])

    def test_what_does_not_fit_is_refused_with_the_types(self) -> None:
        def refuse(has: Capacity) -> None:
            raise UserError(f"{has.gpus} are too few.")

        with pytest.raises(UserError, match=r"^4 are too few\. The autoscaler of the cluster can start 4 x gpu"):
            plan_on_cluster(refuse, lambda _: [])

    def test_types_that_are_not_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(capacity, "_node_types", lambda: None)
        assert plan_on_cluster(lambda has: has, lambda _: []).plan == present_capacity()

        def make(has: Capacity) -> Capacity:
            if has.cpus < 1000:
                raise UserError("too few")
            return has

        found = plan_on_cluster(make, lambda _: [{"CPU": 1}])
        # A job that may take either computes on CPUs, since nobody knows whether there are GPUs.
        assert found.plan.gpus == present_capacity().gpus
        assert found.grows
