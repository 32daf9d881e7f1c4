"""What an app may open connections to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, View
from shellwego.core.destinations import MAX_DESTINATIONS, Destination, DestinationWish, Egress, IpProtocol

Mode = Literal["open", "listed"]
ProtocolName = Literal["any", "tcp", "udp", "icmp"]


class DestinationBody(Body):
    """A network, and of it what a protocol and ports leave."""

    network: Annotated[str, Field(min_length=1, max_length=64, examples=["203.0.113.0/24"])]
    """Of IPv4; an address alone is a network of one."""
    protocol: ProtocolName = "any"
    ports: Annotated[str, Field(max_length=11, examples=["443", "8000-8100"])] = ""
    """Of tcp or udp; empty: all."""

    def wish(self) -> DestinationWish:
        return DestinationWish(network=self.network, protocol=IpProtocol(self.protocol), ports=self.ports)


Destinations = Annotated[list[DestinationBody], Field(max_length=MAX_DESTINATIONS)]


class EgressPatch(Body):
    """What is left out stays as it is. All of it is done, or nothing."""

    mode: Mode | None = None
    """`listed`: connections to what is on the list only, those that are open too; `open`: to whatever is not closed to every
    VM. The list is kept in either."""
    allow: Destinations = Field(default_factory=list)
    """To go on the list."""
    deny: Destinations = Field(default_factory=list)
    """To go off the list, each as it is on it."""


class DestinationView(View):
    network: str
    protocol: ProtocolName
    ports: str


class EgressView(View):
    mode: Mode
    destinations: list[DestinationView]


def egress_view(egress: Egress) -> EgressView:
    return EgressView(
        mode="listed" if egress.listed else "open",
        destinations=[_destination_view(each) for each in egress.destinations],
    )


def _destination_view(destination: Destination) -> DestinationView:
    return DestinationView(network=destination.network, protocol=destination.protocol.value, ports=destination.ports)
