"""The sockets of a jail, reached by a descriptor of their directory.

Theory. The jail's root is closed to us, and the directory for sockets is one in which the VMM may do what it likes. So a
socket is opened by its name within the directory, without following links, looked at, and then connected to by that very
descriptor: a VMM that its guest has taken over cannot lead us to a socket of somebody else's. It also makes paths short (a
socket's path has 107 bytes).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from plasmavmc.errors import UnavailableError

_PAUSE_S = 0.005


class JailSockets:
    """Owns a descriptor of the directory."""

    def __init__(self, directory: int) -> None:
        self._directory = directory

    @property
    def directory(self) -> int:
        """The descriptor; ours."""
        return self._directory

    @asynccontextmanager
    async def reach(
        self, name: str, *, deadline_s: float, ended: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[Path]:
        """A path to connect to, for the length of a block. Waits for the socket to appear, unless its VMM has `ended`.

        Raises:
            UnavailableError: `no-socket`, it is not there within `deadline_s`, or something else is.
        """
        pinned = await self._appeared(name, deadline_s, ended)
        try:
            if not stat.S_ISSOCK(os.fstat(pinned).st_mode):
                raise UnavailableError("no-socket", f"what is called {name} in the VM's jail is no socket")
            yield Path(f"/proc/self/fd/{pinned}")
        finally:
            os.close(pinned)

    async def _appeared(self, name: str, deadline_s: float, ended: Callable[[], bool]) -> int:
        clock = asyncio.get_running_loop().time
        give_up = clock() + deadline_s
        while True:
            try:
                return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
            except FileNotFoundError:
                if ended() or clock() >= give_up:
                    raise UnavailableError("no-socket", f"the VMM has made no socket {name}") from None
            except OSError as error:
                raise UnavailableError("no-socket", f"the socket {name} cannot be reached: {error.strerror}") from error
            await asyncio.sleep(_PAUSE_S)

    def close(self) -> None:
        """Idempotent."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
