"""Names looked up by the system's resolver, in threads of their own.

Trap of `loop.getaddrinfo`: who gives it up has not ended it, and the resolver goes on for up to a minute. uvloop has two
threads for lookups, asyncio those that all else needs, so a stranger's names that nobody answers for stop everybody's.
"""

from __future__ import annotations

import asyncio
import socket

from plasmavmc.host.threads import DaemonThreads

_LOOKUPS = DaemonThreads(256, "names")
"""More than can be under way: 32 webhooks, 16 looks at registries and 32 pulls are served at a time, each for 10 s to 30 s,
and may leave lookups behind that go on for some 40 s."""


async def lookup(host: str, port: int) -> tuple[str, ...]:
    """Addresses of a host name, by the system's resolver. Raises `OSError`."""

    def look() -> list[str]:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    try:
        found = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, look)
    except ValueError as error:  # no text that a name may be: a label too long, a NUL
        raise OSError(f"{host[:100]!r} is not the name of a host") from error
    except RuntimeError as error:
        raise OSError(f"{host[:100]!r} cannot be looked up: {error}") from error
    return tuple(dict.fromkeys(found))
