"""What a sweep removes, and what it must not touch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from plasmavmc.host.configuration import QEMU
from plasmavmc.host.helper.cgroups import DirectoryCgroups, Layout
from plasmavmc.host.names import shaper_name
from plasmavmc.host.operations import Keep, Unkillable
from plasmavmc.host.processes import is_alive, kill, read_process
from tests.contract.host_parts import ONE, TWO, HostRig, end, identity, let_go, start
from tests.contract.host_rig import Namespace, RealHelper, eventually, rig_of, sleeper

pytestmark = pytest.mark.real
EVERYTHING = Keep()


def plant_tap(namespace: Namespace, name: str) -> str:
    namespace.run("ip", "tuntap", "add", "dev", name, "mode", "tap")
    return name


def qemu(name: str) -> tuple[str, ...]:
    return (QEMU, "-name", name, "-M", "none", "-nodefaults", "-display", "none", "-S", "-monitor", "none")


@contextmanager
def planted_cgroup(parent: str, child: str) -> Iterator[list[Path]]:
    """A group in every hierarchy that the helper uses, or in none where it uses none."""
    roots = (Path("/sys/fs/cgroup"), *(Path("/sys/fs/cgroup") / name for name in ("memory", "cpu", "pids")))
    places = [root / parent / child for root in roots if (root / "cgroup.procs").exists()]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    try:
        yield places
    finally:
        groups = DirectoryCgroups(Layout("cgroup-v1", tuple(place.parent for place in places)))
        groups.remove(child)
        groups.remove_parent()


async def test_a_vmm_under_our_name_is_killed_and_a_foreign_one_lives(rig: HostRig) -> None:
    with (
        sleeper(*qemu(rig.names.process(ONE))) as ours,
        sleeper(*qemu("swg-aaaaaaaaaaaa-bbbbbbbbbbbb")) as another,
        sleeper(*qemu("database")) as foreign,
        sleeper(*qemu(rig.names.process(TWO)), uid=12345) as pretended,
    ):
        begun = monotonic()
        swept = await rig.host.sweep(EVERYTHING)
        assert swept.processes == (ours,)
        assert read_process(ours) is None
        assert read_process(another) is not None
        assert read_process(foreign) is not None
        assert read_process(pretended) is not None, "a user of the host calls a process of his as he likes"
        assert monotonic() - begun < 5


async def test_a_tap_under_our_name_is_removed_and_foreign_ones_stay(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    ours = [plant_tap(helper.namespace, f"{rig.names.link_prefix}{rest}") for rest in ("planted", "zzzzzzzz")]
    nobodys = plant_tap(helper.namespace, "swgqqqqplanted")
    foreign = plant_tap(helper.namespace, "tap-of-another")
    swept = await rig.host.sweep(EVERYTHING)
    assert set(swept.taps) == {*ours, nobodys}
    assert {foreign, rig.bridge.name, "lo"} <= helper.namespace.links()
    assert not {*ours, nobodys} & helper.namespace.links()


async def test_what_holds_a_tap_back_goes_with_its_vm(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    spawned = await start(rig)
    stays, goes = (replace(rig.tap(key), transmit=1_000_000) for key in (ONE, TWO))
    first, second = await rig.host.tap_open(stays), await rig.host.tap_open(goes)
    shaper = shaper_name(stays.name)
    assert {shaper, shaper_name(goes.name)} <= helper.namespace.links()
    nobodys = shaper_name("swgqqqqaaaaaaaa")
    helper.namespace.run("ip", "link", "add", nobodys, "type", "ifb")
    helper.namespace.run("ip", "link", "set", nobodys, "up")
    swept = await rig.host.sweep(Keep({ONE: identity(spawned)}))
    assert set(swept.taps) == {goes.name, shaper_name(goes.name), nobodys}
    os.close(first)
    await eventually(lambda: stays.name not in helper.namespace.links(), "the tap has ended")
    assert shaper in helper.namespace.links(), "it does not end with its tap"
    again = await rig.host.tap_open(stays)
    await rig.host.tap_forget(stays.name)
    assert shaper not in helper.namespace.links()
    for fd in (second, again):
        os.close(fd)
    await end(rig, spawned)


async def test_links_of_another_installation_stay(rig: HostRig, helper: RealHelper) -> None:
    other = RealHelper(helper.namespace, helper.configuration.run_root)
    try:
        await other.host.bridge_ensure(rig_of(other).bridge)
        tap = plant_tap(helper.namespace, other.names.tap(ONE))
        await rig.host.sweep(EVERYTHING)
        assert {tap, other.names.bridge} <= helper.namespace.links()
    finally:
        await other.clean()


async def test_a_tap_in_use_is_nobodys_only_when_it_is_idle(rig: HostRig, helper: RealHelper) -> None:
    """An installation whose run directory is lost may still have VMs: what a VMM holds is left alone."""
    other = RealHelper(helper.namespace, helper.configuration.run_root)
    try:
        other_rig = rig_of(other)
        await other.host.bridge_ensure(other_rig.bridge)
        fd = await other.host.tap_open(other_rig.tap())
        shutil.rmtree(other.names.run_dir(helper.configuration.run_root))
        await rig.host.sweep(EVERYTHING)
        assert {other_rig.tap().name, other.names.bridge} <= helper.namespace.links()
        os.close(fd)
    finally:
        await other.clean()


async def test_a_foreign_port_is_taken_off_our_bridge_and_left_alone(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    foreign = plant_tap(helper.namespace, "tap-of-another")
    helper.namespace.run("ip", "link", "set", foreign, "master", rig.bridge.name)
    await rig.host.sweep(EVERYTHING)
    assert foreign in helper.namespace.links()
    assert "master" not in helper.namespace.run("ip", "link", "show", foreign)


async def test_a_cgroup_under_our_parent_is_removed_and_a_foreign_one_stays(rig: HostRig, helper: RealHelper) -> None:
    spawned = await start(rig)
    if spawned.confinement == "rlimits":
        pytest.skip("this host gives no cgroups")
    with planted_cgroup("foreign-of-a-test", "child") as foreign, planted_cgroup(rig.names.cgroup, "vm-planted"):
        swept = await rig.host.sweep(Keep({ONE: identity(spawned)}))
        assert swept.cgroups == ("vm-planted",)
        assert helper.cgroups() == {rig.names.vm_cgroup(await rig.host.uid_take(ONE))}
        assert all(place.is_dir() for place in foreign)
        await end(rig, spawned)


async def test_a_process_in_our_cgroup_is_ended_with_it(rig: HostRig, helper: RealHelper) -> None:
    spawned = await start(rig)
    if spawned.confinement == "rlimits":
        pytest.skip("this host gives no cgroups")
    with planted_cgroup(rig.names.cgroup, "vm-planted") as places, sleeper() as intruder:
        for place in places:
            (place / "cgroup.procs").write_text(str(intruder))
        swept = await rig.host.sweep(Keep({ONE: identity(spawned)}))
        assert swept.processes == (intruder,)
        assert is_alive(identity(spawned))
        await end(rig, spawned)


async def test_a_zombie_is_not_kept(rig: HostRig, helper: RealHelper) -> None:
    """It has a VM's key, number and start time, and it is dead."""
    await rig.host.bridge_ensure(rig.bridge)
    with sleeper(*qemu(rig.names.process(ONE))) as pid:
        found = read_process(pid)
        assert found is not None
        assert kill(found.id, timeout_s=5)
        uid = await rig.host.uid_take(ONE)
        tap = plant_tap(helper.namespace, rig.names.tap(ONE))
        swept = await rig.host.sweep(Keep({ONE: found.id}))
        assert (swept.taps, swept.uids, swept.processes) == ((tap,), (uid,), ())


