"""Work on the server's image store that must not overlap: taking blobs in, and collecting those that nothing needs.

Between the moment a blob is stored and the moment a row names its manifest, only this knows that it is needed; so a
collection waits until nothing is being taken in, and what comes meanwhile waits for the collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from shellwego.core.errors import NotFoundError
from shellwego.ports.images import Download, Images, LoadedImage, ResolvedImage

T = TypeVar("T")


class ImageWork:
    """The port, with its intakes and its collections kept apart."""

    def __init__(self, images: Images, fellows: Download | None = None) -> None:
        """`fellows`: the stores of the other servers, where there may be any."""
        self._images = images
        self._fellows = fellows
        self._intakes = 0
        self._changed = asyncio.Condition()
        self._collecting = False

    async def resolve(self, reference: str) -> ResolvedImage:
        """As `Images.resolve`: it stores nothing."""
        return await self._images.resolve(reference)

    async def look(self, digest: str) -> ResolvedImage | None:
        """As `Images.look`: it stores nothing."""
        return await self._images.look(digest)

    async def load(
        self, chunks: AsyncIterator[bytes], register: Callable[[tuple[LoadedImage, ...]], Awaitable[T]]
    ) -> T:
        """Take a tar in and register what it held, as one intake; raises as `Images.load` and `register`."""
        async with self._intake():
            return await register(await self._images.load(chunks))

    async def fetch(self, reference: str, digest: str, register: Callable[[ResolvedImage], Awaitable[T]]) -> T:
        """Fetch an image and register it, as one intake; raises as `Images.fetch` and `register`."""
        async with self._intake():
            return await register(await self._images.fetch(reference, digest))

    async def has(self, digest: str) -> bool:
        """As `Images.has`: it stores nothing."""
        return await self._images.has(digest)

    async def copy(self, digest: str, register: Callable[[ResolvedImage], Awaitable[T]]) -> T:
        """Copy an image from another server and register it, as one intake.

        Raises:
            NotFoundError: no other server has it.
            UnavailableError: one that does not answer now may have it.
            InvalidError: as `Images.copy`.
        """
        if self._fellows is None:
            raise NotFoundError("image-not-found", f"no other server has the image {digest}")
        async with self._intake():
            return await register(await self._images.copy(digest, self._fellows))

    async def check(self, digest: str) -> bool:
        """As `Images.check`; nothing is collected meanwhile."""
        async with self._intake():
            return await self._images.check(digest)

    async def collect(self, keep: Callable[[], Awaitable[frozenset[str]]]) -> int:
        """Remove every blob that no manifest of `keep()` needs; returns the bytes won."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._collecting and not self._intakes)
            self._collecting = True
        try:
            return await self._images.collect(await keep())
        finally:
            await self._leave(collecting=True)

    @asynccontextmanager
    async def _intake(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._collecting)
            self._intakes += 1
        try:
            yield
        finally:
            await self._leave(collecting=False)

    async def _leave(self, *, collecting: bool) -> None:
        async with self._changed:
            if collecting:
                self._collecting = False
            else:
                self._intakes -= 1
            self._changed.notify_all()
