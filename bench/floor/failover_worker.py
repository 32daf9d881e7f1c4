"""One server of P15: the platform's own loops on PostgreSQL, and one more that commits as often as it can, and says when.

Each line: `began` where the lease was got, `commit MONOTONIC NUMBER`, `refused` where a write came too late, `failed CODE`.
Ended by a signal, as a server is.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from shellwego.control.loops import nodes, outbox, retention, rollout, routes
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import ShellWeGoError, StaleError
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.location import parse_url
from shellwego.drivers.store.postgres import open_postgres

EVERY_S = 0.02


async def commit_for_ever(fenced: Control, holder: str) -> None:
    """Number after number, each in a transaction under the lease."""

    def note(unit: Unit) -> int:
        number = unit.tx.next("bench")
        unit.emit("bench.commit", holder, data={"number": str(number)})
        return number

    print("began", flush=True)
    while True:
        try:
            number = await fenced.commit(note)
        except StaleError:
            print("refused", flush=True)
            raise
        except ShellWeGoError as error:
            print(f"failed {error.code}", flush=True)
        else:
            print(f"commit {time.monotonic()} {number}", flush=True)
        await asyncio.sleep(EVERY_S)


async def serve(url: str, holder: str) -> None:
    """Until killed."""
    clock = SystemClock()
    control = Control(open_postgres(parse_url(url)), MemoryBus(), clock)
    leases = Leases(control, holder)
    async with asyncio.TaskGroup() as parts:
        parts.create_task(leases.run())
        for loop in (rollout, routes, nodes, outbox, retention):
            parts.create_task(loop.run(control, holder=leases))
        probe = run_leased(control, "bench", leases, lambda fenced: lambda: commit_for_ever(fenced, holder))
        parts.create_task(probe)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
