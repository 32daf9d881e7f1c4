"""The webhooks loop: hands events to the webhooks that want them, and tries what is due.

One control plane holds its lease, so an event is dispatched once and a delivery is tried by one server at a time. Who loses
the lease, or dies, in the middle of an attempt leaves it unwritten, and it is tried again: at least once. Each webhook is
served one attempt after another, so a receiver that hangs holds up itself alone; as many as `AT_ONCE` are served at a time,
and `SHARE` of one organization, whose slow receivers are else what everybody waits for. Organizations go in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import structlog

from shellwego.control.deliveries import (
    Job,
    conclude,
    dispatch,
    due_webhooks,
    has_undispatched,
    next_job,
    shipment,
)
from shellwego.control.events import changes
from shellwego.control.loops.lease import Leases, run_leased
from shellwego.control.places import Places
from shellwego.control.scopes import Scope
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.control.webhooks import secret_label
from shellwego.core.errors import ConflictError, ShellWeGoError
from shellwego.core.troubles import Troubles
from shellwego.core.webhooks import Webhook
from shellwego.ports.webhooks import Outcome, Sender
from shellwego.wire import subjects

AT_ONCE = 32
SHARE = 8
"""Of one organization."""

_log = structlog.get_logger(__name__)


class WebhooksLoop:
    """`jitter` gives a random number from 0 up to 1."""

    def __init__(
        self,
        control: Control,
        sender: Sender,
        sealer: Sealer,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._control = control
        self._sender = sender
        self._sealer = sealer
        self._jitter = jitter
        self._busy: set[str] = set()
        self._places = Places(AT_ONCE, SHARE)
        self._troubles = Troubles()

    async def run(self) -> None:
        """Work on hints and on a timer, until cancelled."""
        async with (
            asyncio.TaskGroup() as serving,
            contextlib.aclosing(changes(self._control, subjects.EVENTS)) as ticks,
        ):
            async for _ in ticks:
                try:
                    await self._look(serving)
                except ShellWeGoError as error:
                    self._tell(error)

    async def _look(self, serving: asyncio.TaskGroup) -> None:
        while await self._control.read(has_undispatched):
            await self._control.commit(dispatch)
        busy = frozenset(self._busy)
        for webhook in await self._control.read(lambda tx: due_webhooks(tx, busy)):
            self._busy.add(webhook.id)
            serving.create_task(self._serve(webhook))

    async def _serve(self, webhook: Webhook) -> None:
        """Try what is due for one webhook, until nothing is. What that is, is asked in its turn: it may wait long for it."""
        try:
            due = True
            while due:
                async with self._places.turn(webhook.organization_id):
                    job = await self._control.read(lambda tx: next_job(tx, webhook.id))
                    if job is not None:
                        await self._attempt(job)
                due = job is not None
        except ShellWeGoError as error:
            self._tell(error)
        finally:
            self._busy.discard(webhook.id)

    async def _attempt(self, job: Job) -> None:
        outcome = await self._send(job)
        jitter = self._jitter()
        await self._control.commit(lambda unit: conclude(unit, job, outcome, jitter))

    async def _send(self, job: Job) -> Outcome:
        try:
            place = Scope(job.webhook.organization_id, job.webhook.project_id)
            secret = await self._sealer.unseal(job.webhook.sealed_secret, secret_label(job.webhook.id, place))
        except ConflictError:
            return Outcome(None, "its signing secret cannot be read: delete the webhook and make it anew", 0.0)
        return await self._sender.send(shipment(job, secret.reveal_text(), int(self._control.clock.now())))

    def _tell(self, error: ShellWeGoError) -> None:
        if trouble := self._troubles.failed("webhooks", error.message, self._control.clock.monotonic()):
            _log.warning("webhooks.failed", reason=error.message, **trouble.fields)


async def run(control: Control, sender: Sender, sealer: Sealer, *, holder: str | Leases = "") -> None:
    """The loop of this control plane; `holder`: as for `run_leased`. Runs until cancelled."""
    await run_leased(control, "webhooks", holder, lambda fenced: lambda: WebhooksLoop(fenced, sender, sealer).run())
