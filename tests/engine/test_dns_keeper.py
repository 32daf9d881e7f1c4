"""The life of a resolver that is a process, as its keeper sees it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.daemons import start_daemon
from plasmavmc.host.memory import MemoryHost
from plasmavmc.host.operations import RESOLVER_CGROUP, Bridge, ProcessId
from plasmavmc.host.processes import is_alive
from plasmavmc.network.dns import keeper as keeper_module
from plasmavmc.network.dns.keeper import ResolverKeeper
from plasmavmc.network.dns.probing import answers
from tests.contract.host_rig import eventually

WITHIN_S = 30.0


class ResolverHost(MemoryHost):
    """Knows at which port its resolver is, and says how processes are confined there."""

    port = 0
    confinement = "cgroup-v2"

    async def resolver_sockets(self) -> tuple[int, int]:
        datagrams, connections = await super().resolver_sockets()
        with socket.socket(fileno=os.dup(datagrams)) as held:
            self.port = held.getsockname()[1]
        return datagrams, connections

    async def cgroup_place(self, name: str, process: ProcessId) -> str:
        await super().cgroup_place(name, process)
        return self.confinement


def a_host() -> ResolverHost:
    host = ResolverHost(HelperConfiguration("swg_keeper", os.getuid(), os.getgid()))
    host.bridge = Bridge("swgkeeperbr", IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20"))
    return host


@asynccontextmanager
async def kept(host: ResolverHost, directory: Path, asked: Callable[[], bool]) -> AsyncIterator[ResolverKeeper]:
    """A keeper that runs; its resolver ends with it."""
    keeper = ResolverKeeper(host, directory / "run", directory / "state", answers=asked, look_every_s=0.1)
    await keeper.open()
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await keeper.close(keep=False)


async def test_a_resolver_whose_answers_are_lost_is_left_alone_while_it_deals_with_questions_and_ended_when_not(
    tmp_path: Path,
) -> None:
    host, looks = a_host(), 0

    def asked_in_vain() -> bool:
        """As where the questions of others leave no room for ours."""
        nonlocal looks
        answers("127.0.0.1", host.port, wait_s=0.2)
        looks += 1
        return False

    async with kept(host, tmp_path, asked_in_vain) as keeper:
        process = keeper.process
        assert process is not None
        await eventually(lambda: looks > 3, "it was looked at", WITHIN_S)
        assert keeper.process == process
        assert is_alive(process)
        os.kill(process.pid, signal.SIGSTOP)
        await eventually(lambda: keeper.process != process and not is_alive(process), "it was replaced", WITHIN_S)


async def test_it_is_placed_in_its_cgroup_also_where_it_is_adopted_and_told_where_it_has_no_limits(
    tmp_path: Path,
) -> None:
    host = a_host()
    async with kept(host, tmp_path, lambda: True) as first:
        process = first.process
        assert process is not None
        assert host.placed == {process: RESOLVER_CGROUP}
        host.placed.clear()
        host.confinement = "rlimits"
        second = ResolverKeeper(host, tmp_path / "run", tmp_path / "state", answers=lambda: True)
        with capture_logs() as said:
            await second.open()
        assert (second.process, host.placed) == (process, {process: RESOLVER_CGROUP})
        assert [each["event"] for each in said if each["log_level"] == "warning"] == ["resolver.unlimited"]
        await second.close(keep=True)


async def test_a_keeper_without_descriptors_ends_nobody_and_starts_a_resolver_when_it_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, out_of_descriptors, refused = a_host(), False, 0

    def asked() -> bool:
        if out_of_descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return True

    start = keeper_module.start_daemon

    def start_daemon(argv: Sequence[str], sockets: Sequence[int]) -> int:
        nonlocal refused
        if out_of_descriptors:
            refused += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return start(argv, sockets)

    monkeypatch.setattr(keeper_module, "start_daemon", start_daemon)
    monkeypatch.setattr(keeper_module, "_RETRY_S", 0.1)
    async with kept(host, tmp_path, asked) as keeper:
        first = keeper.process
        assert first is not None
        with capture_logs() as said:
            out_of_descriptors = True
            await eventually(lambda: any(line["event"] == "resolver.not_asked" for line in said), "it cannot ask")
            assert is_alive(first)
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: refused > 1, "it tries to start another", WITHIN_S)
            out_of_descriptors = False
            await eventually(lambda: keeper.process not in (None, first), "another runs", WITHIN_S)


async def test_one_that_ended_before_it_was_held_and_whose_number_is_a_threads_by_then_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    numbers = [thread.native_id]

    def first_a_threads(argv: Sequence[str], sockets: Sequence[int]) -> int:
        return numbers.pop() or 0 if numbers else start_daemon(argv, sockets)

    monkeypatch.setattr(keeper_module, "start_daemon", first_a_threads)
    try:
        async with kept(a_host(), tmp_path, lambda: True) as keeping:
            await eventually(lambda: keeping.process is not None, "one is there", WITHIN_S)
    finally:
        over.set()
        thread.join()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_a_child(pid: int) -> bool:
    """Also one that has ended and that nobody has reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@pytest.mark.parametrize("fails", ["read_process", "opened", "is_alive"])
async def test_one_that_cannot_be_watched_for_want_of_descriptors_does_not_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    host, started = a_host(), list[int]()
    before = descriptors()

    def noted(argv: Sequence[str], sockets: Sequence[int]) -> int:
        started.append(start_daemon(argv, sockets))
        return started[-1]

    def without_descriptors(_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(keeper_module, "start_daemon", noted)
    keeper = ResolverKeeper(host, tmp_path / "run", tmp_path / "state", answers=lambda: True)
    try:
        with monkeypatch.context() as scarce:
            scarce.setattr(keeper_module, fails, without_descriptors)
            with pytest.raises(OSError, match="Too many open files"):
                await keeper.open()
        assert [is_a_child(pid) for pid in started] == [False]
    finally:
        for pid in filter(is_a_child, started):
            os.kill(pid, signal.SIGKILL)
        await keeper.close(keep=False)
    assert descriptors() == before
