"""`internal` as one private network has it: what its names mean, and what is asked most often in its final bytes.

A name below which others are exists, though it has no records itself; so does one whose instances are all gone or ill: the
answer is then empty, and not that there is no such name. Addresses are given in turn, so that those who take the first one
share them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from plasmavmc.network.dns import wire
from plasmavmc.network.dns.hot import HotAnswers
from plasmavmc.network.dns.names import NetworkNames
from plasmavmc.network.dns.turns import Turns
from plasmavmc.network.dns.wire import Query, Record, Section

TTL_S = 5
APEX = wire.name_of("internal")
_AUTHORITY = wire.start_of_authority(APEX, wire.name_of("hostmaster.internal"), TTL_S)
_LOCALHOST = {wire.A: (bytes((127, 0, 0, 1)),), wire.AAAA: (bytes(15) + b"\1",)}
_OF_VMS = ".vm"
"""How names end that stand for one VM; by these, addresses are turned into names."""


@dataclass(slots=True)
class Zone:
    """The names of one network. What cannot be a name is left out: it would be nobody's answer."""

    records: dict[bytes, dict[int, tuple[bytes, ...]]] = field(default_factory=dict)
    """Data by name and type; without any for a name that is known and leads nowhere."""
    hot: HotAnswers = field(default_factory=HotAnswers)
    _turns: dict[tuple[bytes, int], Turns] = field(default_factory=dict)
    """By name and type, of those that were asked for."""

    @classmethod
    def of(cls, names: NetworkNames) -> Zone:
        zone = cls()
        zone.records[APEX] = {wire.SOA: (_AUTHORITY,)}
        zone.records[wire.name_of("localhost")] = dict(_LOCALHOST)
        for name, addresses in names.hosts.items():
            zone._add(name, _address_records(addresses))
            if name.endswith(_OF_VMS):
                zone._add_reverse(name, addresses)
        for name, places in names.services.items():
            fitting = (place for place in places if _fits(place.target))
            zone._add(name, [(wire.SRV, wire.service_data(below(each.target), each.port)) for each in fitting])
        for name, texts in names.texts.items():
            zone._add(name, [(wire.TXT, wire.text_data(text)) for text in texts])
        return zone

    def _add(self, name: str, found: Iterable[tuple[int, bytes]]) -> None:
        if _fits(name):
            self._note(below(name), found)

    def _add_reverse(self, name: str, addresses: Iterable[str]) -> None:
        for address in filter(None, map(_address, addresses)):
            reverse = wire.name_of(address.reverse_pointer)
            if _fits(name) and reverse not in self.records:
                self.records[reverse] = {wire.PTR: (below(name),)}

    def _note(self, name: bytes, found: Iterable[tuple[int, bytes]]) -> None:
        known = self.records.setdefault(name, {})
        for type_, data in found:
            known[type_] = (*known.get(type_, ()), data)
        while (name := wire.parent_of(name)) != APEX:
            self.records.setdefault(name, {})

    def quick(self, rest: bytes) -> bytes | None:
        """The answer to a question that was asked before, both without their ids."""
        return self.hot.get(rest)

    def answer(self, query: Query, zone: bytes, limit: int, *, keep: bytes = b"") -> bytes:
        """The answer to a question that belongs to one of our zones (`reserved`). `keep`: the question without its id, to
        be answered quickly the next time."""
        found = self.records.get(query.name)
        data = found.get(query.type, ()) if found is not None else ()
        if not data:
            rcode = wire.NXDOMAIN if found is None and zone != b"\0" else wire.NOERROR
            authority = wire.section((Record(wire.SOA, TTL_S, _AUTHORITY, owner=zone),))
            answer = wire.encode(query, rcode, authority=authority, authoritative=True, limit=limit)
            self._keep(keep, answer[2:])
            return answer
        turns = self._turns_of(query, data)
        records = Section(len(turns), turns.take())
        answer = wire.encode(query, wire.NOERROR, records, additional=turns.extra, authoritative=True, limit=limit)
        start = wire.HEADER + len(query.question)
        if wire.is_cut(answer):
            self._keep(keep, answer[2:])
        else:
            self._keep(keep, answer[2:start], turns, answer[start + turns.size :])
        return answer

    def _turns_of(self, query: Query, data: Iterable[bytes]) -> Turns:
        key = query.name, query.type
        if key not in self._turns:
            extra = wire.section(self._targets(data)) if query.type == wire.SRV else wire.NO_RECORDS
            self._turns[key] = Turns([Record(query.type, TTL_S, each) for each in data], extra)
        return self._turns[key]

    def _targets(self, data: Iterable[bytes]) -> tuple[Record, ...]:
        """The addresses of what service records name."""
        targets = dict.fromkeys(each[6:] for each in data)
        return tuple(
            Record(type_, TTL_S, address, owner=target)
            for target in targets
            for type_ in (wire.A, wire.AAAA)
            for address in self.records.get(target, {}).get(type_, ())
        )

    def _keep(self, rest: bytes, head: bytes, turns: Turns | None = None, tail: bytes = b"") -> None:
        if rest:
            self.hot.keep(rest, head, turns, tail)


def below(name: str) -> bytes:
    """A name below `internal`.

    Raises:
        MalformedError: it cannot be one.
    """
    return wire.name_of(f"{name}.internal")


def _fits(name: str) -> bool:
    try:
        below(name)
    except wire.MalformedError:
        return False
    return bool(name)


def _address_records(addresses: Iterable[str]) -> list[tuple[int, bytes]]:
    return [wire.address_data(found) for found in map(_address, addresses) if found is not None]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
