"""A guest's state, out of one QEMU and into another: QEMU's migration, to and from a file.

Theory. The guest's memory is a memfd that QEMU shares with whoever has a descriptor of it. With the capability
`x-ignore-shared` the migration leaves such memory out, so what it writes is the state of the devices: 70 KiB in 7 ms,
while the vCPUs stand still from its end on (`postmigrate`) and the memory with them. Memory that is not shared (a
copy's, which begins with another's) travels in the stream, several times slower.

Traps (QEMU 7.2):
- Do not `stop` first: that the guest was stopped is part of its state. What is loaded under `-S` waits for `cont` anyway.
- Both sides need the same capability, or the stream is misread. Memory that was left out must not be sent later.
- A migration that reads all of a memfd fills its holes: 105 MiB became 256. So the stream is for private memory only.
- `exec:` starts a shell, and the sandbox kills QEMU for it: the file is passed by `getfd` (SCM_RIGHTS) and named `fd:`.
- The bandwidth is limited to 128 MiB/s unless told otherwise.
- An incoming QEMU that does not like a stream ends with code 1 and words on stderr.

Source: docs/devel/migration.rst, qapi/migration.json.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from plasmavmc.deadlines import within
from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.hypervisor.qemu.qmp import QmpSession

MIGRATION_DEADLINE_S = 120.0
_LOOK_S = 0.002
_NAME = "state"
_UNLIMITED = 1 << 40
_ON_ITS_WAY = frozenset({"setup", "active", "device", "pre-switchover", "cancelling"})


async def save(monitor: QmpSession, state: int, *, leave_memory: bool) -> None:
    """Write the state to the file and leave the vCPUs standing still.

    Raises:
        HostError: `state-not-saved`, with what QEMU said.
        UnavailableError: the VMM does not answer.
    """
    with _reopened(state, os.O_WRONLY) as ours:
        await _prepare(monitor, ours, leave_memory=leave_memory)
    await monitor.execute("migrate", {"uri": f"fd:{_NAME}"})

    async def is_over() -> bool:
        return (await _status(monitor)).get("status") not in _ON_ITS_WAY

    await _until(is_over, "state-not-saved")
    now = await _status(monitor)
    if now.get("status") != "completed":
        raise HostError("state-not-saved", "QEMU could not write the guest's state", details=_words(now))


async def go_on(monitor: QmpSession) -> None:
    """Let the vCPUs run, whatever came of a `save`.

    Raises:
        HostError, UnavailableError: the VMM refuses, or does not answer.
    """
    async with within(MIGRATION_DEADLINE_S):
        while (await _status(monitor)).get("status") in _ON_ITS_WAY:
            with suppress(HostError):
                await monitor.execute("migrate_cancel")
            await asyncio.sleep(_LOOK_S)
    if await run_state(monitor) != "running":
        await monitor.execute("cont")


async def load(monitor: QmpSession, state: int, *, leave_memory: bool) -> None:
    """Read a state into a QEMU that waits for one; the vCPUs do not run yet.

    Raises:
        HostError: `state-refused`.
        UnavailableError: the VMM ended, or does not answer: its own words say why.
    """
    with _reopened(state, os.O_RDONLY) as ours:
        await _prepare(monitor, ours, leave_memory=leave_memory)
    await monitor.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})

    async def is_over() -> bool:
        return await run_state(monitor) != "inmigrate"

    await _until(is_over, "state-refused")
    if (now := await run_state(monitor)) != "paused":
        raise HostError("state-refused", "QEMU did not take the guest's state", details=now)


async def run_state(monitor: QmpSession, deadline_s: float = 5.0) -> str:
    """QEMU's word for what the vCPUs do: `running`, `paused`, `prelaunch`, `postmigrate`, …"""
    answer = await monitor.execute("query-status", deadline_s=deadline_s)
    return str(answer.get("status")) if isinstance(answer, dict) else ""


@contextmanager
def _reopened(state: int, flags: int) -> Iterator[int]:
    """The same file from its start: several may read it at once, and a descriptor that is passed shares its position."""
    descriptor = os.open(f"/proc/self/fd/{state}", flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _prepare(monitor: QmpSession, state: int, *, leave_memory: bool) -> None:
    capability = {"capability": "x-ignore-shared", "state": leave_memory}
    await monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
    with suppress(PlasmaError):
        await monitor.execute("closefd", {"fdname": _NAME})  # of an attempt that was given up
    await monitor.execute("getfd", {"fdname": _NAME}, descriptor=state)


async def _until(is_over: Callable[[], Awaitable[bool]], code: str) -> None:
    try:
        async with within(MIGRATION_DEADLINE_S):
            while True:
                if await is_over():
                    return
                await asyncio.sleep(_LOOK_S)
    except TimeoutError as error:
        raise HostError(code, f"the guest's state did not pass within {MIGRATION_DEADLINE_S:g} s") from error


async def _status(monitor: QmpSession) -> dict[str, object]:
    answer = await monitor.execute("query-migrate")
    return answer if isinstance(answer, dict) else {}


def _words(answer: dict[str, object]) -> str:
    return str(answer.get("error-desc", answer.get("status", "")))[:500]
