"""The server dies at each step of a volume's move, or of a standby's promotion: one volume is left, whole, of one owner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shellwego.core.volumeleases import OVER_S
from tests.agent.mortal_store import MortalStore
from tests.agent.standby_world import AFTER_S, StandbyHosts
from tests.agent.volume_move_world import TEXT, VolumeHosts

AWAY_S = 1.0
"""So long a server that died is away."""
Play = Callable[[Path, int | None], Awaitable[int]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each fourth step; nightly all of them."""
    if "nth" in metafunc.fixturenames:
        nightly = metafunc.config.getoption("--nightly")
        metafunc.parametrize("nth", [1] if nightly else [4])


def _store(hosts: VolumeHosts) -> MortalStore:
    assert isinstance(hosts.world.store, MortalStore)
    return hosts.world.store


async def _come_back(hosts: VolumeHosts) -> None:
    await _store(hosts).died.wait()
    await hosts.world.restart_loops()
    await hosts.clock.sleep(AWAY_S)
    _store(hosts).revive()


async def moved(directory: Path, deadly: int | None) -> int:
    hosts = VolumeHosts(directory, MortalStore)
    await hosts.open("new")
    back = asyncio.create_task(_come_back(hosts))
    await hosts.start_move()
    _store(hosts).arm(deadly)
    await hosts.moved()
    assert hosts.holds(hosts.new) == TEXT
    return await _ended(hosts, back)


async def promoted(directory: Path, deadly: int | None) -> int:
    hosts = StandbyHosts(directory, MortalStore)
    await hosts.open("new")
    back = asyncio.create_task(_come_back(hosts))
    await hosts.protected()
    await hosts.die(hosts.old)
    _store(hosts).arm(deadly)
    await hosts.serves_from(hosts.new, OVER_S + AFTER_S)  # who comes back has to listen to the silence himself
    assert hosts.holds(hosts.new) == TEXT
    assert (hosts.volume.node_id, hosts.volume.epoch, len(hosts.told("volume.promoted"))) == (hosts.new.id, 2, 1)
    return await _ended(hosts, back)


async def _ended(hosts: VolumeHosts, back: asyncio.Task[None]) -> int:
    back.cancel()
    await hosts.close()
    return _store(hosts).steps


@pytest.mark.parametrize("play", [moved, promoted])
async def test_whichever_step_the_server_dies_at_one_volume_comes_of_it_whole(
    play: Play, nth: int, tmp_path: Path
) -> None:
    steps = await play(tmp_path / "undisturbed", None)
    assert steps > 8
    for deadly in range(1, steps + 1, nth):
        assert await play(tmp_path / str(deadly), deadly) >= deadly, "it came that far, and died"
