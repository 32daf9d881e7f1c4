"""What a VM brings to the firewall's sets, so that one which comes or goes costs the same beside any number. Pure.

Theory. Some elements are a VM's own: they come and go with it. Others are there for all VMs of a private network, or with
one list of destinations or openings: they come with the first of them and go with the last. And where rules name an
identity, those that are known by it, here and on other nodes, are elements as long as some rule does. `Ledger` counts whose
they are, and keeps the small numbers that stand for networks, lists and identities. Whole tables (`rules.tables`) are made
of the very same elements.

Trap: whatever a member says has to be said here as well. What is missing would be in force from the next whole load on only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop, heappush
from ipaddress import IPv6Address
from itertools import chain, count
from typing import Generic, NamedTuple, TypeVar

from plasmavmc.host.addresses import network_of
from plasmavmc.host.helper import rules_groups, rules_policy
from plasmavmc.host.helper.nft_elements import Change, Element
from plasmavmc.host.operations import Member, Source

INET, BRIDGE = "inet", "bridge"
_REMEMBERED = 8192
"""Members of a host that are looked at again with each whole load."""

K = TypeVar("K", str, IPv6Address, tuple[str, ...])
_Said = Iterator[tuple[str, str]]
"""Names of sets, with an element each."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Small numbers for networks, to be carried as a mark; 0 means none. A network keeps its number from one rule set to the
    next, so that who comes or goes changes nothing of the others."""

    ids: Mapping[str, int] = field(default_factory=dict)
    private: Mapping[IPv6Address, int] = field(default_factory=dict)
    """By what addresses of the private network say."""
    lists: Mapping[rules_policy.Listed, int] = field(default_factory=dict)
    """Of destinations."""
    identities: Mapping[str, int] = field(default_factory=dict)
    """That ingress names."""
    openings: Mapping[rules_groups.Opened, int] = field(default_factory=dict)
    """Lists of them."""

    def following(self, members: Sequence[Member]) -> Marks:
        """Those for the next members."""
        private = {network_of(member.ipv6) for member in members if member.ipv6 is not None}
        rules = [member.ingress for member in members if member.ingress]  # of many members, few may have any
        return Marks(
            numbered({member.network_id for member in members}, self.ids),
            numbered(private, self.private),
            numbered(rules_policy.lists_of(members), self.lists),
            numbered({each for ingress in rules for each in rules_groups.named_in(ingress)}, self.identities),
            numbered({each for ingress in rules for each in rules_groups.lists_in(ingress)}, self.openings),
        )


def numbered(wanted: Set[K], before: Mapping[K, int]) -> dict[K, int]:
    """A number above 0 for each; what had one before keeps it."""
    kept = {each: before[each] for each in wanted if each in before}
    taken = frozenset(kept.values())
    free = (number for number in count(1) if number not in taken)
    return kept | {each: next(free) for each in sorted(wanted - kept.keys())}


def own_elements(member: Member, marks: Marks) -> _Said:
    """Of the table that decides about packets."""
    (address, six), mark = _texts(member).place, marks.ids[member.network_id]
    yield "networks", f"{address} : {mark}"
    yield "reachable", f"{address} . {mark}"
    yield "here", address
    if six:
        yield "here6", six
    if member.egress is not None:
        yield "egress_held", address
        yield "egress_lists", f"{address} : {marks.lists[rules_policy.listed(member.egress)]}"
    yield from rules_groups.own_elements(_texts(member).place, member.ingress, marks.identities, marks.openings)


def frame_elements(member: Member) -> _Said:
    """Of the table that decides about frames."""
    texts = _texts(member)
    yield "sources", texts.source
    if texts.source6:
        yield "sources6", texts.source6


def network_elements(network: IPv6Address, number: int) -> _Said:
    """Those of a private network."""
    yield "networks6", f"{network} : {number}"
    yield "reachable6", f"{network} . {number}"


def list_elements(listed: rules_policy.Listed, number: int) -> _Said:
    """Those of a list of destinations."""
    for each in listed:
        yield "egress_open", f"{number} . {each}"


def packet_sets(members: Sequence[Member], sources: Iterable[Source], marks: Marks) -> Mapping[str, tuple[str, ...]]:
    """Elements of the table that decides about packets, by set; of others there are none."""
    own = (own_elements(member, marks) for member in members)
    private = (network_elements(*each) for each in marks.private.items())
    lists = (list_elements(*each) for each in marks.lists.items())
    openings = (rules_groups.list_elements(*each) for each in marks.openings.items())
    known = (
        rules_groups.identity_elements(place, marks.identities[identity])
        for identity, place in _places(members, sources)
        if identity in marks.identities
    )
    return _by_set(chain.from_iterable((*own, *private, *lists, *openings, *known)))


def frame_sets(members: Iterable[Member]) -> Mapping[str, tuple[str, ...]]:
    """Elements of the table that decides about frames, likewise."""
    return _by_set(chain.from_iterable(map(frame_elements, members)))


def _by_set(said: _Said) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, element in said:
        found.setdefault(name, []).append(element)
    return {name: tuple(elements) for name, elements in found.items()}


class Ledger:
    """The members of the rules in force, and VMs of other nodes, as far as the sets say anything of them. `guarded`: nothing
    is said of frames."""

    def __init__(
        self, marks: Marks, members: Sequence[Member], sources: Iterable[Source] = (), *, guarded: bool
    ) -> None:
        """`marks` are those of these members."""
        self._guarded = guarded
        self._ids = _Numbers(marks.ids, (member.network_id for member in members))
        self._private = _Numbers(
            marks.private, (network_of(member.ipv6) for member in members if member.ipv6 is not None)
        )
        self._lists = _Numbers(
            marks.lists, (rules_policy.listed(member.egress) for member in members if member.egress is not None)
        )
        rules = [member.ingress for member in members if member.ingress]
        self._identities = _Numbers(marks.identities, chain.from_iterable(map(rules_groups.named_in, rules)))
        self._openings = _Numbers(marks.openings, chain.from_iterable(map(rules_groups.lists_in, rules)))
        self._known: defaultdict[str, Counter[rules_groups.Place]] = defaultdict(Counter)
        """Who is known by each identity, whether rules name it or not."""
        for identity, place in _places(members, sources):
            self._known[identity][place] += 1

    @property
    def marks(self) -> Marks:
        return Marks(self._ids.held, self._private.held, self._lists.held, self._identities.held, self._openings.held)

    def change(
        self,
        coming: Iterable[Member],
        leaving: Iterable[Member],
        known: Iterable[Source] = (),
        unknown: Iterable[Source] = (),
    ) -> Change:
        """Let members, and VMs of other nodes, come and go, who may be the same ones with something else to say; what that
        is of elements. Each of those is somebody's who comes, or who goes, or of both: then it stays."""
        owners: Counter[Element] = Counter()
        for member in coming:
            owners.update(self._come(member))
        for source in known:
            owners.update(self._recognized(*_place_away(source), 1))
        for member in leaving:
            owners.subtract(self._go(member))
        for source in unknown:
            owners.subtract(self._recognized(*_place_away(source), -1))
        return Change(
            frozenset(each for each, more in owners.items() if more > 0),
            frozenset(each for each, more in owners.items() if more < 0),
        )

    def _come(self, member: Member) -> list[Element]:
        first = self._counted(member, 1)
        return [*first, *self._recognized(*_place_here(member), 1), *self._own(member)]

    def _go(self, member: Member) -> list[Element]:
        own = self._own(member)
        return [*own, *self._recognized(*_place_here(member), -1), *self._counted(member, -1)]

    def _recognized(self, identity: str, place: rules_groups.Place, by: int) -> list[Element]:
        """One more, or less, who is known by an identity."""
        if not identity:
            return []
        known = self._known[identity]
        known[place] += by
        if not known[place]:
            del known[place]
        if not known:
            del self._known[identity]
        number = self._identities.held.get(identity, 0)
        return [Element(INET, *each) for each in rules_groups.identity_elements(place, number)] if number else []

    def _own(self, member: Member) -> list[Element]:
        """What is of nobody else."""
        frames = () if self._guarded else frame_elements(member)
        return [
            *(Element(BRIDGE, *each) for each in frames),
            *(Element(INET, *each) for each in own_elements(member, self.marks)),
        ]

    def _counted(self, member: Member, by: int) -> list[Element]:
        """What comes with the first who has it, or goes with the last."""
        return [Element(INET, *each) for each in self._shared(member, by)]

    def _shared(self, member: Member, by: int) -> _Said:
        self._ids.count(member.network_id, by)
        if member.ipv6 is not None:
            network = network_of(member.ipv6)
            number, alone = self._private.count(network, by)
            yield from network_elements(network, number) if alone else ()
        if member.egress is not None:
            listed = rules_policy.listed(member.egress)
            number, alone = self._lists.count(listed, by)
            yield from list_elements(listed, number) if alone else ()
        for opened in rules_groups.lists_in(member.ingress):
            number, alone = self._openings.count(opened, by)
            yield from rules_groups.list_elements(opened, number) if alone else ()
        for identity in rules_groups.named_in(member.ingress):
            number, alone = self._identities.count(identity, by)
            for place in self._known[identity].elements() if alone and identity in self._known else ():
                yield from rules_groups.identity_elements(place, number)


