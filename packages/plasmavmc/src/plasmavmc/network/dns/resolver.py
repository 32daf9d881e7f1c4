"""What is answered to whom. Who asks is known by his address, which the firewall verifies at each VM's tap.

A VM is answered by the names of its own network, as if there were no others; what is reserved is answered here or not at
all, and the rest is forwarded. Who is no VM of this host is refused whatever he asks.
Source: RFC 8482 (ANY), RFC 5936 (zone transfers), RFC 9619 (one question a message).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plasmavmc.host.operations import QUESTIONS_PER_SECOND
from plasmavmc.network.dns import wire
from plasmavmc.network.dns.names import Askers, Names, NetworkNames
from plasmavmc.network.dns.reserved import zone_of
from plasmavmc.network.dns.wire import MalformedError, Query
from plasmavmc.network.dns.zone import Zone

HOT_BYTES, HOT_BYTES_OF_NETWORK = 32 << 20, 2 << 20
"""What answers that are kept to be given quickly may take, of all networks that have VMs here, which share it alike."""


@dataclass(frozen=True, slots=True)
class ToForward:
    """A question that others are to be asked."""

    query: Query
    asker: str
    network: str


class Resolver:
    """See the module's head. `look` is called when a stranger asks: he may be a VM that nobody told of yet."""

    def __init__(self, look: Callable[[], None] = lambda: None, *, per_second: int = QUESTIONS_PER_SECOND) -> None:
        self._look = look
        self._per_second = per_second
        self._networks: dict[str, str] = {}
        self._names: dict[str, NetworkNames] = {}
        self._zones: dict[str, Zone] = {}
        self._of_asker: dict[str, Zone] = {}
        self._counts: dict[str, int] = {}

    def tell_askers(self, askers: Askers) -> None:
        """These are the VMs of this host."""
        self._networks = dict(askers.networks)
        self._join()

    def tell_names(self, names: Names) -> None:
        """These are the names. A network whose names are the same keeps its answers."""
        self._zones = {
            network: self._zones[network] if network in self._zones and self._names[network] == told else Zone.of(told)
            for network, told in names.networks.items()
        }
        self._names = dict(names.networks)
        self._join()

    def _join(self) -> None:
        asking = {
            network: self._zones.get(network) or Zone.of(NetworkNames()) for network in set(self._networks.values())
        }
        self._of_asker = {asker: asking[network] for asker, network in self._networks.items()}
        for network, zone in self._zones.items():
            if network not in asking:
                zone.hot.give_room(0)
        for zone in asking.values():
            zone.hot.give_room(min(HOT_BYTES_OF_NETWORK, HOT_BYTES // len(asking)))

    def network_of(self, asker: str) -> str:
        """The network of a VM of this host; empty for anybody else."""
        return self._networks.get(asker, "")

    def new_second(self) -> None:
        """Begin to count anew."""
        self._counts.clear()

    def hear(self, data: bytes, asker: str, *, udp: bool) -> bytes | ToForward | None:
        """The answer to a message; None: it gets none."""
        zone = self._of_asker.get(asker)
        count = self._counts.get(asker, 0)
        if count >= self._per_second:
            return None
        self._counts[asker] = count + 1
        if zone is not None and udp:
            quick = zone.quick(data[2:])
            if quick is not None:
                return data[:2] + quick
        return self._slowly(data, asker, zone, udp=udp)

    def _slowly(self, data: bytes, asker: str, zone: Zone | None, *, udp: bool) -> bytes | ToForward | None:
        try:
            query = wire.parse_query(data)
        except MalformedError:
            return _malformed(data)
        if zone is None:
            self._look()
            zone = self._of_asker.get(asker)
        refusal = wire.REFUSED if zone is None else _refusal(query)
        limit = limit_of(query, udp=udp)
        if zone is None or refusal:
            return wire.encode(query, refusal, limit=limit)
        apex = zone_of(query.name, query.type)
        if apex is not None:
            return zone.answer(query, apex, limit, keep=data[2:] if udp else b"")
        if not query.flags & wire.RD:
            return wire.encode(query, wire.REFUSED, limit=limit)
        return ToForward(query, asker, self._networks[asker])


def _malformed(data: bytes) -> bytes | None:
    """An answer is never answered, or two that answer each other would do so for ever."""
    try:
        _, flags, *_ = wire.header_of(data)
    except MalformedError:
        return None
    return None if flags & wire.QR else wire.encode_bare(data, wire.FORMERR)


def _refusal(query: Query) -> int:
    if query.opcode:
        return wire.NOTIMP
    if query.edns > 0:
        return wire.BADVERS
    if query.klass != wire.IN or query.type in (wire.ANY, wire.AXFR, wire.IXFR, wire.OPT):
        return wire.REFUSED
    return 0


def limit_of(query: Query, *, udp: bool) -> int:
    """Bytes that an answer may have."""
    if not udp:
        return wire.MAX_MESSAGE
    return query.payload if query.edns >= 0 else wire.PLAIN_UDP
