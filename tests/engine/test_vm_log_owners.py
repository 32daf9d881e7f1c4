"""A log is the owner's whose VM wrote it: who takes a VM's id after it gets nothing of it but in the same project."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.guest.logs import LogStore
from plasmavmc.manager import VmManager
from plasmavmc.states import VmState
from plasmavmc.types import LogLine, LogStream, Scope, VmSpec, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import reaches, started

OUT = LogStream.STDOUT
OWNER, OTHER = Scope("org_1", "prj_1"), Scope("org_1", "prj_2")
NEW_RUN = "a new run of this VM begins"


@pytest.fixture
def rig(tmp_path: Path) -> EngineRig:
    return EngineRig(tmp_path)


def spec_of(rig: EngineRig, owner: Scope, *command: str) -> VmSpec:
    return replace(rig.spec("one", *command), scope=owner)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def said(manager: VmManager) -> list[str]:
    return [line.text async for line in manager.logs("vm_one", follow=False, tail=100)]


async def written_and_deleted(rig: EngineRig, manager: VmManager, owner: Scope) -> None:
    """There was a VM of this owner, which said hello."""
    manager.create(spec_of(rig, owner, "exit", "0"))
    manager.start("vm_one")
    await reaches(manager, "vm_one", VmState.STOPPED)
    await manager.delete("vm_one")


async def test_a_vm_of_another_project_has_nothing_of_the_log_before_it(rig: EngineRig) -> None:
    manager = rig.manager()
    await written_and_deleted(rig, manager, OTHER)
    manager.create(spec_of(rig, OWNER, "exit", "0"))
    assert await said(manager) == []
    manager.start("vm_one")
    await reaches(manager, "vm_one", VmState.STOPPED)
    assert await said(manager) == ["hello"]
    assert manager.get("vm_one").status.log_tail == ("hello",)


async def test_a_vm_of_the_same_project_goes_on_with_the_log_also_after_a_restart(rig: EngineRig) -> None:
    await written_and_deleted(rig, rig.manager(), OWNER)
    manager = rig.manager()
    await written_and_deleted(rig, manager, OWNER)
    assert await said(manager) == ["hello", NEW_RUN, "hello"]


async def test_a_restarted_vm_keeps_its_log(rig: EngineRig) -> None:
    manager = rig.manager()
    await started(manager, spec_of(rig, OWNER, "serve"))
    await manager.restart("vm_one")
    await reaches(manager, "vm_one", VmState.RUNNING)
    await manager.stop("vm_one")
    assert await said(manager) == ["hello", NEW_RUN, "hello"]


async def test_a_log_of_which_nobody_knows_the_owner_is_not_gone_on_with(rig: EngineRig) -> None:
    left = rig.directory / "logs" / vm_key("vm_one")
    left.mkdir(parents=True)
    (left / "00000001.log").write_text("1.000 o 4 old\n")
    manager = rig.manager()
    manager.create(spec_of(rig, OWNER, "serve"))
    assert await said(manager) == []


@pytest.mark.parametrize("follow", [True, False])
async def test_who_is_slow_to_read_a_log_reads_nothing_of_the_next_owner(tmp_path: Path, *, follow: bool) -> None:
    store = LogStore(tmp_path)
    store.begin("key", OTHER)
    before = store.open("key")
    before.write(OUT, 0, b"old\n" * 40)
    reading: AsyncGenerator[LogLine] = before.follow(1000) if follow else before.read(1000)
    lines = [(await anext(reading)).text]
    before.close()
    store.begin("key", OWNER)
    store.open("key").write(OUT, 0, b"new\n" * 400)
    async with asyncio.timeout(5):
        lines += [line.text async for line in reading]
    assert lines == ["old"] * 40
    assert {line.text for line in store.open("key").tail(1000)} == {"new"}


async def test_an_owner_s_log_is_set_aside_any_number_of_times_and_swept(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    for owner in (OWNER, OTHER, OWNER, OTHER):
        store.begin("key", owner)
        store.open("key").write(OUT, 0, owner.project.encode() + b"\n")
        assert [line.text for line in store.open("key").tail(9)] == [owner.project]
    await store.sweep(lambda: frozenset({"key"}))
    assert names(tmp_path) == ["key"]


async def test_a_vm_is_not_made_where_another_s_log_cannot_be_taken_out_of_its_way(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = rig.manager()
    await written_and_deleted(rig, manager, OTHER)

    def refuse(_self: Path, _target: Path) -> Path:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", refuse)
        with pytest.raises(HostError, match="is in the way of a new one's"):
            manager.create(spec_of(rig, OWNER, "serve"))
    assert manager.list_vms() == ()
    assert not list((rig.directory / "vms").glob("*.json"))
    manager.create(spec_of(rig, OWNER, "serve"))
    assert await said(manager) == []