class _Numbers(Generic[K]):
    """A number above 0 for each thing that somebody has, for as long as somebody does."""

    def __init__(self, numbers: Mapping[K, int], holders: Iterable[K]) -> None:
        self.held: dict[K, int] = dict(numbers)
        self._holders: Counter[K] = Counter(holders)
        taken = frozenset(numbers.values())
        self._next = max(taken, default=0) + 1
        self._free = [number for number in range(1, self._next) if number not in taken]
        heapify(self._free)

    def count(self, thing: K, by: int) -> tuple[int, bool]:
        """One holder more (1) or less (-1): its number, and whether that was the first or the last one."""
        number = self.held.get(thing) or self._draw()
        self._holders[thing] += by
        if self._holders[thing]:
            self.held[thing] = number
        else:
            del self._holders[thing], self.held[thing]
            heappush(self._free, number)
        return number, self._holders[thing] == max(by, 0)

    def _draw(self) -> int:
        if self._free:
            return heappop(self._free)
        self._next += 1
        return self._next - 1


class _Texts(NamedTuple):
    """A member in the sets, as far as it is the same in every rule set."""

    place: rules_groups.Place
    source: str
    source6: str
    """Empty where it has no private address."""


@lru_cache(_REMEMBERED)
def _texts(member: Member) -> _Texts:
    source, six = f'"{member.tap}" . {member.mac}', "" if member.ipv6 is None else str(member.ipv6)
    place = rules_groups.Place(str(member.ipv4), six)
    return _Texts(place, f"{source} . {place.four}", f"{source} . {six}" if six else "")


_Known = tuple[str, rules_groups.Place]
"""An identity, and who is known by it."""


def _place_here(member: Member) -> _Known:
    return member.identity, _texts(member).place


def _place_away(source: Source) -> _Known:
    return source.identity, rules_groups.Place("", str(source.ipv6))


def _places(members: Iterable[Member], sources: Iterable[Source]) -> Iterator[_Known]:
    return (each for each in chain(map(_place_here, members), map(_place_away, sources)) if each[0])
