"""What each server does for its own image store: has what was loaded at any server, and removes what nothing needs any more.

An image of a tar comes to one server, and nobody else can be asked for it. So each of the others copies it from its fellow
servers, by digest: a server that is gone for good then takes no image with it, once one other was there for a few seconds.
What comes from a registry is not copied; it can be fetched again.

No lease: each server has a store of its own.
"""

from __future__ import annotations

import structlog

from shellwego.control.imagework import ImageWork
from shellwego.control.loops.hints import keep_looking
from shellwego.control.loops.tries import Tries
from shellwego.control.unit import Control
from shellwego.core.images import ImageState
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects

LOOK_AGAIN_S = 5.0

_log = structlog.get_logger(__name__)


class ImageStoreLoop:
    """Run by `run` until cancelled."""

    def __init__(self, control: Control, work: ImageWork) -> None:
        self._control = control
        self._work = work
        self._whole: frozenset[str] = frozenset()
        """What was loaded, and was found to be here."""
        self._known: frozenset[str] | None = None
        self._tries = Tries(control.clock, _log, "images.store_not_kept", "images.store_kept_again")

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        await keep_looking(self._control, subjects.IMAGES, LOOK_AGAIN_S, self.step)

    async def step(self) -> None:
        """Copy what is missing, and collect if an image went since the last look, or nothing became of a tar."""
        with self._tries.tried("look", what="look"):
            known, loaded = await self._control.read(lambda tx: (_digests(tx), _loaded(tx)))
            self._whole &= loaded
            for digest in sorted(loaded - self._whole):
                with self._tries.tried(digest, what=digest):
                    await self._have(digest)
            if self._work.wasted or (self._known is not None and self._known - known):
                won = await self._work.collect(lambda: self._control.read(_digests))
                _log.info("images.blobs_removed", bytes=won)
            self._known = known

    async def _have(self, digest: str) -> None:
        if not await self._work.has(digest):
            await self._work.copy(digest, _kept)
            _log.info("images.copied", digest=digest)
        self._whole |= {digest}


async def run(control: Control, work: ImageWork) -> None:
    """The loop of this server. Runs until cancelled."""
    await ImageStoreLoop(control, work).run()


async def _kept(_: object) -> None:
    """A row names it already."""


def _digests(tx: Transaction) -> frozenset[str]:
    return frozenset(image.digest for image in tx.images.select())


def _loaded(tx: Transaction) -> frozenset[str]:
    rows = tx.images.select(eq("state", ImageState.READY.value))
    return frozenset(image.digest for image in rows if image.loaded)
