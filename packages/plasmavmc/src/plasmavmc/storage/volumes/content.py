"""What volumes hold, read and written from outside: as it is stored, in ranges, with holes known.

Of a sealed volume that is its container, header and all: the host opens none. A reader gets the holes that the host knows
of, so that a large volume with little in it costs little.

A new volume is filled by a blocking function (`backend.Fill`), and what goes into it comes from elsewhere, over a network
perhaps. `Feed` joins the two: the thread that fills waits for what the event loop gets for it. Trap: whoever waits for that
thread outlasts it even when he is cancelled (`host.threads`), so the feed is stopped first, which ends the thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator

from plasmavmc.host.ranges import read_range, write_range
from plasmavmc.host.threads import in_thread
from plasmavmc.storage.luks import HEADER_BYTES
from plasmavmc.storage.sparse import next_range
from plasmavmc.storage.volumes.errors import volume_errors

Extent = tuple[int, bytes]
"""Where, and what."""


class SnapshotReader:
    """A snapshot that is open; good until its context ends. Raises `HostError`."""

    def __init__(self, file: int, *, sealed: bool) -> None:
        self._file = file
        self.size_bytes = os.fstat(file).st_size
        """As stored."""
        self.volume_bytes = self.size_bytes - (HEADER_BYTES if sealed else 0)
        """As a VM sees it."""
        self.sealed = sealed

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        """The next run of data at or after `offset`: its first byte and the one after its last; None: only holes, which
        are zeros, are left."""
        with volume_errors("read a snapshot"):
            return await in_thread(next_range, self._file, offset)

    async def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there; fewer only at the end."""
        with volume_errors("read a snapshot"):
            return await in_thread(read_range, self._file, size, offset)


class Feed:
    """Content on its way from the event loop to the thread that fills a volume with it."""

    def __init__(self, content: AsyncIterable[Extent]) -> None:
        self._content = aiter(content)
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._awaited: concurrent.futures.Future[Extent | None] | None = None

    def fill(self, file: int) -> None:
        """As `backend.Fill`; in a thread. Raises `OSError`, and whatever the content raises."""
        while (extent := self._get()) is not None:
            offset, data = extent
            write_range(file, data, offset)

    def stop(self) -> None:
        """Have `fill` end with an error, soon."""
        self._stopped.set()
        if self._awaited is not None:
            self._awaited.cancel()

    def _get(self) -> Extent | None:
        """The next; None at the end."""
        if not self._stopped.is_set():
            awaited = self._awaited = asyncio.run_coroutine_threadsafe(_next(self._content), self._loop)
            if self._stopped.is_set():  # meanwhile, by one who did not see yet what is awaited now
                awaited.cancel()
            try:
                return awaited.result()
            except concurrent.futures.CancelledError:  # by `stop`; it is no task of ours
                pass
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


async def _next(content: AsyncIterator[Extent]) -> Extent | None:
    return await anext(content, None)
