"""What a node's volumes hold, as others have it: read of snapshots and filled into new ones (backups), sent and received
(copies on other nodes). As it is stored: of a sealed volume that is ciphertext, and nobody on the way needs its key.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import ExitStack, aclosing, asynccontextmanager

from plasmavmc.errors import ConflictError, InvalidSpecError
from plasmavmc.host.threads import to_its_end
from plasmavmc.storage import luks
from plasmavmc.storage.volumes.backend import SendReceive
from plasmavmc.storage.volumes.content import Extent, Feed, SnapshotReader
from plasmavmc.storage.volumes.errors import no_snapshot, snapshot_exists
from plasmavmc.storage.volumes.transfer import Incoming, send
from plasmavmc.types import check_id
from plasmavmc.volumestock import VolumeStock, check_key, check_size


class VolumeContent:
    """See the module's head."""

    def __init__(self, stock: VolumeStock) -> None:
        self._stock = stock
        self._driver = stock.driver

    @asynccontextmanager
    async def reading(self, snapshot_id: str) -> AsyncGenerator[SnapshotReader]:
        """What a snapshot holds: see `storage.volumes.content`.

        Raises:
            InvalidSpecError: the id makes no sense.
            NotFoundError: `snapshot-not-found`.
            HostError: as `Volumes.create`.
        """
        origin = await self._stock.origin(snapshot_id)
        file = await self._driver.open_snapshot(snapshot_id)
        try:
            yield SnapshotReader(file, sealed=origin.sealed)
        finally:
            os.close(file)

    async def fill(
        self, volume_id: str, stored_bytes: int, content: AsyncIterable[Extent], *, key: bytes | None = None
    ) -> None:
        """Make a volume of what `reading` gave of another: so large as stored, with this in it and zeros elsewhere. With a
        key it is what was read of a sealed one, and has its key. Whatever ends it before its end leaves nothing; a volume
        that is there already with this size, and this key, is left alone.

        Raises:
            InvalidSpecError: `volume_id`, `stored_bytes` or `key` makes no sense.
            ConflictError: `volume-exists` with another size or kind; `wrong-key`.
            CapacityError, HostError: as `Volumes.create`; and whatever the content raises.
        """
        size_bytes = stored_bytes - (luks.HEADER_BYTES if key is not None else 0)
        check_size(size_bytes)
        check_key(key)
        async with self._stock.alone(volume_id):
            present = await self._driver.find(volume_id)
            if present is not None:
                await self._stock.take_for_same(present, size_bytes, key)
                return
            await self._filled(volume_id, stored_bytes, Feed(content), key)
            if key is not None:
                self._stock.remember(volume_id, key)

    async def _filled(self, volume_id: str, stored_bytes: int, feed: Feed, key: bytes | None) -> None:
        def lay(file: int) -> None:
            feed.fill(file)
            if key is not None:
                luks.master_key(file, key)

        await to_its_end(self._driver.create(volume_id, stored_bytes, lay, sealed=key is not None), stop=feed.stop)

    async def send(self, snapshot_id: str, since: str = "") -> AsyncGenerator[bytes]:
        """A snapshot for another node, which `receive` takes there; with `since`, another one of the same volume, only
        what is different from that. See `storage.volumes.transfer`.

        Raises:
            InvalidSpecError: an id makes no sense.
            NotFoundError: `snapshot-not-found`; also where `since` is another volume's.
            HostError: as `Volumes.create`.
        """
        origin = await self._stock.origin(snapshot_id)
        if since and since not in [each.snapshot_id for each in origin.snapshots]:
            raise no_snapshot(since)
        with ExitStack() as files:
            new, old = await self._driver.open_snapshot(snapshot_id), None
            files.callback(os.close, new)
            if since:
                old = await self._driver.open_snapshot(since)
                files.callback(os.close, old)
            async with aclosing(send(new, old, sealed=origin.sealed)) as parts:
                async for part in parts:
                    yield part

    async def receive(self, volume_id: str, snapshot_id: str, stream: AsyncIterable[bytes], *, since: str = "") -> str:
        """Take what `send` gave of a snapshot: the volume then is what that was, and has the snapshot under the same id.
        Sent whole, the volume is new here; with `since` it has that one as its youngest snapshot. Nobody has it. Whatever
        ends it before its end leaves no snapshot. One that is there already is taken for the same, and the stream is not
        read. Returns the sum at the stream's end, in hexadecimal; empty where that was not read.

        Raises:
            InvalidSpecError: an id makes no sense; `stream`, it is none, is damaged, or was made for another `since`.
            UnavailableError: `stream-cut`, it ended before its end.
            NotFoundError: `volume-not-found`, `snapshot-not-found` (of `since`).
            ConflictError: `volume-exists`, `snapshot-exists`, of another volume; `volume-held`.
            CapacityError, HostError: as `Volumes.create`; and whatever the stream raises.
        """
        check_id("snapshot_id", snapshot_id)
        async with self._stock.alone(volume_id):
            owner = await self._driver.origin(snapshot_id)
            if owner is not None and owner.volume_id != volume_id:
                raise snapshot_exists(snapshot_id)
            if since or owner is not None:
                await self._stock.existing(volume_id)
                await self._stock.check_free(volume_id, "received into")
            incoming = Incoming(stream)
            if owner is None:
                await self._received(volume_id, snapshot_id, incoming, since)
            await self._driver.restore(volume_id, snapshot_id)
            return incoming.digest

    async def _received(self, volume_id: str, snapshot_id: str, incoming: Incoming, since: str) -> None:
        if not isinstance(self._driver, SendReceive):
            raise ConflictError("cannot-receive", f"the driver {self._driver.name} takes no snapshots of other nodes")
        header = await incoming.open()
        check_size(header.size_bytes - (luks.HEADER_BYTES if header.sealed else 0))
        if header.based != bool(since):
            raise InvalidSpecError("since", "the stream was made with another one")
        base = await self._driver.origin(since) if since else None
        if base is not None and any(
            each.snapshot_id == since and each.size_bytes > header.size_bytes for each in base.snapshots
        ):
            raise InvalidSpecError("stream", "a volume does not shrink")
        feed = Feed(incoming.blocks())

        def lay(file: int) -> None:
            feed.fill(file)
            incoming.check(file)

        work = self._driver.receive(volume_id, snapshot_id, header.size_bytes, lay, sealed=header.sealed, since=since)
        await to_its_end(work, stop=feed.stop)
