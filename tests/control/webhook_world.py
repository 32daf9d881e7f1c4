"""A control plane with webhooks on memory drivers and virtual time, and receivers that a test answers for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shellwego.control.loops.outbox import relay
from shellwego.control.loops.webhooks import WebhooksLoop
from shellwego.control.scopes import Scope
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control, Unit
from shellwego.control.webhooks import WebhookWish, create_webhook, secret_label
from shellwego.core.egress import parse_networks
from shellwego.core.sensitive import Sensitive
from shellwego.core.webhooks import Delivery, DeliveryState, Webhook
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.webhooks.memory import MemorySender
from shellwego.ports.store import Order, Store, eq
from shellwego.ports.webhooks import Shipment

ADDRESS = "10.0.0.1"
NETWORKS = tuple(parse_networks(["10.0.0.0/8"]))
ORGANIZATION, PROJECT = "org_1", "prj_1"
SECRET = "whsec_test"


@dataclass
class Receiver:
    """Answers with `status` (None: never); an answer can be chosen by the shipment."""

    status: int | None = 200
    posts: list[Shipment] = field(default_factory=list)
    choose: Callable[[Shipment], int | None] | None = None

    def __call__(self, shipment: Shipment) -> int | None:
        self.posts.append(shipment)
        return self.choose(shipment) if self.choose else self.status

    @property
    def seqs(self) -> list[int]:
        return [self.body(number)["seq"] for number in range(len(self.posts))]

    def body(self, number: int = -1) -> Any:
        return json.loads(self.posts[number].body)


class HookWorld:
    def __init__(self, store: Store | None = None) -> None:
        self.clock = VirtualClock()
        self.control = Control(store or MemoryStore(self.clock), MemoryBus(), self.clock)
        self.sender = MemorySender(NETWORKS)
        self.sealer = Sealer(self.control, MemoryKms())
        self._port = 8000
        self._loops: list[asyncio.Task[None]] = []

    def loop(self, jitter: float = 0.0) -> WebhooksLoop:
        return WebhooksLoop(self.control, self.sender, self.sealer, jitter=lambda: jitter)

    async def start(self) -> None:
        self._loops.append(asyncio.ensure_future(self.loop().run()))
        await self.clock.advance(0)

    async def stop(self) -> None:
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()

    async def hook(
        self, *events: str, project: str = PROJECT, organization: str = ORGANIZATION, status: int | None = 200
    ) -> tuple[Webhook, Receiver]:
        """A webhook with a receiver of its own."""
        self._port += 1
        port, receiver = self._port, Receiver(status)
        self.sender.receivers[ADDRESS, port] = receiver
        id_ = self.clock.new_id("whk")
        scope = Scope(organization, project)
        sealing = await self.sealer.seal(Sensitive.of(SECRET), secret_label(id_, scope))
        wish = WebhookWish(url=f"http://{ADDRESS}:{port}/", events=events)
        webhook = await self.control.commit(
            lambda unit: create_webhook(unit, scope, wish, id_=id_, sealing=sealing, networks=NETWORKS)
        )
        await self.published()
        return webhook, receiver

    async def emit(self, *types: str, project: str = PROJECT, organization: str = ORGANIZATION) -> None:
        """Let things happen, and number them."""

        def work(unit: Unit) -> None:
            for type_ in types:
                unit.emit(type_, "app_1", organization_id=organization, project_id=project, data={"name": "shop"})

        await self.control.commit(work)
        await self.published()

    async def published(self) -> None:
        await relay(self.control)
        await self.clock.advance(0)

    async def deliveries(self, webhook: Webhook) -> list[Delivery]:
        return await self.control.read(
            lambda tx: tx.deliveries.select(eq("webhook_id", webhook.id), order=Order("seq"))
        )

    async def states(self, webhook: Webhook) -> list[DeliveryState]:
        return [delivery.state for delivery in await self.deliveries(webhook)]

    async def stored(self, webhook: Webhook) -> Webhook:
        found = await self.control.read(lambda tx: tx.webhooks.get(webhook.id))
        assert found is not None
        return found
