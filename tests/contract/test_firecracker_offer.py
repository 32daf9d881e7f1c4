"""Fake tier: when the Firecracker backend is offered, and what is told where it is not."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.backends import Acceleration, BackendStatus, Readiness
from plasmavmc.errors import HostError
from plasmavmc.host.helper.checks import refusal
from plasmavmc.hypervisor.firecracker import offer as offer_module
from plasmavmc.hypervisor.firecracker.backend import NAME
from plasmavmc.hypervisor.firecracker.offer import FirecrackerSite, announce_firecracker, settle_firecracker
from plasmavmc.hypervisor.registry import HypervisorRegistry
from tests.contract.hypervisor_contract import a_spec
from tests.contract.test_hypervisor_firecracker import FirecrackerRig
from tests.engine.guest_loopback import build


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(build("loopback", tmp_path_factory.mktemp("init")))


@pytest.fixture
def rig(init: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FirecrackerRig]:
    """A host whose programs and device are in order."""
    monkeypatch.setattr(offer_module, "check_program", lambda _path: None)
    monkeypatch.setattr(offer_module, "KVM_DEVICE", Path("/dev/null"))
    with tempfile.TemporaryDirectory(prefix="swgfc-") as directory:
        made = FirecrackerRig(Path(directory), init, Path("/none"))
        yield made
        made.close()


def site_of(rig: FirecrackerRig) -> FirecrackerSite:
    place = rig.directory
    return FirecrackerSite(
        place / "firecracker", place / "jailer", place / "kernel", place / "initrd", place, place / "cache"
    )


async def settled(rig: FirecrackerRig) -> tuple[HypervisorRegistry, BackendStatus]:
    registry = HypervisorRegistry()
    backend = announce_firecracker(registry, rig.as_host(), rig.host, site_of(rig))
    assert registry.statuses()[0].readiness is Readiness.PROBING
    await settle_firecracker(registry, backend, site_of(rig))
    backend.close()
    [status] = registry.statuses()
    return registry, status


async def test_a_host_on_which_a_guest_boots_offers_it_and_nothing_of_the_probe_is_left(rig: FirecrackerRig) -> None:
    before = rig.traces()
    registry, status = await settled(rig)
    assert status.readiness is Readiness.READY
    assert registry.select(a_spec()).capabilities.name == NAME
    assert rig.traces() == before


async def test_a_guest_that_does_not_come_up_makes_it_unavailable_with_the_reason(
    rig: FirecrackerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offer_module, "DEADLINES_S", {Acceleration.KVM: 0.8})
    before = rig.traces()
    rig.host.behaviour["guest"] = []
    registry, status = await settled(rig)
    assert (status.readiness, "hangs" in status.reason) == (Readiness.UNAVAILABLE, True)
    assert rig.traces() == before
    with pytest.raises(HostError):
        registry.select(a_spec())


async def test_a_result_is_remembered(rig: FirecrackerRig) -> None:
    await settled(rig)
    rig.host.behaviour["guest"] = []
    _, status = await settled(rig)
    assert status.readiness is Readiness.READY


async def test_programs_that_others_could_have_changed_are_not_even_tried(
    rig: FirecrackerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise refusal("a VMM", f"others than root can write {path}")

    monkeypatch.setattr(offer_module, "check_program", refuse)
    _, status = await settled(rig)
    assert status.readiness is Readiness.UNAVAILABLE
    assert "others than root" in status.reason


async def test_a_host_without_kvm_says_so(rig: FirecrackerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer_module, "KVM_DEVICE", rig.directory / "none")
    _, status = await settled(rig)
    assert (status.readiness, "does not exist" in status.reason) == (Readiness.UNAVAILABLE, True)
