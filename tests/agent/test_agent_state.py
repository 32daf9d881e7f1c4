"""What an agent keeps across restarts."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from shellwego.agent.daemon import HEARTBEAT_S
from shellwego.agent.slots import SLOT_BYTES
from shellwego.agent.state import BLOCK, NodeState
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.peers import PeerNode
from tests.agent.agent_world import World, workload

PEERS = (PeerNode(subnet="10.64.16.0/20", address="192.0.2.2"),)
KNOWN = {"app_1": ("fd12::1",)}
Full = Callable[[], AbstractContextManager[None]]


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """While it is entered, the disk has no room: nothing new can be made, and nothing can grow."""
    really = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return really(path, flags, mode)

    @contextmanager
    def entered() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refusing)
            yield

    return entered


class Stalling:
    """A disk on which each sync waits while `stands` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moves = threading.Event()
        self.moves.set()
        self.reached = threading.Event()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._slowed(getattr(os, name)))

    def _slowed(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def slowed(descriptor: int) -> None:
            self.reached.set()
            assert self.moves.wait(20)
            sync(descriptor)

        return slowed

    def stand_still(self) -> None:
        self.reached.clear()
        self.moves.clear()

    async def is_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 20)


@pytest.fixture
async def disk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stalling]:
    disk = Stalling(monkeypatch)
    yield disk
    disk.moves.set()


def test_a_new_agent_knows_nothing(tmp_path: Path) -> None:
    state = NodeState(tmp_path / "agent")
    assert (state.node_id, state.epoch) == ("", 0)


async def test_id_and_highest_epoch_survive(tmp_path: Path) -> None:
    assert await NodeState(tmp_path).accept("node_1", 4)
    state = NodeState(tmp_path)
    assert (state.node_id, state.epoch) == ("node_1", 4)


async def test_an_older_epoch_is_not_accepted_and_changes_nothing(tmp_path: Path) -> None:
    state = NodeState(tmp_path)
    await state.accept("node_1", 4)
    assert not await state.accept("node_2", 3)
    assert (state.node_id, state.epoch) == ("node_1", 4)
    assert await state.accept("node_1", 4)


async def test_sequences_rise_across_restarts_and_blocks(tmp_path: Path) -> None:
    numbers = []
    for _ in range(3):
        state = NodeState(tmp_path)
        numbers += [await state.next_sequence() for _ in range(BLOCK + 2)]
        await state.close()
    assert numbers == sorted(set(numbers))


async def test_the_files_are_not_written_for_every_number(tmp_path: Path) -> None:
    state = NodeState(tmp_path)
    await state.next_sequence()
    before = [(tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)]
    for _ in range(100):
        await state.next_sequence()
    assert [(tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)] == before


async def test_only_the_owner_may_read_it_and_no_half_written_file_stays(tmp_path: Path) -> None:
    await NodeState(tmp_path).accept("node_1", 1)
    assert files(tmp_path) == {"node.json", "node.slots"}
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files(tmp_path)} == {0o600}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"epoch": "high"}'])
def test_a_file_that_is_not_ours_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.json").write_bytes(content)
    with pytest.raises(InvalidError, match=r"node\.json") as caught:
        NodeState(tmp_path)
    assert caught.value.resolution


class TestVersions:
    """An agent of the version before has `node.json` alone, and knows of no other file."""

    async def test_what_an_older_agent_left_is_taken_over(self, tmp_path: Path) -> None:
        older = {"node_id": "node_1", "epoch": 4, "sequence_limit": 3 * BLOCK, "key_step": 2}
        (tmp_path / "node.json").write_bytes(msgspec.json.encode(older))
        state = NodeState(tmp_path)
        assert (state.node_id, state.epoch, state.key_step) == ("node_1", 4, 2)
        assert await state.next_sequence() == 3 * BLOCK + 1
        assert (tmp_path / "node.slots").stat().st_size == 2 * SLOT_BYTES

    async def test_an_older_agent_that_comes_back_goes_on_where_this_one_was(self, tmp_path: Path) -> None:
        state = NodeState(tmp_path)
        await state.accept("node_1", 4)
        last = [await state.next_sequence() for _ in range(BLOCK + 2)][-1]
        await state.close()
        left = msgspec.json.decode((tmp_path / "node.json").read_bytes())
        assert (left["node_id"], left["epoch"]) == ("node_1", 4)
        assert left["sequence_limit"] >= last

    async def test_what_an_older_agent_did_in_between_counts(self, tmp_path: Path) -> None:
        state = NodeState(tmp_path)
        await state.accept("node_1", 4)
        await state.next_sequence()
        between = {"node_id": "node_9", "epoch": 5, "sequence_limit": 7 * BLOCK}
        (tmp_path / "node.json").write_bytes(msgspec.json.encode(between))
        state = NodeState(tmp_path)
        assert (state.node_id, state.epoch) == ("node_9", 5)
        assert await state.next_sequence() == 7 * BLOCK + 1


