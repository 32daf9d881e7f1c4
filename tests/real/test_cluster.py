"""Three hosts of one platform, as `scripts/cluster-demo` shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.nightly]

ROOT = Path(__file__).resolve().parents[2]


def test_a_platform_of_three_hosts_bears_the_loss_of_one() -> None:
    command = [sys.executable, "-m", "examples.cluster"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
