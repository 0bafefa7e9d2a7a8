"""What jobs print, and where it goes: escape sequences, secrets, readers that go away, and narrow terminals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from lungseg_ray.jobs.console import JobConsole, print_table
from lungseg_ray.text import printable

_JOB = """
import sys, time
from pathlib import Path
from lungseg_ray.config import Settings
from lungseg_ray.jobs import cli, command

def job(settings, console):
    for number in range(20_000):
        console.print(f"line {number}")
    Path(sys.argv[1], "done").touch()
    if len(sys.argv) > 2:
        time.sleep(60)

command.run = lambda name, arguments: command.run_job(Settings, job, arguments)
sys.exit(cli.main("train", []))
"""


def start(folder: Path, *more: str, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _JOB, str(folder), *more], stderr=subprocess.PIPE, stdout=stdout)


class TestReadersThatGoAway:
    def ended(self, job: subprocess.Popen[bytes], folder: Path) -> bool:
        _, said = job.communicate(timeout=60)
        return (job.returncode, said) == (0, b"") and (folder / "done").exists()

    def test_a_pipe(self, tmp_path: Path) -> None:
        job = start(tmp_path, stdout=subprocess.PIPE)
        assert job.stdout
        assert job.stdout.readline() == b"line 0\n"
        job.stdout.close()
        job.stdout = None
        assert self.ended(job, tmp_path)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        assert self.ended(start(tmp_path, stdout=full), tmp_path)
        os.close(full)

    def test_closed(self, tmp_path: Path) -> None:
        command = f'exec "$0" -c "$1" "{tmp_path}" >&- 2>&- <&-'
        assert subprocess.run(["sh", "-c", command, sys.executable, _JOB], timeout=60).returncode == 0
        assert (tmp_path / "done").exists()


@pytest.mark.alone
@pytest.mark.parametrize(("ignored", "code"), [(False, 128 + signal.SIGTERM), (True, None)])
def test_a_terminal_that_is_closed(ignored: bool, code: int | None, tmp_path: Path) -> None:
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = start(tmp_path, "stay", stdout=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    end = time.monotonic() + 60
    while not (tmp_path / "done").exists() and time.monotonic() < end:
        time.sleep(0.1)
    job.send_signal(signal.SIGHUP)
    if code is None:
        time.sleep(1.0)
        assert job.poll() is None
        job.kill()
    assert job.wait(timeout=60) == (code or -signal.SIGKILL)


class TestPrintable:
    @given(st.text())
    def test_no_control_characters(self, text: str) -> None:
        for message in (printable(text), printed(text)):
            assert all(one.isprintable() or one in "\n\t" for one in message)

    def test_names_with_escape_sequences(self) -> None:
        assert printable("a\x1b[2Jb\rc\nd\u202ee") == "a\\x1b[2Jb\\rc\nd\\u202ee"
        assert printable("[red]x[/red] $1_$") == "[red]x[/red] $1_$"
        assert printed("[red]x[/red]\x1b]0;t\x07") == "[red]x[/red]\\x1b]0;t\\x07\n"

    @pytest.mark.parametrize(
        "address",
        [
            "https://user:SECRET@host/x",
            "s3a://key:SEC/RET@bucket/x",
            "s3://SECRET@bucket",
            "https://host/x?X-Amz-Signature=SECRET&b=SECRET",
            "ftp://u:SECRET@h:21/x?y=SECRET",
            "https://u:SECRET'SECRET SECRET@h",
            "https://h/x#access_token=SECRET",
            "https://h/x;token=SECRET",
            "https://u:" + "SECRET" * 100 + "@h",
        ],
    )
    def test_no_secret_in_an_address(self, address: str) -> None:
        for message in (f"{address}: refused", f"found '{address}'", f'found "{address}", expected another'):
            shown = printable(message)
            assert "SECRET" not in shown
            assert "SEC/RET" not in shown
            assert "://" in shown

    def test_other_addresses_stay(self) -> None:
        text = "s3://bucket/a b, /data/a@b?c, mail a@b.c: file:///x"
        assert printable(text) == text


def printed(text: str) -> str:
    file = io.StringIO()
    JobConsole(file=file, soft_wrap=True, markup=False).print(text, highlight=False)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_no_figure_is_cut(terminal: bool) -> None:
    wide, narrow = (Table(*[f"column {number}" for number in range(count)]) for count in (9, 2))
    wide.add_row(*["0.9512 (0.9433-0.9587)"] * 9)
    narrow.add_row("dice", "0.9512 (0.9433-0.9587)")
    file = io.StringIO()
    console = JobConsole(file=file, width=80, force_terminal=terminal, soft_wrap=True, markup=False)
    print_table(console, wide, narrow)
    assert file.getvalue().count("0.9512 (0.9433-0.9587)") == (1 if terminal else 9)
    assert "…" not in file.getvalue()
    if terminal:
        assert max(map(len, file.getvalue().splitlines())) < 120
