"""A wheel has the commands of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy
import pytest
import ray

from tests.helpers import ROOT


def call(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.own_cluster
def test_commands_of_a_wheel_run_from_another_folder(tmp_path: Path) -> None:
    ray.shutdown()
    # Built from a copy, because the build leaves a folder beside its sources.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "lungseg_ray", source / "lungseg_ray")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q")
    built = call(*pip, "-w", str(tmp_path), str(source), folder=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("lungseg_ray-*.whl")
    # A fresh environment that sees the libraries of this one, but not its editable installation of the project.
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh/bin/python"
    libraries = Path(numpy.__file__).parents[1]
    (packages,) = (tmp_path / "fresh/lib").glob("python*/site-packages")
    (packages / "ours.pth").write_text(f"{libraries}\n")
    installed = call(str(python), "-m", "pip", "install", "--no-deps", "--no-index", "-q", str(wheel), folder=tmp_path)
    assert installed.returncode == 0, installed.stderr
    where = call(str(python), "-c", "import lungseg_ray; print(lungseg_ray.__file__)", folder=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "fresh"), where.stdout + where.stderr

    program = str(tmp_path / "fresh/bin/lungseg-ray")
    listed = call(program, "--help", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name in ("shard", "audit", "train", "tune", "evaluate", "predict", "report"):
        assert f"  {name} " in listed.stdout
    helped = call(program, "train", "--help", folder=tmp_path)
    assert helped.stdout.startswith("usage: lungseg-ray train"), helped.stdout + helped.stderr
    job = ("shard", "--corpus.phantom.count", "12", "--corpus.phantom.size", "64", "--shards.root", "shards")
    done = call(program, *job, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "written, layout phantom" in done.stdout
    assert (tmp_path / "shards/index.json").exists()
    wrong = call(program, "tran", folder=tmp_path)
    assert wrong.returncode == 2
    assert "there is no command 'tran'" in wrong.stderr
