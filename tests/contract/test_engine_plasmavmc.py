"""The engine's contract on PlasmaVMC, with everything below its manager pretended; real VMs run it in tests/real."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from plasmavmc import types
from plasmavmc.errors import HostError
from plasmavmc.host.operations import Guarding
from plasmavmc.hypervisor.memory import PretendedGuest
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.memory import MemoryVolumes
from plasmavmc.types import MIB, vm_key
from shellwego.core.nodes import Backend, Underlay
from shellwego.core.peers import PeerNode
from shellwego.drivers.engine import warnings
from shellwego.drivers.engine.assembly import HostLink
from shellwego.drivers.engine.orders import to_view
from shellwego.drivers.engine.plasmavmc import PlasmaEngine
from shellwego.drivers.engine.words import to_network_usage, to_usage, to_words
from shellwego.ports.engine import NetworkUsage
from tests.contract.engine_contract import EngineContract, EngineUnderTest, MakeEngine, running, see
from tests.contract.volume_engine_contract import VolumeEngineContract
from tests.contract.volume_sending_contract import VolumeSendingContract
from tests.engine.engine_rig import EngineRig


def maker(
    directory: Path,
    states: dict[str, PretendedGuest],
    probe: Callable[[], Awaitable[None]] | None = None,
    volumes: VolumeDriver | None = None,
) -> MakeEngine:
    """`states` is what saved guests were, which goes with their bytes from host to host. Without `volumes` they are in
    memory."""

    async def make() -> EngineUnderTest:
        rig = EngineRig(directory)
        rig.vmms.states = states
        if volumes is not None:
            rig.volumes = cast(MemoryVolumes, volumes)
        return await started(rig)

    async def started(rig: EngineRig) -> EngineUnderTest:
        engine = PlasmaEngine(
            rig.manager(),
            backends=lambda: (Backend(name="memory", status="ready", suspend=True),),
            disk_dir=directory,
            version="test",
            confinement=lambda: "none",
            network=rig.parts.network,
            images=lambda: (rig.sample.digest,),
            probe=probe,
        )

        async def write(volume_id: str, data: bytes) -> None:
            file = await rig.volumes.open(volume_id)
            try:
                os.pwrite(file, data.ljust(4096), MIB)
                os.fsync(file)
            finally:
                os.close(file)

        await engine.start()
        return EngineUnderTest(engine, rig.sample.digest, again=lambda: started(rig), write=write)

    return make


class TestPlasmaEngine(EngineContract, VolumeEngineContract, VolumeSendingContract):
    @pytest.fixture
    def states(self) -> dict[str, PretendedGuest]:
        return {}

    @pytest.fixture
    def make(self, tmp_path: Path, states: dict[str, PretendedGuest]) -> MakeEngine:
        return maker(tmp_path / "here", states)

    @pytest.fixture
    def elsewhere(self, tmp_path: Path, states: dict[str, PretendedGuest]) -> MakeEngine:
        return maker(tmp_path / "there", states)

    async def test_what_fills_the_disk_takes_of_what_is_free_and_not_of_what_it_could_have(
        self, make: MakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten blocks of which root keeps two: eight could be ours, five are now."""
        engine = (await make()).engine
        status = os.statvfs_result((4096, 4096, 10, 7, 5, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: status)
        facts = await engine.facts()
        assert (facts.disk_bytes, facts.room_on_disk) == (8 * 4096, 5 * 4096)

    async def test_the_images_that_are_built_here_are_told(self, make: MakeEngine) -> None:
        tested = await make()
        assert (await tested.engine.facts()).images == (tested.digest,)


async def test_a_vm_that_did_not_begin_for_want_of_an_answer_is_seen_so(tmp_path: Path) -> None:
    rig = EngineRig(tmp_path)
    manager = rig.manager()
    spec = rig.spec("a")
    manager.create(spec)
    vm = manager.get(spec.id)
    for unavailable in (False, True):
        assert to_view(replace(vm, status=replace(vm.status, unavailable=unavailable))).unavailable is unavailable


async def test_a_stop_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = EngineRig(tmp_path)
    manager = rig.manager()
    engine = PlasmaEngine(
        manager,
        backends=tuple,
        disk_dir=tmp_path,
        version="",
        confinement=lambda: "none",
        network=rig.parts.network,
    )
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
    manager.create(rig.spec("a", "serve"))

    async def hangs(*_: object) -> types.Vm:
        raise HostError("vmm-unkillable", "process 7 is still there after SIGKILL")

    monkeypatch.setattr(manager, "stop", hangs)
    await engine.stop("vm_a", 0)
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    assert unheard == []
    out = capsys.readouterr().out
    assert out.count("engine.not_stopped") == out.count("after SIGKILL") == 1


async def test_an_engine_that_ends_waits_for_the_vm_of_its_probe(tmp_path: Path) -> None:
    """Else the host would be left with it."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def probe() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    tested = await maker(tmp_path, {}, probe)()
    await begun.wait()
    await tested.engine.close(keep_vms=False)
    assert ended.is_set()


def test_long_words_about_a_host_are_told_by_their_digest_and_stay_different() -> None:
    one, other = (to_words({"program": "p", "devices": "x" * 500 + end}) for end in "ab")
    assert one[1] == other[1] == ("program", "p")
    assert one[0] != other[0]
    assert len(one[0][1]) == 64


def test_a_weaker_guard_of_taps_is_a_warning_with_its_reason_and_the_best_is_none() -> None:
    assert warnings.guarding(Guarding("tcx", "")) == ()
    [older] = warnings.guarding(Guarding("clsact", "tcx: Invalid argument"))
    [firewall] = warnings.guarding(Guarding("nft", "tcx: Operation not permitted; clsact: Operation not permitted"))
    assert "clsact" in older
    assert "Invalid argument — Boot Linux 6.6" in older
    assert "nothing is counted: tcx: Operation not permitted; clsact" in firewall


async def test_keys_go_to_the_facts_and_those_of_others_to_the_network(tmp_path: Path) -> None:
    rig = EngineRig(tmp_path)
    manager = rig.manager()
    network = rig.parts.network
    assert isinstance(network, MemoryNetwork)
    network.keys, network.encrypted_by = ("one", "other"), "wireguard-go"
    engine = PlasmaEngine(
        manager,
        backends=tuple,
        disk_dir=tmp_path,
        version="test",
        confinement=lambda: "none",
        network=network,
        underlay="wireguard",
        tunnel_port=7084,
    )
    facts = await engine.facts()
    assert (facts.underlay, facts.tunnel_keys, facts.tunnel_port) == (Underlay.WIREGUARD, ("one", "other"), 7084)
    assert any("wireguard-go" in warning for warning in facts.warnings)
    peer = PeerNode(
        subnet="10.64.16.0/20", address="192.0.2.2", underlay=Underlay.WIREGUARD, keys=("a", "b"), port=7184
    )
    assert await engine.connect((peer,), 41) == ()
    [told] = network.peers
    assert (told.keys, told.port, network.step) == (("a", "b"), 7184, 41)


def test_vms_that_are_too_many_to_know_are_told_with_what_becomes_of_them() -> None:
    assert warnings.unrecognized(0) == ()
    [told] = warnings.unrecognized(3)
    assert "3 VMs of other nodes" in told
    assert "16384" in told


def test_a_tunnel_that_a_program_encrypts_is_told_as_slow() -> None:
    assert warnings.slow_tunnel("") == warnings.slow_tunnel("kernel") == ()
    [slow] = warnings.slow_tunnel("wireguard-go")
    assert "far slower than by the kernel, which has no WireGuard — Boot a kernel" in slow


def test_what_passed_a_vms_interface_is_told_in_the_platforms_words() -> None:
    passed = types.NetworkUsage(1, 60, 2, 120, {"arp": 3})
    assert to_usage(types.VmUsage(network=passed)).network == NetworkUsage(
        transmit_packets=1, transmit_bytes=60, receive_packets=2, receive_bytes=120, dropped={"arp": 3}
    )
    assert to_usage(types.VmUsage()).network is None


async def test_what_passed_is_told_of_all_vms_whose_frames_are_counted(tmp_path: Path) -> None:
    rig = EngineRig(tmp_path)
    manager, network = rig.manager(), rig.parts.network
    assert isinstance(network, MemoryNetwork)
    engine = PlasmaEngine(
        manager, backends=tuple, disk_dir=tmp_path, version="", confinement=lambda: "none", network=network
    )
    for name in ("a", "b"):
        manager.create(rig.spec(name, "serve"))
        manager.start(f"vm_{name}")
        await see(engine, f"vm_{name}", running)
    network.traffic[vm_key("vm_a")] = types.NetworkUsage(1, 60, 2, 120, {"arp": 3})
    assert await engine.traffic() == {"vm_a": to_network_usage(network.traffic[vm_key("vm_a")])}
    await engine.close(keep_vms=False)


async def test_what_bounds_processes_is_known_though_an_adopted_edge_is_never_placed() -> None:
    ours, helpers = socket.socketpair()
    with helpers, closing(HostLink(ours.detach())) as link:
        assert link.confinement in ("cgroup-v1", "cgroup-v2", "rlimits")
