from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lungseg_ray.cluster import answers
from lungseg_ray.errors import UserError
from tests.faults.small import Cluster
from tests.helpers import ROOT


def run(*command: str, **environment: str) -> tuple[int, str]:
    """Runs Python without Ray's settings of this process; its exit code and all that it prints."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.own_cluster
def test_who_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    job = ("jobs/shard.py", "--shards.root", str(tmp_path / "shards"))
    with Cluster(tmp_path, cpus=1) as cluster:
        address = {"RAY_ADDRESS": cluster.address, "HOME": str(tmp_path / "home")}
        start = f"Error: RAY_ADDRESS={cluster.address}: the cluster asks for"
        code, said = run(*job, **address)
        assert (code, said.splitlines()) == (
            2,
            [
                f"{start} a token. Put the token of the cluster into ~/.ray/auth_token (`ray get-auth-token` prints it "
                "there), and set RAY_AUTH_MODE=token."
            ],
        )
        for wrong in ({"RAY_AUTH_TOKEN": "0" * 64}, {}):
            code, said = run(*job, **address, **wrong, RAY_AUTH_MODE="token")
            assert (code, said.splitlines()) == (
                2,
                [
                    f"{start} its token; this process has another one, or none. Put the token of the cluster into "
                    "~/.ray/auth_token (`ray get-auth-token` prints it there)."
                ],
            )
        look = "from lungseg_ray.cluster.answers import check_answers, os; check_answers(os.environ['RAY_ADDRESS'])"
        assert run("-c", look, **{**address, **cluster.environment}) == (0, "")


def test_what_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        look = f"from lungseg_ray.cluster import answers as a; a._ANSWER_SECONDS = 1.0; a.check_answers('{address}')"
        code, said = run("-c", look)
    assert code == 1
    expected = f"RAY_ADDRESS={address}: no Ray cluster answers there (what listens there did not answer for 1 s)."
    assert expected in said.splitlines()[-1]


def test_other_versions() -> None:
    with pytest.raises(UserError, match=r"the cluster has Ray 2\.1\.0 with Python 3\.9\.1, this process has Ray 2\."):
        answers._check_versions("head:6379", {"ray_version": "2.1.0", "python_version": "3.9.1"})
