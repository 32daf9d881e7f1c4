"""A seat for the next VMM, made when there is peace (`host.peace`): a process that waits to become a VMM (`Host.seat_make`)
saves a start some 30 ms."""

from __future__ import annotations

from plasmavmc.host.operations import Host
from plasmavmc.host.peace import PEACE_S, InPeace


class Seating:
    """Has one seat made when nothing was started for `peace_s`."""

    def __init__(self, host: Host, peace_s: float = PEACE_S) -> None:
        self._host = host
        self._peace = InPeace("seat", peace_s)

    def later(self, *, kvm: bool) -> None:
        """Make one when there is peace; what was planned before is forgotten."""

        async def make() -> bool:
            await self._host.seat_make(kvm=kvm)
            return False

        self._peace.later(make)

    def put_off(self) -> None:
        """Make none until `later` is called again. One that waits already is the host's."""
        self._peace.put_off()

    def end(self) -> None:
        """Make none any more: one that came after all else was taken away would leave its cgroup to the host."""
        self._peace.end()
