"""The images loop: fetches what projects asked for.

A row in state `fetching` is the order, and its state the answer; deployments wait for it in stage `image`. An organization
has each image fetched by its own reference, whoever else fetches the same digest from elsewhere: a registry that is slow,
or has not all of it, is nobody's but theirs who named it; and blobs that are here are had by those who have them already,
or whose registry sent them. A refusal that would come again (no such image, corrupt, not allowed) fails the row at once; one
that may pass is tried again, with growing pauses, for five minutes; and each attempt has an end that follows from the
image's size. A fetch that nobody waits for any more is called off. After a restart rows still say `fetching`, so it is begun
again: it goes on with a blob that had come in part, and whole ones come anew.

A row in state `pending` is an image that a node could not build from. Its blobs are hashed again; where a failing disk
changed one, it is dropped, and fetched from the registry as if it had never been here. What came from a tar is copied from
another server, and has to be loaded again where none has it whole. Instances that failed by damaged blobs
are no longer held against their release.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial

import structlog

from shellwego.control.events import changes
from shellwego.control.images import asker_for, image_event
from shellwego.control.imagework import ImageWork
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.loops.tries import Tries
from shellwego.control.places import Places
from shellwego.control.scopes import organization_of
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import App
from shellwego.core.errors import InvalidError, NotFoundError, ShellWeGoError, StaleError
from shellwego.core.images import Image, ImageState, blames_image
from shellwego.core.instances import Desired, Phase
from shellwego.core.troubles import Troubles
from shellwego.ports.images import ResolvedImage
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

_WAITING = (ImageState.PENDING.value, ImageState.FETCHING.value)
AT_ONCE_EACH, AT_ONCE = 4, 32
"""Fetches of one organization, and of all."""
_GIVE_UP_S = 300.0
_SLOWEST = 512 * 1024
"""Bytes a second; an attempt that takes longer than its image would at this pace, and five minutes, is the last."""
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)
_LOOK_AGAIN_S = 5.0

_log = structlog.get_logger(__name__)


async def run(control: Control, work: ImageWork, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "images", holder, lambda fenced: lambda: ImagesLoop(fenced, work).run())


@dataclass(frozen=True, slots=True)
class _Order:
    """What one organization wants of one image."""

    organization_id: str
    digest: str
    reference: str
    """Empty: the blobs that are here are to be checked, and fetched from wherever they once came."""


class ImagesLoop:
    """Run by `run` until cancelled."""

    def __init__(self, control: Control, work: ImageWork) -> None:
        self._control = control
        self._work = work
        self._fetching: dict[_Order, asyncio.Task[None]] = {}
        self._places = Places(AT_ONCE, AT_ONCE_EACH)
        self._troubles = Troubles()

    async def run(self) -> None:
        """Look at every hint and on a timer, for ever."""
        tries = Tries(self._control.clock, _log, "images.step_failed", "images.step_works_again")
        try:
            async with contextlib.aclosing(changes(self._control, subjects.IMAGES, _LOOK_AGAIN_S)) as ticks:
                async for _ in ticks:
                    with tries.tried():
                        await self.step()
        finally:
            tasks = list(self._fetching.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self) -> None:
        """Begin to fetch what waits, and call off what does not any more."""
        waiting = await self._control.read(_waiting)
        for order, task in self._fetching.items():
            if order not in waiting:
                task.cancel()
        self._fetching = {order: task for order, task in self._fetching.items() if not task.done()}
        for order, image in waiting.items():
            if order not in self._fetching:
                self._fetching[order] = asyncio.ensure_future(self._try_fetch(order, image))

    async def _try_fetch(self, order: _Order, image: Image) -> None:
        """Fetch; where its end cannot be stored the row goes on to wait, and the next look begins again."""
        try:
            await self._fetch(order, image)
        except ShellWeGoError as error:
            if trouble := self._troubles.failed("fetch", error.message, self._control.clock.monotonic()):
                _log.warning("images.outcome_not_stored", digest=image.digest, reason=error.message, **trouble.fields)

    async def _fetch(self, order: _Order, image: Image) -> None:
        """Fetch one image to its end, good or bad, and tell the rows that wait for it. Its rests are others' turns."""
        limit_s = _GIVE_UP_S + image.size_bytes / _SLOWEST
        failing_since: float | None = None
        for attempt in range(10_000):
            try:
                async with self._places.turn(order.organization_id):
                    await self._in_time(self._attempt(order, image), limit_s)
                return
            except StaleError:
                return  # the row changed, or the lease is another's: the next look decides, here or there
            except ShellWeGoError as error:
                now = self._control.clock.monotonic()
                failing_since = now if failing_since is None else failing_since
                if not error.temporary or now - failing_since > _GIVE_UP_S:
                    await self._fail(order, error.message)
                    return
            await self._control.clock.sleep(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])

    async def _in_time(self, work: Coroutine[None, None, None], limit_s: float) -> None:
        """Raises `InvalidError` where it takes longer: it would again."""
        working = asyncio.ensure_future(work)
        alarm = asyncio.ensure_future(self._control.clock.sleep(limit_s))
        try:
            await asyncio.wait((working, alarm), return_when=asyncio.FIRST_COMPLETED)
        finally:
            late = not working.done()
            alarm.cancel()
            working.cancel()
            await asyncio.wait((working, alarm))
        if late:
            raise InvalidError("image-late", f"it did not come within {limit_s:.0f} s")
        working.result()

    async def _attempt(self, order: _Order, image: Image) -> None:
        source = image if order.reference else await self._check(order)
        if source is not None:
            await self._bring(order, source)

    async def _bring(self, order: _Order, source: Image) -> None:
        asker = await self._control.read(lambda tx: asker_for(tx, self._work.logins, source.project_id))
        await self._work.fetch(source.reference, source.digest, partial(self._ready, order), asker)

    async def _check(self, order: _Order) -> Image | None:
        """Check a digest; returns what to fetch it by, or None where that is not needed, or not possible."""
        if await self._work.check(order.digest):
            await self._control.commit(lambda unit: _acquit(unit, order))
            return None
        source = await self._control.read(lambda tx: _source(tx, order))
        _log.error("images.damaged", digest=order.digest, reference=source.reference if source else "")
        if source is None:
            await self._copy(order)
        return source

    async def _copy(self, order: _Order) -> None:
        """Have from another server what cannot be fetched."""
        try:
            await self._work.copy(order.digest, partial(self._ready, order))
        except NotFoundError:
            await self._fail(order, "the platform's copy was damaged on its disk; load the image again")

    async def _ready(self, order: _Order, found: ResolvedImage) -> None:
        def mark(unit: Unit) -> None:
            for row in _ordered(unit.tx, order):
                ready = replace(
                    row,
                    state=ImageState.READY,
                    size_bytes=found.size_bytes or row.size_bytes,
                    exposed_ports=found.exposed_ports,
                    reason="",
                )
                _settle(unit, ready, "image.ready")
            _forgive(unit, found.digest)

        await self._control.commit(mark)

    async def _fail(self, order: _Order, reason: str) -> None:
        def mark(unit: Unit) -> None:
            for row in _ordered(unit.tx, order):
                _settle(unit, replace(row, state=ImageState.FAILED, reason=reason[:500]), "image.failed")

        await self._control.commit(mark)


