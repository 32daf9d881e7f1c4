"""The webhooks contract on the memory driver, and wrong drivers that it rejects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from shellwego.core.egress import parse_networks
from shellwego.drivers.webhooks.memory import MemorySender
from shellwego.ports.webhooks import Outcome, Sender, Shipment
from tests.contract.webhooks_contract import ALLOWED, Receiver, Receivers, WebhooksContract


class MemoryReceivers:
    """Receivers within the memory driver."""

    def __init__(self, sender: MemorySender) -> None:
        self._sender = sender
        self._port = 8000

    async def receiver(self, answer: int | None, *, address: str = ALLOWED, location: str = "") -> Receiver:
        self._port += 1
        receiver = Receiver(self._port)

        def take(shipment: Shipment) -> int | None:
            receiver.posts.append(shipment)
            return answer

        self._sender.receivers[address, receiver.port] = take
        return receiver

    def name(self, host: str, *addresses: str) -> None:
        self._sender.names[host] = addresses


@pytest.fixture
def sender() -> MemorySender:
    return MemorySender(parse_networks([ALLOWED]))


@pytest.fixture
def receivers(sender: MemorySender) -> Receivers:
    return MemoryReceivers(sender)


class TestMemorySender(WebhooksContract):
    """The driver itself."""


class CarelessSender(MemorySender):
    """Wrong: looks at no address, and takes every answer for a success."""

    async def send(self, shipment: Shipment) -> Outcome:
        for take in self.receivers.values():
            return Outcome(200 if take(shipment) is not None else None, "", 0.0)
        return Outcome(200, "", 0.0)


class AnyAddressSender(MemorySender):
    """Wrong: one allowed address is enough."""

    async def send(self, shipment: Shipment) -> Outcome:
        self.names = {host: addresses[:1] for host, addresses in self.names.items()}
        return await super().send(shipment)


class RaisingSender(MemorySender):
    """Wrong: what goes wrong outside is an error."""

    async def send(self, shipment: Shipment) -> Outcome:
        outcome = await super().send(shipment)
        if outcome.status is None:
            raise OSError(outcome.reason)
        return outcome


Behaviour = Callable[[WebhooksContract, Sender, Receivers], Awaitable[None]]


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (CarelessSender, WebhooksContract.test_an_answer_that_is_no_success_is_told),
        (CarelessSender, WebhooksContract.test_a_redirect_is_not_followed),
        (CarelessSender, WebhooksContract.test_nothing_reaches_an_address_that_is_not_allowed),
        (CarelessSender, WebhooksContract.test_what_is_no_url_is_told_and_not_tried),
        (AnyAddressSender, WebhooksContract.test_one_address_that_is_not_allowed_spoils_a_name),
        (RaisingSender, WebhooksContract.test_where_nobody_listens_nothing_is_taken),
        (RaisingSender, WebhooksContract.test_a_receiver_that_never_answers_is_given_up),
    ],
)
async def test_a_wrong_driver_is_rejected(wrong: type[MemorySender], behaviour: Behaviour) -> None:
    sender = wrong(parse_networks([ALLOWED]))
    with pytest.raises((AssertionError, OSError)):
        await behaviour(WebhooksContract(), sender, MemoryReceivers(sender))
