"""The manager and its machines: nothing is left after a failure, what runs is adopted, no secret reaches the disk."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from plasmavmc.errors import (
    CapacityError,
    ConflictError,
    HostError,
    InvalidSpecError,
    NotFoundError,
    PlasmaError,
    UnavailableError,
)
from plasmavmc.guest.api import GuestHello, GuestReady
from plasmavmc.guest.memory import MemoryGuest
from plasmavmc.host.operations import Swept
from plasmavmc.host.ports import Answerer, PublishedPort, Transport
from plasmavmc.hypervisor.memory import Faults, PretendedVmms
from plasmavmc.manager import VmManager
from plasmavmc.policy import Destination, IpProtocol, Opening
from plasmavmc.states import VmState
from plasmavmc.types import NetworkSpec, NetworkUsage, RateLimit, Vm, VmResources, vm_key
from tests.engine.engine_rig import EngineRig, script
from tests.engine.suspend_rig import eventually

FROM_WEB = Opening("web", IpProtocol.TCP, 5432, 5432)
TLS = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443)


async def see(manager: VmManager, vm_id: str, holds: Callable[[Vm], bool]) -> Vm:
    async with asyncio.timeout(20):
        revision = -1
        while not holds(manager.get(vm_id)):
            revision = await manager.changed(revision)
    return manager.get(vm_id)


def in_state(*states: VmState) -> Callable[[Vm], bool]:
    return lambda vm: vm.status.state in states


async def run(manager: VmManager, rig: EngineRig, *command: str, until: VmState = VmState.RUNNING) -> Vm:
    spec = rig.spec("a", *command)
    manager.create(spec)
    manager.start(spec.id)
    return await see(manager, spec.id, in_state(until))


async def test_a_failed_boot_leaves_no_disk_no_address_and_no_process(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.recover()
    rig.vmms.faults = Faults(create=HostError("no-vmm", "the VMM could not be started"))
    vm = await run(manager, rig, "serve", until=VmState.FAILED)
    assert vm.status.reason_code == "no-vmm"
    assert not vm.status.permanent
    assert await rig.storage.disks() == ()
    assert rig.network.rules is not None
    assert rig.network.rules.members == ()
    assert rig.vmms.living() == frozenset()
    assert not (rig.directory / "run" / "vm").exists() or list((rig.directory / "run" / "vm").iterdir()) == []


async def test_a_command_that_does_not_exist_fails_for_good(rig: EngineRig) -> None:
    manager = rig.manager()
    vm = await run(manager, rig, "missing", until=VmState.FAILED)
    assert (vm.status.reason_code, vm.status.permanent) == ("no-such-command", True)
    assert vm.status.exit_code == 127
    assert rig.vmms.living() == frozenset()


async def test_an_unknown_image_fails_with_its_reason(rig: EngineRig) -> None:
    manager = rig.manager()
    spec = replace(rig.spec("a", "serve"), image="sha256:" + "f" * 64)
    manager.create(spec)
    manager.start(spec.id)
    vm = await see(manager, spec.id, in_state(VmState.FAILED))
    assert vm.status.reason != ""


SILENT = UnavailableError("uplink-unavailable", "no server answers")


async def test_a_vm_whose_image_cannot_be_had_now_is_told_from_one_that_failed(rig: EngineRig) -> None:
    manager = rig.manager()

    async def silent(digest: str) -> bytes:
        raise SILENT

    rig.parts.source.manifest = silent  # type: ignore[method-assign]  # a source that does not answer
    vm = await run(manager, rig, "serve", until=VmState.FAILED)
    assert (vm.status.reason_code, vm.status.unavailable) == ("uplink-unavailable", True)
    again = rig.manager()
    await again.recover()
    assert again.get("vm_a").status.unavailable


@pytest.mark.parametrize("error", [SILENT, HostError("no-vmm", "the VMM could not be started")])
async def test_a_vm_whose_vmm_was_to_start_has_failed_whatever_the_reason(rig: EngineRig, error: PlasmaError) -> None:
    manager = rig.manager()
    rig.vmms.faults = Faults(create=error)
    assert not (await run(manager, rig, "serve", until=VmState.FAILED)).status.unavailable


async def test_a_full_disk_fails_the_vm_and_leaves_nothing(rig: EngineRig) -> None:
    manager = rig.manager()

    async def full(template: Path, key: str) -> None:
        raise CapacityError("disk-full", "no space is left for a disk")

    rig.storage.clone = full  # type: ignore[method-assign, assignment]  # a driver whose disk is full
    vm = await run(manager, rig, "serve", until=VmState.FAILED)
    assert vm.status.reason_code == "disk-full"
    assert rig.vmms.living() == frozenset()


async def test_a_vmm_that_is_killed_fails_the_vm_and_frees_its_address(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "serve")
    rig.vmms.kill("vm_a")
    vm = await see(manager, "vm_a", in_state(VmState.FAILED))
    assert vm.status.reason_code == "vmm-died"
    assert "hello" in vm.status.log_tail
    assert rig.network.rules is not None
    assert rig.network.rules.members == ()


async def test_a_running_vm_is_adopted_with_its_address_and_goes_on(rig: EngineRig) -> None:
    first = rig.manager()
    before = await run(first, rig, "serve")
    await first.close(keep_vms=True)
    second = rig.manager()
    await second.recover()
    after = second.get("vm_a")
    assert after.status.state is VmState.RUNNING
    assert after.handle == before.handle
    assert after.status.endpoints == before.status.endpoints
    assert rig.network.rules is not None
    assert [str(member.ipv4) for member in rig.network.rules.members] == [before.status.endpoints[0][4:]]
    assert (await second.stop("vm_a", 1.0)).status.state is VmState.STOPPED


async def test_a_vm_that_ended_while_the_engine_was_away_is_told_as_ended(rig: EngineRig) -> None:
    first = rig.manager()
    await run(first, rig, "serve")
    await first.close(keep_vms=True)
    rig.vmms.kill("vm_a")
    second = rig.manager()
    await second.recover()
    assert second.get("vm_a").status.reason_code == "vmm-died"


async def test_a_vm_whose_boot_was_cut_short_is_ended_not_adopted(rig: EngineRig) -> None:
    rig.vmms.faults = Faults(hang=True)
    first = rig.manager()
    await run(first, rig, "serve", until=VmState.STARTING)
    await eventually(rig.vmms.living)
    second = rig.manager()
    await second.recover()
    assert second.get("vm_a").status.state is VmState.FAILED
    assert rig.vmms.living() == frozenset()


async def test_a_disk_that_belongs_to_no_vm_is_removed_at_start(rig: EngineRig, tmp_path: Path) -> None:
    (tmp_path / "template").write_bytes(b"x")
    await rig.storage.clone(tmp_path / "template", "orphanorphan")
    await rig.manager().recover()
    assert await rig.storage.disks() == ()


async def test_environment_reaches_the_guest_and_never_the_disk(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "serve")
    for path in rig.directory.rglob("*"):
        if path.is_file():
            assert b"canary-value" not in path.read_bytes(), path


async def test_the_same_spec_again_is_the_same_vm_and_another_one_is_refused(rig: EngineRig) -> None:
    manager = rig.manager()
    spec = rig.spec("a", "serve")
    manager.create(spec)
    manager.create(spec)
    with pytest.raises(ConflictError):
        manager.create(replace(spec, hostname="other"))
    assert len(manager.list_vms()) == 1


async def test_a_spec_without_environment_is_not_the_same_as_one_with(rig: EngineRig) -> None:
    manager = rig.manager()
    spec = rig.spec("a", "serve")
    manager.create(replace(spec, env={}))
    with pytest.raises(ConflictError):
        manager.create(spec)


async def test_a_restarted_vm_runs_anew_under_its_id_with_a_fresh_disk(rig: EngineRig) -> None:
    manager = rig.manager()
    before = await run(manager, rig, "serve")
    await manager.restart("vm_a")
    after = await see(manager, "vm_a", in_state(VmState.RUNNING))
    assert before.handle is not None
    assert after.handle is not None
    assert after.handle.pid != before.handle.pid
    assert after.spec == before.spec
    assert len(rig.vmms.living()) == len(await rig.storage.disks()) == 1
    async with asyncio.timeout(20):
        followed = manager.logs("vm_a", follow=True, tail=10)
        lines = [(await anext(followed)).text for _ in range(3)]
    assert lines == ["hello", "a new run of this VM begins", "hello"]


async def test_a_vm_that_ended_is_restarted_too(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "exit", "3", until=VmState.STOPPED)
    await manager.restart("vm_a")
    assert (await see(manager, "vm_a", in_state(VmState.STOPPED))).status.exit_code == 3


async def test_a_restart_that_no_backend_can_serve_leaves_the_vm_alone(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "serve")
    rig.parts.registry.refuse("memory", "it is broken")
    with pytest.raises(HostError, match="no usable hypervisor"):
        await manager.restart("vm_a")
    assert manager.get("vm_a").status.state is VmState.RUNNING
    with pytest.raises(NotFoundError):
        await manager.restart("vm_nobody")


async def test_an_engine_that_was_restarted_knows_what_it_forgot(rig: EngineRig) -> None:
    manager = rig.manager()
    spec = rig.spec("a", "serve")
    await run(manager, rig, "serve")
    await manager.close(keep_vms=True)
    again = rig.manager()
    await again.recover()
    assert again.create(spec).spec.env == {}, "the same, as far as it can know"
    with pytest.raises(ConflictError, match="never written to a disk") as refused:
        await again.restart("vm_a")
    assert refused.value.code == "spec-forgotten"
    assert again.get("vm_a").status.state is VmState.RUNNING
    await again.close(keep_vms=True)
    third = rig.manager()
    await third.recover()
    with pytest.raises(ConflictError):
        await third.restart("vm_a")
    await third.delete("vm_a")
    third.create(spec)
    third.start("vm_a")
    await see(third, "vm_a", in_state(VmState.RUNNING))
    await third.restart("vm_a")


async def test_closing_without_keeping_stops_vms_that_run_and_that_boot(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "serve")
    rig.vmms.faults = Faults(hang=True)
    booting = rig.spec("b", "serve")
    manager.create(booting)
    manager.start(booting.id)
    await see(manager, booting.id, in_state(VmState.STARTING))
    await manager.close(keep_vms=False)
    assert {vm.status.state for vm in manager.list_vms()} == {VmState.STOPPED}
    assert rig.vmms.living() == frozenset()


async def test_an_unknown_vm_is_not_found(rig: EngineRig) -> None:
    manager = rig.manager()
    with pytest.raises(NotFoundError):
        manager.get("vm_nobody")
    await manager.delete("vm_nobody")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("id", {"id": "../etc"}),
        ("image", {"image": "latest"}),
        ("name", {"name": "A b"}),
        ("env", {"env": {"A=B": "x"}}),
        ("env", {"env": {"A": "x\0y"}}),
        ("resources.memory_bytes", {"resources": VmResources(memory_bytes=1)}),
        ("resources", {"resources": VmResources(cpu_milli=0)}),
        ("resources.disk_limit.bytes_per_second", {"resources": VmResources(disk_limit=RateLimit(1))}),
        ("resources.disk_limit.operations_per_second", {"resources": VmResources(disk_limit=RateLimit(0, 1))}),
        ("networks[0].receive.bytes_per_second", {"networks": (NetworkSpec("n", "net", receive=RateLimit(1)),)}),
        (
            "networks[0].transmit.operations_per_second",
            {"networks": (NetworkSpec("n", "net", transmit=RateLimit(0, 100)),)},
        ),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_its_field(
    rig: EngineRig, field: str, change: dict[str, object]
) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        rig.manager().create(replace(rig.spec("a", "serve"), **change))
    assert refused.value.field == field


def test_a_network_limit_that_the_host_cannot_hold_is_refused_at_once(rig: EngineRig) -> None:
    manager = rig.manager()
    rig.network.cannot_limit = "the kernel lacks the queue sch_tbf"
    limited = (NetworkSpec("n", "net", transmit=RateLimit(bytes_per_second=1_000_000)),)
    with pytest.raises(InvalidSpecError, match="sch_tbf") as refused:
        manager.create(replace(rig.spec("a", "serve"), networks=limited))
    assert refused.value.field == "networks[0].transmit"
    manager.create(rig.spec("a", "serve"))


async def test_what_passed_a_vms_interface_is_told_where_it_is_counted(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "serve")
    assert (await manager.describe("vm_a")).status.usage.network is None
    rig.network.traffic[vm_key("vm_a")] = NetworkUsage(1, 60, 2, 120, {"arp": 3})
    assert (await manager.describe("vm_a")).status.usage.network == rig.network.traffic[vm_key("vm_a")]
    await manager.delete("vm_a")


async def test_a_guest_need_not_send_again_what_its_log_holds(rig: EngineRig) -> None:
    guest = MemoryGuest(script)
    rig.vmms = PretendedVmms(lambda _spec: guest)
    manager = rig.manager()
    await run(manager, rig, "serve")
    async with asyncio.timeout(20):
        while not [line async for line in manager.logs("vm_a", follow=False, tail=1)]:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0)
    await manager.close(keep_vms=True)
    channel = guest.attach()
    told = channel.events()
    assert await anext(told) == GuestHello(configured=True, log_offset=len("hello\n"))
    assert isinstance(await anext(told), GuestReady)
    guest.cut()
    assert [event async for event in told] == []


async def test_a_log_is_followed_from_before_its_vm_starts_until_its_end(rig: EngineRig) -> None:
    manager = rig.manager()
    manager.create(rig.spec("a", "exit", "0"))
    lines = manager.logs("vm_a", follow=True, tail=10)
    first = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    manager.start("vm_a")
    async with asyncio.timeout(20):
        assert (await first).text == "hello"
        assert [line async for line in lines] == []
    assert manager.get("vm_a").status.state is VmState.STOPPED


async def test_the_log_of_an_adopted_vm_that_was_silent_so_far_is_followed_until_its_end(rig: EngineRig) -> None:
    first = rig.manager()
    await run(first, rig, "serve")
    await first.close(keep_vms=True)
    manager = rig.manager()
    await manager.recover()
    following = asyncio.ensure_future(anext(manager.logs("vm_a", follow=True, tail=0), None))
    await asyncio.sleep(0)
    assert not following.done()
    await manager.stop("vm_a")
    async with asyncio.timeout(20):
        assert await following is None


async def test_the_log_of_an_unknown_vm_cannot_be_followed(rig: EngineRig) -> None:
    with pytest.raises(NotFoundError):
        await anext(rig.manager().logs("vm_nobody", follow=True, tail=10))


async def test_the_sweep_spares_what_runs(rig: EngineRig) -> None:
    manager = rig.manager()
    await run(manager, rig, "serve")
    await manager.close(keep_vms=True)
    assert await rig.manager().recover() == Swept()


async def test_a_vm_that_is_stopped_in_the_very_moment_it_is_started_ends(rig: EngineRig) -> None:
    manager = rig.manager()
    vm_id = manager.create(rig.spec("one", "serve")).spec.id
    manager.start(vm_id)
    async with asyncio.timeout(5.0):
        vm = await manager.stop(vm_id)
    assert (vm.status.state, vm.status.reason_code) == (VmState.STOPPED, "stopped")
    await manager.delete(vm_id)
    assert not rig.vmms.known()


async def test_what_a_vm_may_reach_lasts_over_a_restart_of_the_engine(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.recover()
    vm = await run(manager, rig, "serve")
    assert rig.network.rules is not None
    assert [member.egress for member in rig.network.rules.members] == [None]
    await manager.restrict(vm.spec.id, (TLS,))
    assert [member.egress for member in rig.network.rules.members] == [(TLS,)]
    assert manager.create(rig.spec("a", "serve")).spec.networks[0].egress == (TLS,), "the same VM, as it is by now"
    await manager.close(keep_vms=True)
    again = rig.manager()
    await again.recover()
    assert [member.egress for member in rig.network.rules.members] == [(TLS,)]
    assert again.get(vm.spec.id).spec.networks[0].egress == (TLS,)
    await again.close(keep_vms=False)


async def test_a_change_that_comes_while_a_vm_boots_is_in_force_when_it_runs(rig: EngineRig) -> None:
    manager = rig.manager()
    spec = rig.spec("a", "serve")
    manager.create(spec)
    manager.start(spec.id)
    await manager.restrict(spec.id, ())
    await manager.screen(spec.id, "db", ())
    await see(manager, spec.id, in_state(VmState.RUNNING))
    assert rig.network.rules is not None
    found = [(member.egress, member.identity, member.ingress) for member in rig.network.rules.members]
    assert found == [((), "db", ())]


async def test_what_may_be_opened_to_a_vm_lasts_over_a_restart_of_the_engine(rig: EngineRig) -> None:
    manager = rig.manager()
    await manager.recover()
    vm = await run(manager, rig, "serve")
    await manager.screen(vm.spec.id, "db", (FROM_WEB,))
    assert manager.create(rig.spec("a", "serve")).spec.networks[0].identity == "db", "the same VM, as it is by now"
    await manager.close(keep_vms=True)
    again = rig.manager()
    await again.recover()
    assert rig.network.rules is not None
    assert [(member.identity, member.ingress) for member in rig.network.rules.members] == [("db", (FROM_WEB,))]
    network = again.get(vm.spec.id).spec.networks[0]
    assert (network.identity, network.ingress) == ("db", (FROM_WEB,))
    await again.close(keep_vms=False)


async def test_openings_that_make_no_sense_are_refused_by_their_field(rig: EngineRig) -> None:
    manager, bad = rig.manager(), replace(FROM_WEB, last_port=1)
    spec = rig.spec("a", "serve")
    for field, wrong in (("ingress[1].last_port", {"ingress": (FROM_WEB, bad)}), ("identity", {"identity": "a b"})):
        with pytest.raises(InvalidSpecError, match=re.escape(f"networks[0].{field}")):
            manager.create(replace(spec, networks=(replace(spec.networks[0], **wrong),)))  # type: ignore[arg-type]
    manager.create(spec)
    with pytest.raises(InvalidSpecError, match=r"ingress\[0\]\.identity"):
        await manager.screen(spec.id, "db", (Opening("a b"),))
    with pytest.raises(InvalidSpecError, match="ingress: a VM has 64"):
        await manager.screen(spec.id, "db", (FROM_WEB,) * 65)
    with pytest.raises(InvalidSpecError, match="identity"):
        await manager.screen(spec.id, "a b", ())
    with pytest.raises(NotFoundError):
        await manager.screen("vm_nobody", "db", ())


async def test_destinations_that_make_no_sense_are_refused_by_their_field(rig: EngineRig) -> None:
    manager, bad = rig.manager(), replace(TLS, last_port=1)
    spec = rig.spec("a", "serve")
    with pytest.raises(InvalidSpecError, match=r"networks\[0\]\.egress\[1\]\.last_port"):
        manager.create(replace(spec, networks=(replace(spec.networks[0], egress=(TLS, bad)),)))
    manager.create(spec)
    with pytest.raises(InvalidSpecError, match=r"egress\[0\]\.last_port"):
        await manager.restrict(spec.id, (bad,))
    with pytest.raises(InvalidSpecError, match="egress: a VM has 32"):
        await manager.restrict(spec.id, (TLS,) * 33)
    with pytest.raises(NotFoundError):
        await manager.restrict("vm_nobody", ())


async def test_a_vm_that_is_to_stop_is_led_nothing_new_before_its_guest_hears_of_it(rig: EngineRig) -> None:
    heard: list[list[bool]] = []

    class Listening(MemoryGuest):
        def stop(self, number: int, grace_s: float) -> None:
            assert rig.network.rules is not None
            heard.append([bool(port.taking) for port in rig.network.rules.ports])
            super().stop(number, grace_s)

    rig.vmms = PretendedVmms(lambda _spec: Listening(script))
    manager = rig.manager()
    await manager.recover()
    vm = await run(manager, rig, "serve")
    [member] = rig.network.rules.members if rig.network.rules else ()
    answerer = Answerer(vm_key(vm.spec.id), member.ipv4, 80)
    await rig.network.publish([PublishedPort(Transport.TCP, 20_000, (answerer,))])
    await manager.stop(vm.spec.id)
    assert heard == [[False]]
    assert rig.network.rules is not None
    assert rig.network.rules.ports == ()