def _acquit(unit: Unit, order: _Order) -> None:
    """The blobs are what they were: whatever failed with them failed by the image itself."""
    for row in _ordered(unit.tx, order):
        unit.tx.images.update(replace(row, state=ImageState.READY))
        _plan_again(unit, row)


def _forgive(unit: Unit, digest: str) -> None:
    """What could not be made while the blobs were damaged is no failure of its release."""
    for instance in unit.tx.instances.select(eq("phase", Phase.FAILED.value)):
        release = unit.tx.releases.get(instance.release_id)
        blamed = instance.desired is Desired.SERVE and blames_image(instance.observed.reason_code)
        if blamed and release is not None and release.image_digest == digest:
            unit.tx.instances.update(replace(instance, desired=Desired.STOP))
            unit.hint(subjects.app(instance.app_id))


def _settle(unit: Unit, image: Image, type_: str) -> None:
    """Store the outcome, and have the apps of the project planned again."""
    unit.tx.images.update(image)
    image_event(unit, type_, image, severity="info" if image.state is ImageState.READY else "warning")
    _plan_again(unit, image)


def _plan_again(unit: Unit, image: Image) -> None:
    for app in _apps_of(unit.tx, image.project_id):
        unit.hint(subjects.app(app.id))


def _apps_of(tx: Transaction, project_id: str) -> list[App]:
    return tx.apps.select(eq("project_id", project_id))


def _waiting(tx: Transaction) -> dict[_Order, Image]:
    """A row for each order."""
    return {_order(tx, row): row for row in tx.images.select(within("state", _WAITING))}


def _order(tx: Transaction, row: Image) -> _Order:
    """What a row that waits is a part of. Projects of which nothing is known are one for all."""
    checked = row.state is ImageState.PENDING
    return _Order(organization_of(tx, row.project_id), row.digest, "" if checked else row.reference)


def _ordered(tx: Transaction, order: _Order) -> list[Image]:
    """The rows that wait for it. Those of others wait for what they named, though the blobs may be here."""
    return [row for row in _rows_of(tx, order.digest) if _order(tx, row) == order]


def _source(tx: Transaction, order: _Order) -> Image | None:
    """What may be fetched in place of what is damaged, rather by one's own reference than by another's; None: nothing."""
    rows = [row for row in _rows_of(tx, order.digest) if not row.loaded]
    return min(rows, key=lambda row: _order(tx, row) != order, default=None)


def _rows_of(tx: Transaction, digest: str) -> list[Image]:
    return tx.images.select(eq("digest", digest), within("state", _WAITING))
