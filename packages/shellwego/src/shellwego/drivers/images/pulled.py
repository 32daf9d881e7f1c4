"""Images pulled from servers, by digest: by a node, which has none, as it builds, and by a server that lacks any.

The engine keeps what arrived of a blob, asks for the rest next time, and believes nothing whose digest it has not checked.
The servers' credentials for registries stay with them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from plasmavmc.errors import ImageError, UnavailableError
from plasmavmc.images.limits import MANIFEST_BYTES
from plasmavmc.images.source import BlobRef
from plasmavmc.images.stepping import reading
from shellwego.core.errors import NotFoundError, ShellWeGoError
from shellwego.ports.images import Download


class PulledBlobs:
    """See `plasmavmc.images.source.BlobSource`."""

    def __init__(self, download: Download) -> None:
        self._download = download

    async def manifest(self, digest: str) -> bytes:
        data = bytearray()
        async with reading(self._blob(digest, 0)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > MANIFEST_BYTES:
                    raise ImageError("image-too-large", f"manifest {digest} has more than {MANIFEST_BYTES} bytes")
        return bytes(data)

    async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        async with reading(self._blob(ref.digest, offset)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _blob(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        with _translated():
            async with reading(self._download(digest, offset)) as chunks:
                async for chunk in chunks:
                    yield chunk


@contextmanager
def _translated() -> Iterator[None]:
    """Say the platform's errors in the engine's words. A server that refuses may not do so for ever."""
    try:
        yield
    except NotFoundError as error:
        raise ImageError("image-not-found", error.message, resolution=error.resolution) from error
    except ShellWeGoError as error:
        raise UnavailableError(error.code, error.message, resolution=error.resolution) from error
