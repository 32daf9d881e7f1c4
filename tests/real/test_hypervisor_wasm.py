"""The hypervisor contract on real WebAssembly workers, and what only those can show."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.errors import GuestError
from plasmavmc.guest.api import GuestConfig, GuestExited, GuestFailed, GuestHello, GuestOutput
from plasmavmc.types import MIB, ExecSpec, LogStream, Scope, VmHandle, VmResources
from tests.contract import wasm_modules as modules
from tests.contract import wasm_services as services
from tests.contract.host_rig import UIDS
from tests.contract.hypervisor_contract import CHECKS, Check, a_spec, booted, ended, gone, heard
from tests.contract.wasm_rig import WasmRig, wasm_rig

pytestmark = pytest.mark.real
SMALL = replace(a_spec(), resources=VmResources(memory_bytes=32 * MIB))
OURS, THEIRS = Scope("org_a", "prj_a"), Scope("org_b", "prj_b")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[WasmRig]:
    async with wasm_rig(tmp_path) as made:
        yield made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_wasm_backend_keeps_the_contract(rig: WasmRig, check: Check) -> None:
    await check(rig)


def uid_of(handle: VmHandle) -> int:
    return Path(f"/proc/{handle.pid}").stat().st_uid


def confinement_of(handle: VmHandle, run_root: Path) -> list[str]:
    """What is wrong with the confinement of a VM's process."""
    process = Path(f"/proc/{handle.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    links = [line.split(":")[0].strip() for line in (process / "net/dev").read_text().splitlines()[2:]]
    own_directory = f"none {run_root} tmpfs rw,nosuid,nodev,noexec"
    held = {
        "a uid of the range, and no other": set(status["Uid"].split()) == {str(uid_of(handle))}
        and uid_of(handle) in UIDS,
        "no capabilities": int(status["CapEff"], 16) == 0,
        "no new privileges": status["NoNewPrivs"].strip() == "1",
        "a network without interfaces": links == ["lo"],
        "an empty environment": not (process / "environ").read_bytes(),
        "a directory of its own": own_directory in (process / "mounts").read_text(),
    }
    return [what for what, holds in held.items() if not holds]


async def test_a_worker_is_its_vms_alone_and_reaches_neither_network_nor_files(rig: WasmRig) -> None:
    """What holds where a module broke out of its sandbox: uid, privileges, namespaces, one writable directory."""
    first, channel = await booted(rig, a_spec("first"), "serve")
    second, other = await booted(rig, a_spec("second"), "serve")
    assert [confinement_of(handle, rig.helper.configuration.run_root) for handle in (first, second)] == [[], []]
    assert len({uid_of(handle) for handle in (first, second)}) == 2
    await gone(rig, first, channel)
    await gone(rig, second, other)


async def test_a_waiting_worker_takes_a_vm_and_another_takes_its_place(tmp_path: Path) -> None:
    async with wasm_rig(tmp_path, spares=1) as rig:
        handle, channel = await booted(rig, a_spec("first"), "serve")
        await rig.backend.workers.settled()
        waiting = rig.helper.cgroups()
        began = time.monotonic()
        second, other = await booted(rig, a_spec("second"), "serve")
        assert time.monotonic() - began < 0.25
        assert second.backend_state["key"] != handle.backend_state["key"]
        assert rig.helper.names.vm_cgroup(uid_of(second)) in waiting
        await rig.backend.workers.settled()
        await gone(rig, handle, channel)
        await gone(rig, second, other)


async def test_a_worker_that_died_waiting_costs_no_vm(tmp_path: Path) -> None:
    async with wasm_rig(tmp_path, spares=1) as rig:
        handle, channel = await booted(rig, a_spec("first"), "serve")
        await rig.backend.workers.settled()
        [spare] = rig.backend.workers._waiting
        os.kill(spare.process.id.pid, signal.SIGKILL)
        await spare.process.wait()
        second, other = await booted(rig, a_spec("second"), "exit", "0")
        await gone(rig, handle, channel)
        await gone(rig, second, other)


async def test_workers_that_wait_end_with_their_platform_and_vms_go_on(tmp_path: Path) -> None:
    async with wasm_rig(tmp_path, spares=1) as rig:
        handle, channel = await booted(rig, a_spec("first"), "serve")
        await rig.backend.workers.settled()
        [spare] = rig.backend.workers._waiting
        pidfd = os.pidfd_open(spare.process.id.pid)
        await channel.aclose()
        rig.backend.close()
        assert await asyncio.to_thread(select.select, [pidfd], [], [], 5.0) != ([], [], [])
        os.close(pidfd)
        rig.restart()
        adopted = await rig.backend.recover(handle)
        assert adopted is not None
        await gone(rig, handle, adopted)


def codes_of(rig: WasmRig) -> list[Path]:
    return list((rig.directory / "code").glob("*/*"))


async def test_code_compiled_for_a_tenant_is_used_again_by_it_alone(rig: WasmRig) -> None:
    for name, scope in (("one", OURS), ("two", OURS), ("three", THEIRS)):
        handle, channel = await booted(rig, replace(a_spec(name), scope=scope), "exit", "0")
        await gone(rig, handle, channel)
        await asyncio.sleep(0)
    tenants = [code.parent.name for code in codes_of(rig)]
    assert len(tenants) == len(set(tenants)) == 2


async def test_code_of_another_version_or_cut_short_is_compiled_anew(rig: WasmRig) -> None:
    handle, channel = await booted(rig, a_spec("one"), "exit", "0")
    await gone(rig, handle, channel)
    [code] = codes_of(rig)
    os.truncate(code, 1000)
    handle, channel = await booted(rig, a_spec("two"), "exit", "4")
    exited = await heard(channel, GuestExited)
    assert isinstance(exited, GuestExited)
    assert exited.exit_code == 4
    await gone(rig, handle, channel)


async def test_a_command_in_a_module_is_refused_and_the_module_goes_on(rig: WasmRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    with pytest.raises(GuestError) as refused:
        await channel.exec(ExecSpec(("/bin/sh",)))
    assert refused.value.code == "exec-unsupported"
    assert rig.lives(handle)
    await gone(rig, handle, channel)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        (b"#!/bin/sh", "not-executable"),
        (modules.LIBRARY, "not-executable"),
        (modules.UNKNOWN_IMPORT, "not-executable"),
        (modules.GREEDY, "memory-limit"),
    ],
    ids=["no module", "no command", "unknown import", "too large"],
)
async def test_a_module_that_cannot_run_is_told_by_code(rig: WasmRig, module: bytes, code: str) -> None:
    rig.module = module
    handle = await rig.backend.create_vm(SMALL, rig.plan(SMALL))
    channel = await rig.backend.start_vm(handle)
    await heard(channel, GuestHello)
    await channel.configure(GuestConfig(argv=("/app",)))
    failed = await heard(channel, GuestFailed)
    assert isinstance(failed, GuestFailed)
    assert failed.code == code
    await ended(rig, handle)
    await gone(rig, handle, channel)


