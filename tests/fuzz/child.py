"""The process in which one target is fuzzed; what it notes survives whatever ends it."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.mutate import mended, mutate

MOST_BYTES = 1 << 16
"""Of an input."""
SLOW_S = 5.0
"""CPU seconds that an input may take; CharLS needs 2.5 to be sure of some damage of a few bytes."""
HANGS_S = 20
"""Seconds on the clock after which libFuzzer ends the process."""
MUCH_MIB = 1024
"""Resident memory that an input may add."""
ADDRESS_SPACE_MIB = 4096
"""Beyond what the process has at its start."""

FIELDS = ("inputs", "slowest_s", "memory_mib", "noisy", "noise_bytes")


class Notes:
    """Numbers, the input that is being read, and findings, in the files of a folder.

    Numbers and input are mapped memory: what was written there is on the file when the process is killed.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.numbers = _mapped(folder / "numbers", "f8", len(FIELDS), fresh)
        self._length = _mapped(folder / "length", "i8", 1, fresh)
        self._input = _mapped(folder / "input", "u1", 1 << 20, fresh)

    def begin(self, data: bytes) -> None:
        """Before an input is read."""
        self._length[0] = len(data)
        self._input[: len(data)] = np.frombuffer(data, np.uint8)
        self.numbers[0] += 1

    @property
    def last(self) -> bytes:
        """The input that was read last."""
        return self._input[: self._length[0]].tobytes()

    def find(self, what: str, where: str, data: bytes) -> None:
        """Keeps an input that is wrong in this way, unless one is kept already."""
        stem = self.folder / f"{what.split()[0]}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        if not (text := stem.with_suffix(".json")).exists():
            stem.with_suffix(".input").write_bytes(data)
            text.write_text(
                json.dumps({"what": what, "where": where, "bytes": len(data), "input": f"{stem.name}.input"})
            )

    def found(self) -> list[dict[str, Any]]:
        """All findings."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


def _mapped(path: Path, kind: str, count: int, fresh: bool) -> np.memmap[Any, Any]:
    return np.memmap(path, kind, "w+" if fresh or not path.exists() else "r+", shape=(count,))


def main(name: str, folder: Path, seconds: int) -> None:
    """Fuzzes one target; does not return."""
    import atheris

    # pydicom, tifffile and Pillow in Python; the decoders below them are compiled, and only seen to crash.
    with atheris.instrument_imports(include=["lungseg_ray.corpus", "pydicom", "tifffile", "PIL"]):
        from tests.fuzz.targets import TARGETS

        run = TARGETS[name].run
        for seed in (folder / "corpus").iterdir():
            # Much is imported where it is used first.
            try:
                run(seed.read_bytes())
            except Exception:
                continue

    notes = Notes(folder / "notes")
    noise = os.open(folder / "noise", os.O_CREAT | os.O_APPEND | os.O_RDWR)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    faulthandler.enable()
    start_mib = _peak_mib()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (ADDRESS_SPACE_MIB << 20),) * 2)

    def one(data: bytes) -> None:
        notes.begin(data)
        before, begun, said = _peak_mib(), time.process_time(), os.fstat(noise).st_size
        try:
            run(data)
        except Exception as error:
            last = [frame for frame in traceback.extract_tb(error.__traceback__) if "fuzz/child" not in frame.filename]
            where = "; ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last[-4:])
            notes.find(f"raises {type(error).__name__}: {str(error)[:200]}", where, data)
        took, peak, noisy = time.process_time() - begun, _peak_mib(), os.fstat(noise).st_size - said
        if took > notes.numbers[1]:
            notes.numbers[1] = took
            (folder / "slowest.input").write_bytes(data)
        if took > SLOW_S:
            notes.find(f"takes {took:.1f} s", "slow", data)
        if peak - before > MUCH_MIB:
            notes.find(f"needs {peak - before:.0f} MiB", "memory", data)
        notes.numbers[2] = max(notes.numbers[2], peak - start_mib)
        if noisy:
            words = os.pread(noise, min(noisy, 200), said).decode(errors="replace")
            kind = "".join(letter for letter in words if not letter.isdigit())[:60]
            notes.find(f"prints {noisy} bytes: {words}", f"noise {kind}", data)
            notes.numbers[3:] += 1, noisy

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.6:
            return mutate(data, random, most=most)
        return mended(atheris.Mutate(data, most), data)[:most]

    options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", f"-timeout={HANGS_S}", "-verbosity=0"]
    options += [f"-rss_limit_mb={ADDRESS_SPACE_MIB}", f"-artifact_prefix={folder}/"]
    # Python's own handlers of signals say in which call the process was.
    options += [f"-handle_{signal}=0" for signal in ("segv", "bus", "abrt", "ill", "fpe")]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], one, custom_mutator=mutated)
    atheris.Fuzz()


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
