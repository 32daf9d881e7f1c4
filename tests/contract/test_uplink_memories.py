"""A node downloads the memory that an instance of its own is to go on with, from whichever server has a way to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

import pytest
import uvloop

from shellwego.api.uplink import server, transfers
from shellwego.core.errors import (
    ConflictError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    ShellWeGoError,
    ThrottledError,
    UnavailableError,
)
from shellwego.core.plans import Rate
from shellwego.drivers.uplink.downloads import Downloads
from shellwego.wire.tls import Credentials
from tests.contract.node_port import Port, Rig

T = TypeVar("T")
INSTANCE = "ins_01j00000000000000000000000"
CONTENT = bytes(range(256)) * 4096
BUSY_S = 2.5
"""Longer than a server waits for a reader to see that it has ended."""


class Shelf:
    """A server's end: one memory, in pieces, for one node."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refusal: ShellWeGoError | None = None
        self.breaks_after = len(CONTENT)
        self.stalls = False
        self.let_go = asyncio.Event()

    async def memory(self, node_id: str, instance_id: str) -> AsyncGenerator[bytes]:
        self.asked.append((node_id, instance_id))
        if self.refusal is not None:
            raise self.refusal
        try:
            for at in range(0, self.breaks_after, 64 * 1024):
                yield CONTENT[at : at + 64 * 1024]
            if self.stalls:
                await asyncio.get_running_loop().create_future()
            if self.breaks_after < len(CONTENT):
                raise UnavailableError("stream-closed", "the link to the node was cut")
        finally:
            self.let_go.set()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def downloads(credentials: Credentials, *ports: Port, stall_s: float = 20.0) -> Downloads:
    return Downloads(lambda: [port.url for port in ports], lambda: credentials, stall_s=stall_s, jitter=lambda: 0.0)


async def fetched(source: Downloads, instance_id: str = INSTANCE) -> bytes:
    async with aclosing(source.memory("node_1", instance_id)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_memory_comes_whole_and_for_the_node_whose_key_it_is(rig: Rig, shelf: Shelf) -> None:
    source = downloads(rig.identities.node("node_7"), rig.port(memories=shelf))
    assert await fetched(source) == CONTENT
    assert shelf.asked == [("node_7", INSTANCE)]


@pytest.mark.parametrize("kind", [NotFoundError, ConflictError])
async def test_a_refusal_is_told_in_its_own_words(rig: Rig, shelf: Shelf, kind: type[ShellWeGoError]) -> None:
    shelf.refusal = kind("memory-gone", "it does not sleep any more")
    with pytest.raises(kind) as refused:
        await fetched(downloads(rig.identities.node(), rig.port(memories=shelf)))
    assert (refused.value.code, refused.value.message) == ("memory-gone", "it does not sleep any more")


@pytest.mark.parametrize("breaks_after", [64 * 1024, 512 * 1024])
async def test_one_that_breaks_off_is_not_taken_for_whole_and_not_gone_on_with(
    rig: Rig, shelf: Shelf, breaks_after: int
) -> None:
    shelf.breaks_after = breaks_after
    other = Shelf()
    source = downloads(rig.identities.node(), rig.port(memories=shelf), rig.port(memories=other))
    with pytest.raises(UnavailableError):
        await fetched(source)
    assert len(shelf.asked) + len(other.asked) == 1


async def test_a_server_without_a_way_to_it_is_not_the_last_word(rig: Rig, shelf: Shelf) -> None:
    cut_off = Shelf()
    cut_off.refusal = UnavailableError("node-unreachable", "the node has no link to this server")
    ports = rig.port(memories=cut_off), rig.port(memories=shelf)
    assert await fetched(downloads(rig.identities.node(), *ports)) == CONTENT


async def test_one_is_asked_for_so_often_only_since_each_time_leaves_a_record(
    rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MEMORIES", Rate(per_minute=1, burst=2))
    source = downloads(rig.identities.node(), rig.port(memories=shelf))
    for _ in range(2):
        await fetched(source)
    with pytest.raises(ThrottledError):
        await fetched(source)
    assert len(shelf.asked) == 2


async def test_an_edge_a_stranger_and_a_retired_key_get_nothing(rig: Rig, shelf: Shelf) -> None:
    port, retired = rig.port(memories=shelf), rig.identities.node()
    rig.identities.retire(retired)
    for credentials in (rig.identities.edge(), retired):
        with pytest.raises(ForbiddenError):
            await fetched(downloads(credentials, port))
    assert shelf.asked == []


@pytest.mark.parametrize(
    "name", ["", "ins_1", "../secrets", "ins_01j0000000000000000000000G", "vm_01j00000000000000000000000"]
)
async def test_what_is_no_instance_is_malformed(rig: Rig, shelf: Shelf, name: str) -> None:
    with pytest.raises((MalformedError, NotFoundError)) as caught:
        await fetched(downloads(rig.identities.node(), rig.port(memories=shelf)), name)
    assert caught.value.code in ("uplink-bad-memory", "uplink-method-unknown")
    assert shelf.asked == []


async def test_a_server_that_passes_no_memories_says_so(rig: Rig) -> None:
    with pytest.raises(NotFoundError) as caught:
        await fetched(downloads(rig.identities.node(), rig.port()))
    assert caught.value.code == "uplink-method-unknown"


async def test_a_sender_that_stalls_is_let_go(rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "STALL_S", 0.1)
    shelf.stalls = True
    with pytest.raises(UnavailableError):
        await fetched(downloads(rig.identities.node(), rig.port(memories=shelf)))
    await asyncio.wait_for(shelf.let_go.wait(), 10)


async def test_one_that_never_begins_is_told_as_that(rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "STALL_S", 0.1)
    shelf.stalls, shelf.breaks_after = True, 0
    with pytest.raises(UnavailableError) as refused:
        await fetched(downloads(rig.identities.node(), rig.port(memories=shelf)))
    assert refused.value.code == "transfer-stalled"


async def test_who_hangs_up_is_noticed(rig: Rig, shelf: Shelf) -> None:
    shelf.stalls = True
    async with aclosing(
        downloads(rig.identities.node(), rig.port(memories=shelf)).memory("node_1", INSTANCE)
    ) as chunks:
        await anext(chunks)
    await asyncio.wait_for(shelf.let_go.wait(), 20)


def test_who_reads_more_slowly_than_it_comes_has_it_whole() -> None:
    """By the loop that the platform runs on; the server in one of its own, so that it ends while the reader stands still."""
    serving: Future[tuple[Credentials, str]] = Future()
    read = threading.Event()

    async def serve() -> None:
        rig = Rig()
        port = rig.port(memories=Shelf())
        serving.set_result((rig.identities.node(), port.url))
        await asyncio.to_thread(read.wait)
        await rig.close()

    async def read_slowly() -> bytes:
        credentials, url = serving.result(timeout=30)
        source = Downloads(lambda: [url], lambda: credentials)
        got = b""
        async with aclosing(source.memory("node_1", INSTANCE)) as chunks:
            async for chunk in chunks:
                await asyncio.sleep(0 if got else BUSY_S)
                got += chunk
        return got

    with ThreadPoolExecutor() as pool:
        served = pool.submit(_run, serve())
        try:
            assert _run(read_slowly()) == CONTENT
        finally:
            read.set()
        served.result()


def _run(work: Coroutine[None, None, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def test_where_no_server_is_it_may_be_had_later(rig: Rig) -> None:
    nobody = Downloads(lambda: ["https://127.0.0.1:1"], rig.identities.node)
    with pytest.raises(UnavailableError):
        await fetched(nobody)
