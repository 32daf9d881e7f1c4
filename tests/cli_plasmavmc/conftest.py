"""What the tests of the engine's command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_plasmavmc.cli_rig import CliRig, served


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CliRig]:
    (tmp_path / "engine").mkdir()
    with served(tmp_path / "engine") as made:
        yield made