FREEZER = Path("/sys/fs/cgroup/freezer")


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """In the block no signal reaches it, not even the last one, as where it waits for a disk."""
    group = FREEZER / f"swgtest-{pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        deadline = monotonic() + 10
        while (group / "cgroup.procs").read_text():
            assert monotonic() < deadline, "what was frozen has ended"
            time.sleep(0.02)
        group.rmdir()


@pytest.mark.skipif(not (FREEZER / "cgroup.procs").exists(), reason="this host cannot freeze a process so")
async def test_a_process_that_cannot_be_killed_is_left_with_its_own_and_told_of_while_others_go(
    rig: HostRig, helper: RealHelper
) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    stuck = await start(rig)
    uid = await rig.host.uid_take(ONE)
    mine, others = (plant_tap(helper.namespace, rig.names.tap(key)) for key in (ONE, TWO))
    await rig.host.vm_fence(ONE, monotonic() + 600)
    group = helper.cgroups()
    with frozen(stuck.pid):
        with sleeper(*qemu(rig.names.process(TWO))) as other:
            swept = await rig.host.sweep(EVERYTHING)
        assert swept.unkillable == (Unkillable(identity(stuck), ONE),)
        assert (swept.processes, swept.taps, swept.cgroups, swept.uids) == ((other,), (others,), (), ())
        assert mine in helper.namespace.links()
        assert helper.cgroups() == group
        assert files_below(helper.configuration.run_root / "uids") == [str(uid)]
        assert files_below(helper.configuration.run_root / "fences", ONE)
    let_go(stuck)
    swept = await rig.host.sweep(EVERYTHING)
    assert (swept.unkillable, swept.taps, swept.uids) == ((), (mine,), (uid,))


async def test_a_kept_vm_keeps_its_tap_while_anothers_goes(rig: HostRig, helper: RealHelper) -> None:
    await rig.host.bridge_ensure(rig.bridge)
    spawned = await start(rig)
    kept = plant_tap(helper.namespace, rig.names.tap(ONE))
    gone = plant_tap(helper.namespace, rig.names.tap(TWO))
    swept = await rig.host.sweep(Keep({ONE: identity(spawned)}))
    assert swept.taps == (gone,)
    assert kept in helper.namespace.links()
    await end(rig, spawned)


async def test_dismantling_leaves_no_trace(rig: HostRig, helper: RealHelper) -> None:
    before = helper.namespace.links()
    await rig.host.bridge_ensure(rig.bridge)
    await end(rig, await start(rig))
    await rig.host.dismantle()
    assert helper.namespace.links() == before
    assert rig.names.key not in helper.namespace.run("nft", "list", "tables")
    assert files_below(Path("/sys/fs/cgroup"), rig.names.cgroup) == []
    assert files_below(helper.configuration.run_root) == ["lock", "uids"]
    assert files_below(helper.configuration.run_root / "uids") == []


def files_below(directory: Path, name: str = "") -> list[str]:
    """Names in a directory, or those anywhere below it that are called so."""
    return sorted(path.name for path in (directory.rglob(name) if name else directory.iterdir()))
