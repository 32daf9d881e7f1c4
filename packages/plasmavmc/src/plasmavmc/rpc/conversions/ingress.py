"""What may be opened to a VM."""

from __future__ import annotations

from collections.abc import Sequence

from plasmavmc.errors import InvalidSpecError
from plasmavmc.policy import MAX_OPENINGS, Opening
from plasmavmc.rpc.conversions.egress import last_port, protocol_from_pb, protocol_to_pb
from plasmavmc.rpc.v1 import types_pb2


def ingress_to_pb(openings: Sequence[Opening]) -> types_pb2.Ingress:
    return types_pb2.Ingress(openings=[_opening_to_pb(each) for each in openings])


def ingress_from_pb(field: str, message: types_pb2.Ingress) -> tuple[Opening, ...]:
    """A list of openings.

    Raises:
        InvalidSpecError: with the path of the field at fault.
    """
    if len(message.openings) > MAX_OPENINGS:
        raise InvalidSpecError(f"{field}.openings", f"a VM has {MAX_OPENINGS} openings at most")
    return tuple(_opening_from_pb(f"{field}.openings[{index}]", each) for index, each in enumerate(message.openings))


def _opening_to_pb(opening: Opening) -> types_pb2.Opening:
    return types_pb2.Opening(
        identity=opening.identity,
        protocol=protocol_to_pb(opening.protocol),
        first_port=opening.first_port,
        last_port=opening.last_port,
    )


def _opening_from_pb(field: str, message: types_pb2.Opening) -> Opening:
    protocol = protocol_from_pb(f"{field}.protocol", message.protocol)
    last = last_port(message.first_port, message.last_port)
    found = Opening(message.identity, protocol, message.first_port, last)
    if fault := found.fault:
        raise InvalidSpecError(f"{field}.{fault[0]}", fault[1])
    return found
