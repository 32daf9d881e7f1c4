"""Real tier: the very program, led through the scenario that the stand-in is held to. No Linux guest runs here.

Opt-in: `SWG_FIRECRACKER` names a Firecracker whose sha256 is the pinned one. Without it the tests are skipped and say so.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.contract.firecracker_driver import a_driven_life
from tests.contract.firecracker_scenario import as_record, perform

VARIABLE = "SWG_FIRECRACKER"
PINNED = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"
"""Firecracker 1.12.1, x86-64, statically linked."""
RECORDED = Path(__file__).resolve().parents[1] / "contract/firecracker_1_12_1.json"

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def firecracker() -> Path:
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"Firecracker itself is NOT exercised: {VARIABLE} names no program")
    program = Path(named).resolve()
    found = hashlib.sha256(program.read_bytes()).hexdigest()
    assert found == PINNED, f"{program} is not the pinned Firecracker 1.12.1: its sha256 is {found}"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("Firecracker itself is NOT exercised: /dev/kvm cannot be opened here")
    return program


def test_the_real_program_does_what_the_stand_in_is_held_to(firecracker: Path, tmp_path: Path) -> None:
    """A scenario that was changed is recorded anew from what this test leaves in its directory."""
    record = as_record(perform([str(firecracker)], tmp_path, {}))
    (tmp_path / RECORDED.name).write_text(record)
    assert record == RECORDED.read_text()


async def test_our_client_leads_the_real_program_through_a_life(firecracker: Path, tmp_path: Path) -> None:
    await a_driven_life([str(firecracker)], tmp_path, {})
