"""What a VM may open connections to."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

from plasmavmc.errors import InvalidSpecError
from plasmavmc.policy import LAST_PORT, MAX_DESTINATIONS, Destination, IpProtocol
from plasmavmc.rpc.conversions.values import enum_from_pb, enum_to_pb
from plasmavmc.rpc.v1 import types_pb2

_PROTOCOL_NAMES = {int(value): name for name, value in types_pb2.Destination.Protocol.items()}


def egress_to_pb(destinations: Sequence[Destination]) -> types_pb2.Egress:
    return types_pb2.Egress(destinations=[_destination_to_pb(each) for each in destinations])


def egress_from_pb(field: str, message: types_pb2.Egress) -> tuple[Destination, ...]:
    """A list of destinations.

    Raises:
        InvalidSpecError: with the path of the field at fault.
    """
    if len(message.destinations) > MAX_DESTINATIONS:
        raise InvalidSpecError(f"{field}.destinations", f"a VM has {MAX_DESTINATIONS} destinations at most")
    return tuple(
        _destination_from_pb(f"{field}.destinations[{index}]", each) for index, each in enumerate(message.destinations)
    )


def protocol_to_pb(protocol: IpProtocol) -> types_pb2.Destination.Protocol.ValueType:
    return enum_to_pb(protocol, "PROTOCOL", types_pb2.Destination.Protocol.Value)


def protocol_from_pb(field: str, value: int) -> IpProtocol:
    """A protocol, `ANY` where none is named.

    Raises:
        InvalidSpecError: it is none that is known.
    """
    if not value:
        return IpProtocol.ANY
    return enum_from_pb(field, IpProtocol, _PROTOCOL_NAMES, value, "PROTOCOL")


def last_port(first: int, last: int) -> int:
    """The last port of a range, where it may be left out."""
    return last or first or LAST_PORT


def _destination_to_pb(destination: Destination) -> types_pb2.Destination:
    return types_pb2.Destination(
        network=str(destination.network),
        protocol=protocol_to_pb(destination.protocol),
        first_port=destination.first_port,
        last_port=destination.last_port,
    )


def _destination_from_pb(field: str, message: types_pb2.Destination) -> Destination:
    try:
        network = IPv4Network(message.network)
    except ValueError:
        raise InvalidSpecError(f"{field}.network", f"{message.network[:40]!r} is no IPv4 network") from None
    protocol = protocol_from_pb(f"{field}.protocol", message.protocol)
    found = Destination(network, protocol, message.first_port, last_port(message.first_port, message.last_port))
    if fault := found.fault:
        raise InvalidSpecError(f"{field}.{fault[0]}", fault[1])
    return found
