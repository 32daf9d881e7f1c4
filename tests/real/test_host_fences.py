"""VMs that end at their moment, whoever stands still or is gone: by a process that ends with the last fence."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from plasmavmc.host.processes import argv_of, is_alive, kill, processes, read_process
from tests.contract.host_parts import ONE, end, start
from tests.contract.host_rig import Namespace, eventually, real_helper, rig_of
from tests.real.test_host_split import Program, namespace, run_root

__all__ = ["namespace", "run_root"]
pytestmark = pytest.mark.real

FENCE_S = 2.5
FENCED = f"""
from plasmavmc.host.client import HelperHost
from plasmavmc.host.operations import Limits
async def main():
    host, names, key = HelperHost(fd), configuration.names, "a" * 12
    await host.uid_take(key)
    until = time.monotonic() + {FENCE_S}
    await host.vm_fence(key, until)
    argv = (configuration.vmms[0], "-name", names.process(key), "-M", "none", "-nodefaults", "-display", "none", "-S")
    spawned = await host.vm_spawn(key, argv, Limits(256 << 20, 1000), {{}})
    tell([os.getpid(), spawned.pid, until])
    await asyncio.sleep(600)
asyncio.run(main())
"""


def wardens(run_root: Path) -> list[int]:
    """Processes that watch the fences below this run directory."""
    place = str(run_root / "fences")
    return [each.id.pid for each in processes() if any(word.startswith(place) for word in argv_of(each.id.pid))]


@pytest.fixture
def program(namespace: Namespace, run_root: Path) -> Iterator[Program]:
    made = Program(namespace, run_root, FENCED)
    yield made
    made.process.kill()
    made.wait()
    rmtree(run_root / "fences")  # else a warden goes on, and kills whom those uids are lent to next
    deadline = time.monotonic() + 5
    while wardens(run_root):
        assert time.monotonic() < deadline, "the warden ends with the last fence"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGSTOP, "agent"), (signal.SIGSTOP, "both"), (signal.SIGKILL, "agent"), (signal.SIGKILL, "helper")],
)
async def test_a_vm_is_gone_in_time_whatever_stands_still(
    program: Program, run_root: Path, number: signal.Signals, whom: str
) -> None:
    agent, pid, until = json.loads(program.line())
    vm = read_process(int(pid))
    assert vm is not None
    for each in {"agent": [agent], "helper": [program.process.pid], "both": [agent, program.process.pid]}[whom]:
        os.kill(int(each), number)
    assert is_alive(vm.id)
    await eventually(lambda: not is_alive(vm.id), "the VM has ended")
    assert until <= time.monotonic() < until + 5


async def test_the_next_helper_moves_what_the_last_one_said(tmp_path: Path) -> None:
    async with real_helper(tmp_path) as helper:
        rig = rig_of(helper)
        spawned = await start(rig)
        first = time.monotonic() + 2
        await helper.host.vm_fence(ONE, first)
        helper.restart()
        await helper.host.vm_fence(ONE, first + 60)
        await eventually(lambda: time.monotonic() > first + 1.2, "the first moment is over")
        assert is_alive(read_process(spawned.pid).id)  # type: ignore[union-attr]
        await end(rig_of(helper), spawned)


async def test_a_warden_that_was_killed_is_replaced_and_the_last_one_ends_with_the_last_fence(tmp_path: Path) -> None:
    async with real_helper(tmp_path) as helper:
        spawned = await start(rig_of(helper))
        await helper.host.vm_fence(ONE, time.monotonic() + 60)
        await helper.host.vm_fence(ONE, time.monotonic() + 60)
        await eventually(
            lambda: len(wardens(tmp_path / "run")) == 1, "there is one"
        )  # it is a copy of the helper at first
        (warden,) = wardens(tmp_path / "run")
        process = read_process(warden)
        assert process is not None
        assert kill(process.id, timeout_s=5)
        await helper.host.vm_fence(ONE, time.monotonic() + 60)
        await eventually(lambda: len(wardens(tmp_path / "run")) == 1, "there is another one")
        await end(rig_of(helper), spawned)
        await helper.host.uid_free(ONE)
        await eventually(lambda: not wardens(tmp_path / "run"), "it has ended")
