"""Work on the server's image store that must not overlap: taking blobs in, and collecting those that nothing needs.

Between the moment a blob is stored and the moment a row names its manifest, only this knows that it is needed. A tar comes
within minutes, so a collection waits until none is being taken in, and one that comes meanwhile waits for the collection.
What a registry sends may take hours, and somebody who wants nothing collected could see to that. So a collection goes on
beside it, and spares what was written or used since the first of those that are under way began.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from shellwego.control.places import Places
from shellwego.core.errors import NotFoundError
from shellwego.core.images import LoginRule
from shellwego.ports.clock import Clock
from shellwego.ports.images import Asker, Download, Images, LoadedImage, ResolvedImage

T = TypeVar("T")
FIRST_ONLY = LoginRule()
_COARSE_S = 1.0
"""The times of files are of a clock that goes by ticks."""
RESOLVES, RESOLVES_EACH = 16, 4
"""At a time, and of one project: a registry may take its ten seconds for each."""


class ImageWork:
    """The port, with its intakes and its collections kept apart."""

    def __init__(
        self, images: Images, clock: Clock, fellows: Download | None = None, logins: LoginRule = FIRST_ONLY
    ) -> None:
        """`fellows`: the stores of the other servers, where there may be any; `logins`: whom the operator's serve."""
        self.logins = logins
        self.wasted = False
        """There may be blobs of a tar that nothing was made of: it broke off, or was refused."""
        self._images = images
        self._clock = clock
        self._fellows = fellows
        self._resolving = Places(RESOLVES, RESOLVES_EACH)
        self._began: dict[object, float] = {}
        """When what is under way began, that a collection goes on beside."""
        self._loads = 0
        self._changed = asyncio.Condition()
        self._collecting = False

    async def resolve(self, reference: str, project_id: str, *, login: bool) -> ResolvedImage:
        """As `Images.resolve`, in the project's turn: it stores nothing."""
        async with self._resolving.turn(project_id):
            return await self._images.resolve(reference, login=login)

    async def look(self, digest: str) -> ResolvedImage | None:
        """As `Images.look`: it stores nothing."""
        return await self._images.look(digest)

    async def load(
        self, chunks: AsyncIterator[bytes], register: Callable[[tuple[LoadedImage, ...]], Awaitable[T]]
    ) -> T:
        """Take a tar in and register what it held, as one intake; raises as `Images.load` and `register`."""
        async with self._loading():
            try:
                return await register(await self._images.load(chunks))
            except BaseException:
                self.wasted = True
                raise

    async def fetch(
        self, reference: str, digest: str, register: Callable[[ResolvedImage], Awaitable[T]], asker: Asker
    ) -> T:
        """Fetch an image and register it, as one intake; raises as `Images.fetch` and `register`."""
        with self._intake():
            return await register(await self._images.fetch(reference, digest, asker))

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
        with self._intake():
            return await register(await self._images.copy(digest, self._fellows))

    async def check(self, digest: str) -> bool:
        """As `Images.check`; nothing is collected meanwhile."""
        with self._intake():
            return await self._images.check(digest)

    async def collect(self, keep: Callable[[], Awaitable[frozenset[str]]]) -> int:
        """Remove every blob that no manifest of `keep()` needs; returns the bytes won."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._collecting and not self._loads)
            self._collecting = True
        try:
            self.wasted = False
            unused_since = min(self._began.values(), default=self._clock.now())
            return await self._images.collect(await keep(), unused_since)
        finally:
            self._collecting = False
            await self._tell()

    @contextmanager
    def _intake(self) -> Iterator[None]:
        intake = object()
        self._began[intake] = self._clock.now() - _COARSE_S
        try:
            yield
        finally:
            del self._began[intake]

    @asynccontextmanager
    async def _loading(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._collecting)
            self._loads += 1
        try:
            yield
        finally:
            self._loads -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