async def test_a_module_that_takes_memory_without_end_is_told_as_out_of_memory(rig: WasmRig) -> None:
    rig.module = modules.GROWS
    handle, channel = await booted(rig, SMALL)
    exited = await heard(channel, GuestExited)
    assert exited == GuestExited(134, oom=True)
    await gone(rig, handle, channel)


async def test_a_trap_is_in_the_log_with_its_stack(rig: WasmRig) -> None:
    rig.module = modules.TRAP
    handle, channel = await booted(rig, SMALL)
    output = await heard(channel, GuestOutput)
    assert isinstance(output, GuestOutput)
    assert output.stream is LogStream.STDERR
    assert b"wasm backtrace" in output.data
    assert await heard(channel, GuestExited) == GuestExited(134)
    await gone(rig, handle, channel)


async def test_output_that_nobody_takes_is_dropped_and_counted_and_costs_bounded_memory(rig: WasmRig) -> None:
    rig.module = modules.FLOOD
    handle, channel = await booted(rig, SMALL)
    first = await heard(channel, GuestOutput)
    assert isinstance(first, GuestOutput)
    await channel.aclose()
    await asyncio.sleep(1.0)  # of a flood, with nobody there
    assert (await rig.backend.usage(handle)).memory_rss_bytes < 160 * MIB
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    later = await heard(adopted, GuestOutput)
    assert isinstance(later, GuestOutput)
    assert later.offset > first.offset + MIB
    await gone(rig, handle, adopted)


async def test_a_module_that_is_stopped_ends_as_by_sigterm_at_once(rig: WasmRig) -> None:
    handle, channel = await booted(rig, a_spec(), "serve")
    began = time.monotonic()
    await channel.stop("SIGTERM", 10.0)
    assert await heard(channel, GuestExited) == GuestExited(143)
    assert (await ended(rig, handle)).code == 0
    assert time.monotonic() - began < 2.0
    await gone(rig, handle, channel)


async def asked(handle: VmHandle) -> bytes:
    """What a VM answers at its socket."""
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_unix_connection(handle.endpoint.removeprefix("unix:"))
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
    return answer


async def test_a_module_that_serves_answers_from_its_cage_over_a_restart_and_until_it_is_stopped(rig: WasmRig) -> None:
    rig.module, rig.service_port = services.VARIABLES, 8080
    handle, channel = await booted(rig, SMALL)
    assert confinement_of(handle, rig.helper.configuration.run_root) == []
    assert b"PATH_INFO=/\0" in await asked(handle)
    await channel.aclose()
    rig.restart()
    adopted = await rig.backend.recover(handle)
    assert adopted is not None
    assert b"PATH_INFO=/\0" in await asked(handle)
    await adopted.stop("SIGTERM", 10.0)
    assert await heard(adopted, GuestExited) == GuestExited(0)
    await ended(rig, handle)
    await gone(rig, handle, adopted)
    assert not list(rig.directory.glob("*/http.sock"))


async def test_a_request_that_takes_all_memory_fails_alone(rig: WasmRig) -> None:
    rig.module, rig.service_port = modules.GROWS, 8080
    handle, channel = await booted(rig, replace(SMALL, resources=VmResources(memory_bytes=256 * MIB)))
    answers = await asyncio.gather(*(asked(handle) for _ in range(16)))
    assert {answer.split(b" ", 2)[1] for answer in answers} == {b"502"}
    assert rig.lives(handle)
    await gone(rig, handle, channel)


async def test_a_busy_module_gets_no_more_of_the_cpu_than_its_vm(rig: WasmRig) -> None:
    """Needs cgroups, which every exercised host has."""
    spec = replace(a_spec(), resources=VmResources(cpu_milli=100))
    handle, channel = await booted(rig, spec, "serve")
    before = (await rig.backend.usage(handle)).cpu_seconds
    await asyncio.sleep(2.0)  # of a busy loop
    used = (await rig.backend.usage(handle)).cpu_seconds - before
    assert used < 0.6
    await gone(rig, handle, channel)
