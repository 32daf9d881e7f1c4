"""Driver `memory`: names, addresses and receivers as dictionaries. For tests and simulation; obeys the port's contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address

from shellwego.core.egress import Network, check_addresses, parse_target
from shellwego.core.errors import InvalidError
from shellwego.ports.webhooks import Outcome, Shipment

Receiver = Callable[[Shipment], int | None]
"""Answers with a status, or (None) never."""


class MemorySender:
    """`networks`: those that the operator allows."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)
        self.names: dict[str, tuple[str, ...]] = {}
        """Host → its addresses."""
        self.receivers: dict[tuple[str, int], Receiver] = {}
        """(Address, port) → who answers there."""

    async def send(self, shipment: Shipment) -> Outcome:
        try:
            target = parse_target(shipment.url, self._networks)
            texts = (target.host,) if target.literal else self.names.get(target.host, ())
            check_addresses(target, [ip_address(text) for text in texts], self._networks)
        except InvalidError as error:
            return Outcome(None, error.message, 0.0)
        receiver = next(
            (self.receivers[text, target.port] for text in texts if (text, target.port) in self.receivers), None
        )
        if receiver is None:
            return Outcome(None, "nobody answers there", 0.0)
        status = receiver(shipment)
        if status is None:
            return Outcome(None, "no answer in time", 10.0)
        return Outcome(status, "" if 200 <= status < 300 else f"it answered {status}", 0.0)
