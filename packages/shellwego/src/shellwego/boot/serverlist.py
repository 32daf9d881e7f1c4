"""The servers that a joined host knows: those it joined by, and later those that any server names.

What is named is taken over once one of those named has answered: a list that leads nowhere from here (a name that this host
cannot resolve, say) leaves what worked. From then on those that are not named any more are left, whether they answer or not.
The list is kept on disk, for the next start. It is never emptied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from shellwego.core.errors import ShellWeGoError
from shellwego.core.servers import MOST
from shellwego.drivers.files import replace_file
from shellwego.ports.clock import Clock
from shellwego.wire.uplink import Method, ServersAnswer, ServersCall

FILE = "servers.json"
LOOK_S = 30.0

log = structlog.get_logger("shellwego.boot")


class Asked(Protocol):
    """The way to the servers; an `UplinkChannel` is one."""

    async def call(self, method: str, asked: object, answer: type[ServersAnswer]) -> ServersAnswer: ...


class ServerList:
    """The list of this process."""

    def __init__(self, joined: Sequence[str], directory: Path) -> None:
        """`joined`: those it joined by."""
        self._path = directory / FILE
        self._on_disk = self._kept()
        self._named = self._on_disk
        self._before = _plain(joined)
        """Those that are left once one that is named has answered."""

    def urls(self) -> tuple[str, ...]:
        """Where servers are, those that are named first."""
        return tuple(dict.fromkeys((*self._named, *self._before)))

    def take(self, named: Sequence[str]) -> None:
        """Note what a server named; nothing says nothing. What could not be written is used all the same, and written when
        it is named again.

        Raises:
            OSError: it was not written.
        """
        told = _plain(named)
        if told and told != self._named:
            self._before, self._named = self.urls(), told
            log.info("servers.named", servers=told)
        if told and told != self._on_disk:
            replace_file(self._path, msgspec.json.encode(told))
            self._on_disk = told

    def answered(self, url: str) -> None:
        """A server answered there."""
        if url in self._named:
            self._before = ()

    async def follow(self, channel: Asked, clock: Clock) -> None:
        """Ask which servers there are, again and again, until cancelled."""
        while True:
            try:
                self.take((await channel.call(Method.SERVERS, ServersCall(), ServersAnswer)).urls)
            except ShellWeGoError:
                pass  # calls that matter more have no answer either, and that is told; or the server is an older one
            except OSError as error:
                log.warning("servers.not_kept", reason=str(error))
            await clock.sleep(LOOK_S)

    def _kept(self) -> tuple[str, ...]:
        """What was named in an earlier life."""
        try:
            return _plain(msgspec.json.decode(self._path.read_bytes(), type=tuple[str, ...]))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            log.warning("servers.not_read", reason=str(error), resolution="Those it joined by are asked.")
            return ()


def _plain(urls: Sequence[str]) -> tuple[str, ...]:
    """Without what is no server's URL; all in one spelling."""
    plain = (url.rstrip("/") for url in urls if url.startswith("https://"))
    return tuple(dict.fromkeys(plain))[:MOST]
