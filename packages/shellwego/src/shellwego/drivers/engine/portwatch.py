"""What a host's operator should know of the ports that are published on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from plasmavmc.host.listening import listening_ports
from plasmavmc.host.ports import PublishSite, Transport
from shellwego.core.publishing import OpenPort

LOOK_EVERY_S = 30.0
"""The kernel's tables are long on a busy host."""
_NAMED = 5
"""Ports that are told by number."""

Listening = Callable[[], Iterable[tuple[Transport, int]]]


class PortWatch:
    """Compares what is published with what this host offers, and with what its own programs listen at."""

    def __init__(
        self, site: PublishSite, listening: Listening = listening_ports, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._site = site
        self._listening = listening
        self._clock = clock
        self._held: frozenset[tuple[str, int]] = frozenset()
        self._due = float("-inf")
        self.published: tuple[OpenPort, ...] = ()

    def warnings(self) -> tuple[str, ...]:
        """In words, each with its remedy."""
        closed = [port for port in self.published if port.port not in self._site.ports]
        offered = [port for port in self.published if port.port in self._site.ports]
        found = []
        if closed:
            remedy = "publish in the table [network] of this host's configuration names those that it lets apps have."
            found.append(f"published ports are not answered here: {_names(closed)} — {remedy}")
        if offered and (held := self._held_of(offered)):
            text = f"programs of this host listen at published ports, and are not reached there from outside: {held}"
            found.append(f"{text} — Have them listen elsewhere (ss -ltunp), or keep those ports from being published.")
        return tuple(found)

    def _held_of(self, offered: Iterable[OpenPort]) -> str:
        if self._clock() >= self._due:
            self._held = frozenset((transport.value, number) for transport, number in self._listening())
            self._due = self._clock() + LOOK_EVERY_S
        held = [port for port in offered if (port.transport.value, port.port) in self._held]
        return _names(held) if held else ""


def _names(ports: list[OpenPort]) -> str:
    told = [f"{port.port}/{port.transport}" for port in ports[:_NAMED]]
    return ", ".join([*told, f"and {len(ports) - _NAMED} more"] if len(ports) > _NAMED else told)
