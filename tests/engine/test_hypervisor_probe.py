"""Which acceleration is believed, why the others are not, and for how long that is remembered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.backends import Acceleration
from plasmavmc.errors import GuestError, HostError
from plasmavmc.hypervisor.probe import ProbeCache, ProbeFacts, gather_facts, probe

FACTS = ProbeFacts("/qemu 1", ("/vmlinux 2", "/initrd 3"), "a cpu", "6.1", "boot-1", "/dev/kvm 0")
SHORT = {Acceleration.KVM: 0.02, Acceleration.TCG: 0.5}


class Host:
    """Boots as it is told to: an error is raised, None hangs."""

    def __init__(self, *, kvm: Exception | str | None = "boots", tcg: Exception | str | None = "boots") -> None:
        self._behaviour = {Acceleration.KVM: kvm, Acceleration.TCG: tcg}
        self.tried: list[Acceleration] = []
        self.removed: list[Acceleration] = []

    async def boot(self, acceleration: Acceleration) -> None:
        self.tried.append(acceleration)
        behaviour = self._behaviour[acceleration]
        try:
            if behaviour is None:
                await asyncio.Event().wait()
            if isinstance(behaviour, Exception):
                raise behaviour
        finally:
            self.removed.append(acceleration)


@pytest.fixture
def cache(tmp_path: Path) -> ProbeCache:
    return ProbeCache(tmp_path / "cache")


async def test_a_host_whose_kvm_boots_is_not_asked_for_more(cache: ProbeCache) -> None:
    host = Host()
    result = await probe(host.boot, FACTS, cache, SHORT)
    assert result.chosen is not None
    assert result.chosen.acceleration is Acceleration.KVM
    assert result.reason == ""
    assert host.tried == [Acceleration.KVM]


async def test_a_kvm_that_hangs_is_given_up_and_emulation_is_told_to_be_second_best(cache: ProbeCache) -> None:
    host = Host(kvm=None)
    result = await probe(host.boot, FACTS, cache, SHORT)
    assert result.chosen is not None
    assert result.chosen.acceleration is Acceleration.TCG
    assert result.reason == "kvm: hangs: no heartbeat within 0.02 s"
    assert host.removed == [Acceleration.KVM, Acceleration.TCG]


async def test_a_kvm_that_fails_tells_qemu_s_words_in_one_line(cache: ProbeCache) -> None:
    host = Host(kvm=HostError("vmm-refused", "QEMU ended with code -6", details="failed to set MSR\nassertion failed"))
    result = await probe(host.boot, FACTS, cache, SHORT)
    assert result.reason == "kvm: QEMU ended with code -6 — failed to set MSR assertion failed"


async def test_a_result_is_remembered_for_the_same_facts_only(cache: ProbeCache) -> None:
    first = await probe(Host(kvm=None).boot, FACTS, cache, SHORT)
    again = Host()
    assert await probe(again.boot, FACTS, cache, SHORT) == first
    assert again.tried == []
    for changed in (
        replace(FACTS, program="/qemu 2"),
        replace(FACTS, guest=("/vmlinux 3", "/initrd 3")),
        replace(FACTS, cpu="another"),
        replace(FACTS, host_kernel="6.12"),
        replace(FACTS, boot_id="boot-2"),
        replace(FACTS, kvm_device="/dev/kvm 1"),
    ):
        fresh = Host()
        await probe(fresh.boot, changed, cache, SHORT)
        assert fresh.tried == [Acceleration.KVM]


async def test_a_host_on_which_nothing_boots_is_asked_again_at_the_next_start(cache: ProbeCache) -> None:
    broken = Host(kvm=None, tcg=GuestError("boot-failed", "the VMM ended while the guest was starting"))
    result = await probe(broken.boot, FACTS, cache, SHORT)
    assert result.chosen is None
    assert result.reason == ("kvm: hangs: no heartbeat within 0.02 s; tcg: the VMM ended while the guest was starting")
    repaired = Host()
    assert (await probe(repaired.boot, FACTS, cache, SHORT)).chosen is not None


async def test_a_damaged_cache_is_as_good_as_none(cache: ProbeCache, tmp_path: Path) -> None:
    await probe(Host().boot, FACTS, cache, SHORT)
    [path] = (tmp_path / "cache").iterdir()
    path.write_text('{"trials": [{"acceleration": "kvm"')
    fresh = Host()
    assert (await probe(fresh.boot, FACTS, cache, SHORT)).chosen is not None
    assert fresh.tried == [Acceleration.KVM]


async def test_a_cache_that_cannot_be_written_costs_a_probe_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ProbeCache(tmp_path / "file" / "cache")
    assert (await probe(Host().boot, FACTS, cache, SHORT)).chosen is not None
    assert cache.load(FACTS) is None


def test_the_facts_change_with_the_files_that_a_guest_boots_from(tmp_path: Path) -> None:
    program, kernel = tmp_path / "qemu", tmp_path / "vmlinux"
    program.write_text("a")
    kernel.write_text("b")
    before = gather_facts(program, kernel)
    assert gather_facts(program, kernel) == before
    kernel.write_text("another")
    assert gather_facts(program, kernel).digest() != before.digest()
    kernel.unlink()
    assert "No such file" in gather_facts(program, kernel).guest[0]
