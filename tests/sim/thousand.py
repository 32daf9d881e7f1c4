"""A thousand stories, a trunk a test. The tests are in two files, so that two workers play them beside one another;
whichever test comes to its end last looks whether each fault met each operation."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.story import OF_A_TRUNK

SEEDS = 1000
TRUNKS = range(0, SEEDS, OF_A_TRUNK)
"""The first seed of each."""
_SCRIPT = Path(__file__).resolve().parents[2] / "scripts/sim"


def sim(*arguments: str, timeout: float = 7200) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the order of sets is a part of a seed, and the log is listened to."""
    command = [str(_SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def shared(factory: pytest.TempPathFactory) -> Path:
    """A directory of all workers of this run."""
    own = factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "thousand"
    directory.mkdir(exist_ok=True)
    return directory


def play_trunk(begin: int, counts: Path) -> None:
    """Play the stories of a trunk, and note in a file of that directory what met what."""
    number = _end(begin) - begin
    done = sim(
        "--from", str(begin), "--seeds", str(number), "--jobs", "1", "--few", "--batch", str(_file(counts, begin))
    )
    assert done.returncode == 0, done.stderr[-5000:]


def check_table(counts: Path) -> None:
    """Once all have been played: no fault has not met some operation."""
    files = {begin: _file(counts, begin) for begin in TRUNKS}
    found = {begin: json.loads(file.read_text()) for begin, file in files.items() if file.exists()}
    if any(begin not in found or found[begin]["next"] < _end(begin) for begin in TRUNKS):
        return
    together = sum((Counter(each["counts"]) for each in found.values()), Counter[str]())
    whole = counts / f"{os.getpid()}.json"
    whole.write_text(json.dumps({"next": SEEDS, "counts": together}))
    done = sim("--seeds", str(SEEDS), "--batch", str(whole))
    assert done.returncode == 0, done.stderr[-5000:]


def _file(counts: Path, begin: int) -> Path:
    return counts / f"from-{begin}.json"


def _end(begin: int) -> int:
    return min(begin + OF_A_TRUNK, SEEDS)
