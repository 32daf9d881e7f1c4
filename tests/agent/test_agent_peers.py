"""The ways to other nodes, on an agent."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from shellwego.agent.peers import TELL_AGAIN_S, Peers
from shellwego.agent.state import NodeState
from shellwego.core.peers import PeerNode
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine

ONE = PeerNode(subnet="10.64.16.0/20", address="192.0.2.2")
OTHER = PeerNode(subnet="10.64.32.0/20", address="192.0.2.3")


class Told(MemoryEngine):
    """Notes what it was told; some peers cannot be reached."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.told: list[tuple[PeerNode, ...]] = []
        self.steps: list[int] = []
        self.lacking: tuple[PeerNode, ...] = ()

    async def connect(self, peers: object, key_step: int = 0) -> tuple[PeerNode, ...]:
        assert isinstance(peers, tuple)
        self.told.append(peers)
        self.steps.append(key_step)
        return self.lacking


async def test_the_engine_is_told_what_is_new_and_now_and_then_all_the_same(tmp_path: Path) -> None:
    clock = VirtualClock()
    engine = Told(clock)
    peers = Peers(engine, NodeState(tmp_path), clock)
    await peers.follow([ONE])
    await peers.follow([ONE])
    await peers.follow([ONE, OTHER])
    assert engine.told == [(ONE,), (ONE, OTHER)]
    await clock.advance(TELL_AGAIN_S)
    await peers.follow([ONE, OTHER])
    assert engine.told[2:] == [(ONE, OTHER)]


async def test_the_engine_is_told_at_once_how_far_the_exchange_of_keys_is_and_after_a_restart(tmp_path: Path) -> None:
    clock = VirtualClock()
    engine = Told(clock)
    peers = Peers(engine, NodeState(tmp_path), clock)
    for step in (41, 41, 42):
        await peers.follow([ONE], step)
    await Peers(engine, NodeState(tmp_path), clock).restore()
    assert engine.steps == [41, 42, 42]


async def test_they_are_there_before_anything_runs_after_a_restart(tmp_path: Path) -> None:
    clock = VirtualClock()
    await Peers(Told(clock), NodeState(tmp_path), clock).follow([ONE])
    engine = Told(clock)
    await Peers(engine, NodeState(tmp_path), clock).restore()
    assert engine.told == [(ONE,)]


async def test_one_that_cannot_be_reached_is_told_once_and_when_it_can(tmp_path: Path) -> None:
    clock = VirtualClock()
    engine = Told(clock)
    peers = Peers(engine, NodeState(tmp_path), clock)
    engine.lacking = (OTHER,)
    with capture_logs() as lines:
        for _ in range(3):
            await peers.follow([ONE, OTHER])
            await clock.advance(TELL_AGAIN_S)
        engine.lacking = ()
        await peers.follow([ONE, OTHER])
    assert [(line["event"], line["peers"]) for line in lines] == [
        ("agent.peers_unreached", ["10.64.32.0/20 via 192.0.2.3"]),
        ("agent.peers_reached", []),
    ]
