"""Images for nodes, and for other servers: a node may have the blobs of what it is told to run, and of nothing else.

To a node, a blob that is another's and one that is nowhere are the same. What a node gets is bytes; the credentials by which
they were fetched from a registry stay here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from shellwego.control.assignments import assignments
from shellwego.control.unit import Control
from shellwego.core.errors import NotFoundError
from shellwego.ports.images import ImageBlobs

_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Opened:
    """A blob that may be read."""

    size: int
    """Of the whole blob, in bytes."""
    chunks: AsyncIterator[bytes]
    """From the offset on that was asked for."""


class NodeImages:
    """The image store of this server, as nodes see it."""

    def __init__(self, control: Control, blobs: ImageBlobs) -> None:
        self._control = control
        self._blobs = blobs
        self._parts: dict[str, frozenset[str]] = {}

    async def open(self, node_id: str | None, digest: str, offset: int) -> Opened:
        """A blob of an image that this node should run now; without a node it is another server that asks, which may have
        all.

        Raises:
            NotFoundError: it is none, or is not in this server's store.
            ForbiddenError: this node is not known.
        """
        if node_id is None:
            return await self._opened(digest, offset)
        told = await self._control.read(lambda tx: assignments(tx, node_id))
        for image in {item.workload.image_digest for item in told.items}:
            if digest in await self._parts_of(image):
                return await self._opened(digest, offset)
        raise NotFoundError(
            "blob-not-found",
            f"this server has no blob {digest[:80]!r} for this node",
            resolution="Another server may; else the image is fetched again when it is deployed.",
        )

    async def _opened(self, digest: str, offset: int) -> Opened:
        return Opened(await self._blobs.size(digest), self._blobs.blob(digest, offset))

    async def _parts_of(self, image: str) -> frozenset[str]:
        """What an image consists of never changes; whether it is here does, and is asked when it is opened."""
        known = self._parts.get(image)
        if known is None:
            try:
                known = await self._blobs.parts(image)
            except NotFoundError:
                return frozenset()
            if len(self._parts) >= _KEPT:
                self._parts.clear()
            self._parts[image] = known
        return known
