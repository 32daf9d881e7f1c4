"""Names that nobody answers for keep nothing waiting but who asked for them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NoReturn

import pytest
import uvloop

from plasmavmc.host import lookups
from plasmavmc.host.lookups import lookup
from plasmavmc.host.threads import DaemonThreads, in_thread

_SLOW = 100
"""More lookups than asyncio or uvloop have threads."""


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The system's resolver gets no answer for names in `slow.example`, until this is set, or 20 s have gone by."""
    answered, system = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *args: int, **kwargs: int) -> object:
        if host.endswith(".slow.example"):
            answered.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return system(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield answered
    answered.set()


async def _ask_for_slow_names() -> None:
    """As one does who gives up at once: lookups go on."""
    asked = [asyncio.create_task(lookup(f"{number}.slow.example", 443)) for number in range(_SLOW)]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _look_and_work() -> None:
    await _ask_for_slow_names()
    async with asyncio.timeout(5):
        assert "127.0.0.1" in await lookup("localhost", 443)
        assert await in_thread(lambda: "done") == "done"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_names_that_nobody_answers_for_keep_no_other_name_waiting_and_no_work(
    silence: threading.Event, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_look_and_work())
    assert not silence.is_set(), "the loop has ended without them"


def test_a_name_that_was_waited_for_is_told(silence: threading.Event) -> None:
    async def ask() -> None:
        asked = asyncio.create_task(lookup("one.slow.example", 443))
        await asyncio.sleep(0)
        silence.set()
        with pytest.raises(OSError, match="no answer"):
            await asked

    asyncio.run(ask())


def _refuses(_: threading.Thread) -> NoReturn:
    """As where a limit of processes is reached."""
    raise RuntimeError("can't start new thread")


def test_a_name_is_not_waited_for_where_no_thread_can_look_it_up_and_is_told_where_one_can_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask() -> None:
        monkeypatch.setattr(lookups, "_LOOKUPS", DaemonThreads(2, "names"))
        async with asyncio.timeout(5):
            with monkeypatch.context() as scarce:
                scarce.setattr(threading.Thread, "start", _refuses)
                for _ in range(3):
                    with pytest.raises(OSError, match="can't start new thread"):
                        await lookup("localhost", 443)
            assert "127.0.0.1" in await lookup("localhost", 443)

    asyncio.run(ask())


def test_work_waits_for_a_thread_that_there_is_where_no_other_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, goes_on = DaemonThreads(2, "few"), threading.Event()
    first = threads.submit(goes_on.wait, 20)
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", _refuses)
        second = threads.submit(lambda: "second")
    assert not second.done()
    third = threads.submit(lambda: "third")
    assert (second.result(5), third.result(5)) == ("second", "third")
    goes_on.set()
    assert first.result(5)
