"""A node with many VMs that are not well, and write without end: it is heard all the same."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

from shellwego.api.ratelimit import RateLimiter
from shellwego.api.uplink.callers import BYTES_RATE
from shellwego.core.assignments import Assignment, NodeReport
from shellwego.core.errors import ThrottledError
from shellwego.core.liveness import DEFAULT_TERMS
from shellwego.core.plans import Rate
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.engine.memory import MemoryEngine
from shellwego.ports.engine import LogRecord
from shellwego.wire.codec import encode
from tests.agent.agent_world import FakeControl, World, workload


class MeteredControl(FakeControl):
    """Takes so many bytes of reports and no more, as a server does; notes when it heard anything."""

    def __init__(self, bus: MemoryBus, clock: VirtualClock, rate: Rate) -> None:
        super().__init__(bus)
        self.rate = rate
        self.heard: list[float] = []
        self._clock = clock
        self._limiter = RateLimiter()

    async def report(self, report: NodeReport) -> int:
        now = self._clock.monotonic()
        verdict = self._limiter.count("node", self.rate, now, len(encode(report)))
        if not verdict.allowed:
            wait = verdict.retry_after_s
            raise ThrottledError("uplink-too-often", "too many bytes", resolution="Wait a moment.", retry_after_s=wait)
        self.heard.append(now)
        return await super().report(report)

    def longest_silence(self) -> float:
        """Up to now."""
        return max(after - before for before, after in pairwise([*self.heard, self._clock.monotonic()]))


class TalkativeEngine(MemoryEngine):
    """Whenever it is looked, each VM has written other lines, as long and as wide as can be."""

    _number = itertools.count()

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogRecord]:
        for _ in range(tail):
            text = f"{next(self._number)} {'😀' * 1000}"
            yield LogRecord(time=self._clock.now(), stream="stdout", text=text)


async def unwell(directory: Path, count: int, rate: Rate) -> tuple[World, MeteredControl]:
    """A node of that many such VMs, none of which passes its check."""
    one = World(directory)
    one.engine = TalkativeEngine(one.clock)
    one.control = control = MeteredControl(one.bus, one.clock, rate)
    one.prober.reason = "connection refused"
    ids = [f"ins_{number}" for number in range(count)]
    control.items |= {id_: Assignment(instance_id=id_, workload=workload(), present=True) for id_ in ids}
    one.start()
    await one.clock.advance(10)
    return one, control


async def end(one: World) -> None:
    await one.kill()
    await one.engine.close(keep_vms=False)


async def test_a_node_of_many_vms_that_are_not_well_is_never_silent_for_long(tmp_path: Path) -> None:
    one, control = await unwell(tmp_path, 300, BYTES_RATE)
    await one.clock.advance(90)
    assert control.longest_silence() < DEFAULT_TERMS.suspect_s
    assert len(control.observed) == 300
    assert {seen.reason for seen in control.observed.values()} == {"connection refused"}
    assert all(seen.log_tail for seen in control.observed.values())
    await end(one)


async def test_where_a_report_is_too_much_it_is_told_that_the_node_lives_and_the_rest_later(tmp_path: Path) -> None:
    one, control = await unwell(tmp_path, 20, Rate(per_minute=600_000, burst=20_000))
    await one.clock.advance(60)
    assert control.longest_silence() < DEFAULT_TERMS.suspect_s
    assert not any(seen.log_tail for seen in control.observed.values())
    control.rate = BYTES_RATE
    await one.clock.advance(60)
    assert all(seen.log_tail for seen in control.observed.values())
    await end(one)
