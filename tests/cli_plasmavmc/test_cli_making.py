"""A VM that is asked for while the host is being probed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import cast

import pytest

from plasmavmc.cli.vm.making import created
from plasmavmc.errors import UnavailableError
from plasmavmc.rpc.client import EngineClient
from plasmavmc.states import VmState
from plasmavmc.types import SYSTEM_SCOPE, Vm, VmSpec, VmStatus

SPEC = VmSpec("vm_one", SYSTEM_SCOPE, "one", "")


@dataclass
class Vms:
    """Refuses with these codes, one after the other, and then makes it."""

    refusals: list[str] = field(default_factory=list)

    async def create(self, spec: VmSpec, *, start: bool = False) -> Vm:
        if self.refusals:
            raise UnavailableError(self.refusals.pop(0), "not now")
        return Vm(spec, VmStatus(VmState.RUNNING if start else VmState.PENDING, 0.0))


@dataclass
class Engine:
    vms: Vms


def engine(*refusals: str) -> EngineClient:
    return cast(EngineClient, Engine(Vms(list(refusals))))


@pytest.mark.parametrize("terminal", [True, False])
async def test_it_is_made_once_the_host_knows_itself_and_a_person_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    vm = await created(engine("backend-probing", "backend-probing"), SPEC, start=True)
    assert vm.status.state is VmState.RUNNING
    assert capsys.readouterr().err.count("probed") == int(terminal)


async def test_what_waiting_does_not_mend_is_told_at_once() -> None:
    with pytest.raises(UnavailableError) as refused:
        await created(engine("helper-gone"), SPEC)
    assert refused.value.code == "helper-gone"