class TestFullDisk:
    async def test_an_agent_goes_on_for_as_long_as_the_disk_is_full(self, tmp_path: Path, full: Full) -> None:
        state = NodeState(tmp_path)
        await state.accept("node_1", 4)
        numbers = [await state.next_sequence()]
        with full(), capture_logs() as said:
            numbers += [await state.next_sequence() for _ in range(2 * BLOCK)]
            assert await state.accept("node_1", 5)
            await state.close()
            state = NodeState(tmp_path)
            assert (state.node_id, state.epoch) == ("node_1", 5)
            numbers += [await state.next_sequence() for _ in range(BLOCK)]
            await state.close()
        assert numbers == sorted(set(numbers))
        assert [line["event"] for line in said] == ["agent.state_not_stored"] * 2, "each of them says so once"
        assert files(tmp_path) == {"node.json", "node.slots"}

    async def test_what_is_told_is_known_at_once_and_stored_when_there_is_room(
        self, tmp_path: Path, full: Full
    ) -> None:
        state = NodeState(tmp_path)
        await state.accept("node_1", 4)
        with full():
            await state.keep_peers(PEERS, 3)
            await state.keep_known(KNOWN)
            assert (state.peers, state.key_step, state.known) == (PEERS, 3, KNOWN)
        await state.keep_peers(PEERS, 3)
        state = NodeState(tmp_path)
        assert (state.peers, state.key_step, state.known) == (PEERS, 3, KNOWN)

    async def test_an_agent_that_begins_on_a_full_disk_speaks_as_soon_as_there_is_room(
        self, tmp_path: Path, full: Full
    ) -> None:
        with full():
            state = NodeState(tmp_path)
            with pytest.raises(UnavailableError) as caught:
                await state.next_sequence()
            assert str(tmp_path) in caught.value.message
            with pytest.raises(UnavailableError):
                await state.accept("node_1", 1)
            assert state.node_id == ""
        assert await state.accept("node_1", 1)
        assert await state.next_sequence() == 1


class TestStalledDisk:
    async def test_numbers_are_there_while_the_disk_stands_still(self, tmp_path: Path, disk: Stalling) -> None:
        state = NodeState(tmp_path)
        first = [await state.next_sequence() for _ in range(BLOCK // 2)]
        disk.stand_still()
        async with asyncio.timeout(20):
            more = [await state.next_sequence() for _ in range(BLOCK // 2)]
            assert more[-1] == first[-1] + BLOCK // 2
            await disk.is_reached()
            disk.moves.set()
            assert await state.next_sequence() == more[-1] + 1
        await state.close()

    async def test_no_number_is_given_before_it_is_reserved(self, tmp_path: Path, disk: Stalling) -> None:
        state = NodeState(tmp_path)
        disk.stand_still()
        number = asyncio.create_task(state.next_sequence())
        await disk.is_reached()
        assert not number.done()
        disk.moves.set()
        assert await number == 1
        await state.close()

    async def test_others_go_on_while_something_is_stored(self, tmp_path: Path, disk: Stalling) -> None:
        """And an epoch is acted upon when it is."""
        state = NodeState(tmp_path)
        await state.accept("node_1", 4)
        await state.next_sequence()
        disk.stand_still()
        accepting = asyncio.create_task(state.accept("node_1", 5))
        await disk.is_reached()
        keeping = asyncio.create_task(state.keep_peers(PEERS))
        assert [await state.next_sequence() for _ in range(2)] == [2, 3]
        assert (state.epoch, accepting.done(), keeping.done()) == (4, False, False)
        disk.moves.set()
        assert await accepting
        await keeping
        state = NodeState(tmp_path)
        assert (state.epoch, state.peers) == (5, PEERS)

    async def test_who_is_cancelled_waits_for_the_disk_so_that_nobody_writes_beside_him(
        self, tmp_path: Path, disk: Stalling
    ) -> None:
        state = NodeState(tmp_path)
        disk.stand_still()
        accepting = asyncio.create_task(state.accept("node_1", 4))
        await disk.is_reached()
        accepting.cancel()
        await asyncio.sleep(0)
        following = asyncio.create_task(state.accept("node_1", 5))
        await asyncio.sleep(0.01)
        assert not accepting.done()
        disk.moves.set()
        assert await following
        assert accepting.cancelled()
        assert NodeState(tmp_path).epoch == 5


async def test_a_node_is_heard_while_its_disk_stands_still(tmp_path: Path) -> None:
    """Where a new epoch is to be stored, with all that came with it."""
    moves = asyncio.Event()
    moves.set()

    async def slow(work: Callable[..., None], what: object) -> None:
        await moves.wait()
        work(what)

    world = World(tmp_path)
    world.keep = lambda directory: NodeState(directory, slow)
    world.start()
    await world.clock.until(lambda: bool(world.control.reports))
    moves.clear()
    world.control.epoch += 1
    await world.control.assign("ins_1", workload())
    await world.clock.advance(5 * HEARTBEAT_S)
    told = len(world.control.reports)
    await world.clock.advance(10 * HEARTBEAT_S)
    assert len(world.control.reports) >= told + 9
    assert world.control.reports[-1].epoch == world.control.epoch - 1, "it is not acted upon before it is stored"
    assert await world.vms() == {}
    moves.set()
    await world.clock.until(world.control.is_("healthy"))
    await world.kill()
    await world.engine.close(keep_vms=False)
