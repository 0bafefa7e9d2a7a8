import io
from pathlib import Path

import pytest
from rich.console import Console

from lungseg_ray.config import SweepJob
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.tune import tune

SPACE = {"optim.lr": {"grid": [1e-3, 1e-2]}}


def test_nothing_to_search_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.space: nothing is searched"):
        tune(SweepJob.model_validate({"runs": {"root": str(tmp_path)}}), Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("")
    job = SweepJob.model_validate({"runs": {"root": str(tmp_path), "name": "mine"}, "sweep": {"space": SPACE}})
    with pytest.raises(UserError, match="a run lies there"):
        tune(job, Console(file=io.StringIO()))
