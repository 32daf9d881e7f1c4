"""P12: a hint over the bus on NATS, beside raw nats-py on the same server, with the same TLS, login, stream and headers.

Latency is from one connection to another, one hint at a time; throughput is how many a second reach a listener on another
connection and are confirmed by the stream, with as many under way at a time as raw nats-py is given.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable

import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from bench.measure import Result, paired, percentile
from shellwego.drivers.bus.nats import NatsBus, open_nats
from shellwego.drivers.natslink import close, connect, settle
from tests.contract.nats_server import NatsServer, running_nats

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
LONGEST_S = 300.0
"""Who waits for longer waits for a hint that never comes."""
ONE_BY_ONE, MANY, AT_ONCE = 300, 5000, 256
SUBJECT = "app.app_01j00000000000000000000000"


class Raw:
    """nats-py's own asynchronous publishing into the stream, with an id, and a callback that notes what was heard."""

    def __init__(self, speaker: Client, listener: Client) -> None:
        self.stream, self.listener = speaker.jetstream(), listener
        self.heard = self.published = 0
        self.news = asyncio.Event()
        self.sender = secrets.token_hex(8)

    @property
    def confirmed(self) -> int:
        return self.published - self.stream.publish_async_pending()

    async def begin(self) -> None:
        async def hear(_: Msg) -> None:
            self.heard += 1
            self.news.set()

        await self.listener.subscribe(f"swg.{SUBJECT}", cb=hear)
        await settle(self.listener)

    async def publish(self) -> None:
        self.published += 1
        headers = {"Nats-Msg-Id": f"{self.sender}-{self.published}"}
        await self.stream.publish_async(f"swg.{SUBJECT}", _told_apart(self.published), headers=headers)


class Ours:
    """The same through the port."""

    def __init__(self, speaker: NatsBus, listener: NatsBus) -> None:
        self.speaker, self.listener = speaker, listener
        self.heard = self.published = 0
        self.news = asyncio.Event()

    @property
    def confirmed(self) -> int:
        return self.published - self.speaker.unconfirmed

    async def listen(self, ready: asyncio.Event) -> None:
        async with self.listener.subscribe(SUBJECT) as hints:
            ready.set()
            async for _ in hints:
                self.heard += 1
                self.news.set()

    async def publish(self) -> None:
        self.published += 1
        await self.speaker.publish(SUBJECT, _told_apart(self.published))


Side = Raw | Ours


def _told_apart(number: int) -> bytes:
    """What a hint carries here: a listener that has one waiting hears no equal one besides, and all are counted."""
    return str(number).encode()


async def latency(side: Side) -> float:
    """Microseconds from publish to heard, the median of one round."""
    samples = []
    for _ in range(ONE_BY_ONE):
        wanted, began = side.heard + 1, time.perf_counter()
        await side.publish()
        while side.heard < wanted:
            side.news.clear()
            await side.news.wait()
        samples.append((time.perf_counter() - began) * 1e6)
    return percentile(samples, 0.5)


async def throughput(side: Side) -> float:
    """Hints a second, heard and confirmed."""
    heard, confirmed, began = side.heard, side.confirmed, time.perf_counter()
    for number in range(1, MANY + 1):
        await side.publish()
        while number - min(side.confirmed - confirmed, side.heard - heard) > AT_ONCE:  # noqa: ASYNC110 - as fast as it goes
            await asyncio.sleep(0)
    while min(side.confirmed - confirmed, side.heard - heard) < MANY:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return MANY / (time.perf_counter() - began)


def run() -> list[Result]:
    """Both sides in turn, on one server."""
    with running_nats() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(server))


async def _run(server: NatsServer) -> list[Result]:
    site = server.site()
    buses = [await open_nats(site) for _ in range(2)]
    clients = [await connect(site.urls[0], site.certificate, site.login()) for _ in range(2)]
    raw, ours = Raw(*clients), Ours(*buses)
    await raw.begin()
    ready = asyncio.Event()
    listening = asyncio.ensure_future(ours.listen(ready))
    await ready.wait()
    try:
        async with asyncio.timeout(LONGEST_S):
            slow = await _interleaved(latency, ours, raw)
            fast = await _interleaved(throughput, ours, raw)
    finally:
        listening.cancel()
        for bus in buses:
            await bus.close()
        for client in clients:
            await close(client)
    return _results(slow, fast)


async def _interleaved(measure: Callable[[Side], Awaitable[float]], *sides: Side) -> list[list[float]]:
    """As `measure.interleaved`, for what is awaited; after a round that nobody counts."""
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(-1, ROUNDS):
        order = range(len(sides)) if number % 2 == 0 else range(len(sides) - 1, -1, -1)
        for side in order:
            sample = await measure(sides[side])
            if number >= 0:
                samples[side].append(sample)
    return samples


def _results(slow: list[list[float]], fast: list[list[float]]) -> list[Result]:
    late, many = paired(*slow), paired(*fast)
    told = f"ours {percentile(slow[0], 0.5):.0f} µs, raw {percentile(slow[1], 0.5):.0f} µs; {ROUNDS} rounds"
    rate = f"ours {percentile(fast[0], 0.5):.0f}/s, raw {percentile(fast[1], 0.5):.0f}/s; {ROUNDS} rounds"
    return [
        Result("P12", "latency of a hint, against raw nats-py", late.text("×"), "≤ 1.2×", late.value <= 1.2, (told,)),
        Result("P12", "hints a second, against raw nats-py", many.text("×"), "≥ 0.8×", many.value >= 0.8, (rate,)),
    ]
