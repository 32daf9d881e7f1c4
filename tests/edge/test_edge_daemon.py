"""What an edge says of its control plane."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NoReturn

from structlog.testing import capture_logs

from shellwego.core.errors import ForbiddenError
from shellwego.core.routing import EdgeReport
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.edge.daemon import Edge
from shellwego.edge.settings import EdgeSettings


class ShutOut:
    """A control plane that knows the edge no more."""

    asked = 0

    async def register_edge(self, name: str) -> NoReturn:
        self.asked += 1
        raise ForbiddenError("node-key-refused", "the key is retired", resolution="Join again.")

    async def routes(self, edge_id: str, known_version: int) -> NoReturn:
        raise AssertionError("it is not registered")

    async def report_edge(self, report: EdgeReport) -> NoReturn:
        raise AssertionError("it is not registered")


async def no_host(*_: object) -> NoReturn:
    raise AssertionError("nothing is started")


async def test_one_that_is_shut_out_asks_on_and_says_so_once(tmp_path: Path) -> None:
    clock, uplink = VirtualClock(), ShutOut()
    settings = EdgeSettings(name="front", run_dir=tmp_path, state_dir=tmp_path)
    edge = Edge(uplink, MemoryBus(), clock, settings, listen=no_host, place=no_host)
    with capture_logs() as lines:
        talking = asyncio.ensure_future(edge._talk())
        await clock.advance(10)
        talking.cancel()
    assert uplink.asked > 5
    (line,) = [each for each in lines if each["event"] == "edge.uplink_failed"]
    assert (line["reason"], line["resolution"]) == ("the key is retired", "Join again.")
