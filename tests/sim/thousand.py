"""A thousand stories, a trunk a test. The tests are in two files, so that two workers play them beside one another. They are
of eight trunks, so not each fault meets each operation: that is asked of those that share little."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.sim.story import OF_A_TRUNK

SEEDS = 1000
TRUNKS = range(0, SEEDS, OF_A_TRUNK)
"""The first seed of each."""
_SCRIPT = Path(__file__).resolve().parents[2] / "scripts/sim"


def sim(*arguments: str, timeout: float = 7200) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the order of sets is a part of a seed, and the log is listened to."""
    command = [str(_SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def play_trunk(begin: int) -> None:
    """Play the stories of a trunk, as many of them as belong to the thousand."""
    number = min(OF_A_TRUNK, SEEDS - begin)
    done = sim("--from", str(begin), "--seeds", str(number), "--jobs", "1", "--few")
    assert done.returncode == 0, done.stderr[-5000:]
