"""A seat for the next VMM, made when the host is idle (`host.idle`): a process that waits to become a VMM (`Host.seat_make`)
saves a start some 30 ms."""

from __future__ import annotations

from plasmavmc.host.idle import IDLE_S, WhenIdle
from plasmavmc.host.operations import Host


class Seating:
    """Has one seat made when nothing was started for `idle_s`."""

    def __init__(self, host: Host, idle_s: float = IDLE_S) -> None:
        self._host = host
        self._idle = WhenIdle("seat", idle_s)

    def later(self, *, kvm: bool) -> None:
        """Make one when the host is idle; what was planned before is forgotten."""

        async def make() -> bool:
            await self._host.seat_make(kvm=kvm)
            return False

        self._idle.later(make)

    def put_off(self) -> None:
        """Make none until `later` is called again. One that waits already is the host's."""
        self._idle.put_off()

    def end(self) -> None:
        """Make none any more: one that came after all else was taken away would leave its cgroup to the host."""
        self._idle.end()
