"""Port: sends one delivery of a webhook to its receiver, over a network that nobody is to be trusted in.

The address is looked up once, all of what the name means is judged by `core.egress`, and the connection goes to an address
that was judged. Redirects are not followed, of the answer nothing is read but its status, and everything has an end in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Shipment:
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int | None
    """HTTP status of the answer; None: there was none."""
    reason: str
    """Why it was not taken, for the webhook's owner; empty where it was."""
    seconds: float

    @property
    def taken(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status < 300


class Sender(Protocol):
    async def send(self, shipment: Shipment) -> Outcome:
        """POST it. What goes wrong outside is an outcome and never an error."""
