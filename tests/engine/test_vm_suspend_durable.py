"""A power cut around a suspend: memory and disk of what counts belong together, and what ran on does not count."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plasmavmc.errors import CapacityError, HostError, NotFoundError
from plasmavmc.manager import VmManager
from plasmavmc.snapshots.files import SnapshotStore
from plasmavmc.snapshots.manifest import VERSION, Manifest
from plasmavmc.states import VmState
from plasmavmc.storage.file import FileStorage
from plasmavmc.types import Vm, vm_key
from tests.engine.engine_rig import EngineRig
from tests.engine.suspend_rig import S, members, running, runs_on
from tests.engine.syncs import Syncs

KEY = vm_key("vm_one")


def a_manifest() -> Manifest:
    return Manifest(
        version=VERSION,
        vm_id="vm_one",
        image=f"sha256:{'0' * 64}",
        backend="memory",
        memory_bytes=4096,
        generation=0,
        created=1.0,
        traits={},
        state=(),
        memory=(),
    )


async def kept(store: SnapshotStore) -> None:
    async with store.draft(KEY) as draft:
        await store.commit(draft, a_manifest())


# The layer


async def test_the_writable_layer_is_on_the_disk_before_the_snapshot_counts(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    counted: dict[str, bool] = {}

    async def note(key: str) -> None:
        counted[key] = rig.parts.snapshots.has(key)

    monkeypatch.setattr(rig.storage, "make_durable", note)
    await manager.suspend("vm_one")
    assert counted == {KEY: False}


async def test_a_layer_that_the_disk_does_not_take_leaves_the_vm_running(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)

    async def full(_key: str) -> None:
        raise CapacityError("disk-full", "no space is left for a disk")

    with monkeypatch.context() as patches:
        patches.setattr(rig.storage, "make_durable", full)
        with pytest.raises(CapacityError):
            await manager.suspend("vm_one")
    assert members(rig) == 1
    await runs_on(rig, manager)


async def test_a_disk_is_made_durable_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FileStorage(tmp_path / "disks")
    await storage.create(KEY, 4096)
    syncs = Syncs(monkeypatch)
    await storage.make_durable(KEY)
    assert syncs.names == [f"{KEY}.disk", "disks"]
    syncs.refused.add(f"{KEY}.disk")
    with pytest.raises(HostError, match="Input/output error"):
        await storage.make_durable(KEY)
    with pytest.raises(NotFoundError):
        await storage.make_durable("nothing")


# The snapshot's name


async def test_a_snapshot_that_is_used_does_not_count_after_a_power_cut_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    await kept(store)
    syncs = Syncs(monkeypatch)
    await store.use(KEY)
    assert syncs.names == ["snapshots"]
    assert not store.has(KEY)


async def test_a_snapshot_that_is_deleted_does_not_count_after_a_power_cut_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VM was stopped as it slept, and its volumes may be another's now."""
    store = SnapshotStore(tmp_path / "snapshots")
    await kept(store)
    syncs = Syncs(monkeypatch)
    await store.delete(KEY)
    assert syncs.names == ["snapshots"]
    assert not list((tmp_path / "snapshots").iterdir())
    await store.delete(KEY)


async def test_a_snapshot_is_used_where_an_older_one_could_not_be_removed(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    await kept(store)
    left = tmp_path / "snapshots" / f"{KEY}.used"
    left.mkdir()
    (left / "memory").write_bytes(b"older")
    await store.use(KEY)
    assert not store.has(KEY)


@contextmanager
def snapshots_do_not_reach_the_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is done within is refused for it."""
    with monkeypatch.context() as patches:
        Syncs(patches).refused.add("snapshots")
        with pytest.raises(HostError, match="Input/output error"):
            yield


@pytest.mark.parametrize(
    ("order", "done"), [(VmManager.stop, S.STOPPED), (VmManager.resume, S.RUNNING)], ids=["stopped", "woken"]
)
async def test_a_vm_whose_snapshot_cannot_be_taken_away_for_good_sleeps_on(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch, order: Callable[[VmManager, str], Awaitable[Vm]], done: VmState
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    with snapshots_do_not_reach_the_disk(monkeypatch):
        await order(manager, "vm_one")
    assert manager.get("vm_one").status.state is S.SUSPENDED
    assert (await order(manager, "vm_one")).status.state is done


async def test_an_engine_starts_beside_a_snapshot_of_nobody_that_cannot_be_deleted(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    await manager.suspend("vm_one")
    rig.parts.records.delete("vm_one")
    Syncs(monkeypatch).refused.add("snapshots")
    again = rig.manager()
    await again.recover()
    assert again.list_vms() == ()


async def test_a_snapshot_whose_name_does_not_reach_the_disk_is_none_and_the_vm_runs_on(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await running(rig)
    with snapshots_do_not_reach_the_disk(monkeypatch):
        await manager.suspend("vm_one")
    assert not rig.parts.snapshots.has(KEY)
    await runs_on(rig, manager)


async def test_a_snapshot_that_has_its_name_and_cannot_lose_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    rename = Path.rename

    def never_back(path: Path, target: Path) -> Path:
        if path.name == KEY:
            raise OSError(5, os.strerror(5))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", never_back)
    Syncs(monkeypatch).refused.add("snapshots")
    await kept(store)
    assert store.has(KEY)
