"""The installation's firewall in the kernel: loaded whole, and looked at afterwards.

Theory. Other tools of a host change the firewall too, and some begin by removing all of it (`nft flush ruleset`). The kernel
numbers the states of its rules (the generation), so one question tells that nothing has changed since our last load. A few
VMs that come or go are a few elements (`rules_members`), which are changed in that state or not at all (`nft_elements`);
else all is loaded by `nft`, as it is where something has changed.

Whether that took something of ours away is seen by the shape of our tables: every set with so many elements, every chain
with so many rules. That finds what a careless tool does; root who means it is not somebody to be found.

Traps: `nft` in this process (libnftables) is unsafe; the generation is that of a network namespace, so that of another
installation's load counts too, and is only a reason to look.
Source: linux/netfilter/nf_tables.h, libnftables-json(5).
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plasmavmc.errors import HostError
from plasmavmc.host.helper import connection_limits, rules, rules_ports
from plasmavmc.host.helper.nft import NamedSet, Table
from plasmavmc.host.helper.nft_elements import ANSWER_S, ATTRIBUTE, HEADER, NETLINK_NETFILTER, Layout, batch, commit
from plasmavmc.host.helper.rules_members import Ledger, Marks
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Member, RuleSet, Source
from plasmavmc.host.ports import OpenPort, PublishSite
from plasmavmc.host.run import PATH, find_program

_NFT_TIMEOUT_S = 20.0
_REFUSED_S = 1.0
_GET_GENERATION = 10 << 8 | 16
_GENERATION_ID = 1
_ANSWER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Applied:
    """Rules that are in force."""

    rules: RuleSet
    guarded: bool
    ledger: Ledger
    layouts: Mapping[tuple[str, str], Layout]


class Firewall:
    """Loads the rules, and remembers what they were."""

    def __init__(self, names: HostNames, publish: PublishSite) -> None:
        self._names = names
        self._publish = publish
        self._applied: _Applied | None = None
        self._tables: Mapping[str, Table] | None = None
        """Those of the rules that are in force; None where they were not made."""
        self._doubtful = False
        """A change went wrong, and so did the load of everything."""
        self._generation: int | None = None
        """In which all of it was there."""
        self._ports: tuple[OpenPort, ...] | None = None
        self._port_sets: Mapping[str, NamedSet] = {}
        self._connections: int | None = None
        """The limit of each VM that is in force; None where that is not known."""
        self._refused: Mapping[str, int] = {}
        self._refused_due = 0.0

    def apply(self, wanted: RuleSet, *, guarded: bool) -> None:
        """Have the tables be those for these rules (`rules.tables`). Raises `HostError` `host-firewall`."""
        if generation() != self._generation:
            self._limits_fault()
        self._limit(wanted.connections)
        present, marks = self._expected(), self._marks.following(wanted.members)
        tables = self._tables_of(wanted, marks, guarded=guarded)
        before, known = generation(), self._generation
        untouched = before is not None and before == known
        text = rules.render_change(self._names, present, tables) if untouched else None
        if text != "":
            self._generation = None  # should it fail, all of it is loaded the next time
            _nft("-f", "-", text=rules.render(self._names, tables) if text is None else text)
            after = generation()
            self._generation = after if before is not None and after == following(before) else None
        ledger = Ledger(marks, wanted.members, wanted.sources, guarded=guarded)
        layouts = {(family, name): Layout.of(each) for family, of in tables.items() for name, each in of.sets.items()}
        self._applied, self._tables, self._doubtful = _Applied(wanted, guarded, ledger, layouts), tables, False

    def change(self, wanted: RuleSet, coming: Sequence[Member], leaving: Sequence[Member], *, guarded: bool) -> None:
        """As `apply`, where of the members these alone, and else at most the open ports and the VMs of other nodes, are
        others than those of the rules that were applied last. But for open ports it takes as long as the change is large."""
        applied = self._applied
        if (
            applied is None
            or (guarded, wanted.ports) != (applied.guarded, applied.rules.ports)
            or not self._changed(applied, wanted, coming, leaving)
        ):
            self.apply(wanted, guarded=guarded)

    def _changed(self, applied: _Applied, wanted: RuleSet, coming: Sequence[Member], leaving: Sequence[Member]) -> bool:
        """Whether there was a change of elements, and the kernel has taken it."""
        before = self._generation
        change = applied.ledger.change(coming, leaving, *_differing(wanted.sources, applied.rules.sources))
        self._applied, self._tables = replace(applied, rules=wanted), None
        if before is None or change.is_empty:
            return False
        self._applied, self._generation, self._doubtful = None, None, True
        try:
            commit(batch(self._names.table, applied.layouts, change, before))
        except OSError:
            return False
        self._applied, self._generation, self._doubtful = replace(applied, rules=wanted), following(before), False
        return True

    def fault(self) -> str:
        """What is missing of the rules that were applied last, in words."""
        if self._doubtful:
            return f"the last change of the tables {self._names.table} could not be made"
        now = generation()
        if self._applied is None or (now is not None and now == self._generation):
            return ""
        for family, table in self._expected().items():
            if fault := self._fault_of(family, table):
                return fault
        if fault := self._limits_fault():
            return fault
        self._generation = now
        return ""

    def remove(self) -> None:
        """Remove the tables, where they are. Raises `HostError` `host-firewall`."""
        self._applied = self._tables = self._connections = None
        self._doubtful = False
        _nft("-f", "-", text=rules.render_removal(self._names) + connection_limits.render(self._names, 0))

    def refused(self) -> Mapping[str, int]:
        """Connections that were refused since the limit is in force, by MAC; as of a moment ago, for to look takes long."""
        now = time.monotonic()
        if self._connections and now >= self._refused_due:
            try:
                listed = _nft("--json", "list", "set", "inet", self._names.limits_table, "refused")
            except HostError:
                return {}
            self._refused, self._refused_due = connection_limits.refused_in(json.loads(listed)), now + _REFUSED_S
        return self._refused

    @property
    def _marks(self) -> Marks:
        return Marks() if self._applied is None else self._applied.ledger.marks

    def _expected(self) -> Mapping[str, Table]:
        """What is in force; made when it is asked for, since that takes long with many VMs."""
        if self._tables is None and self._applied is not None:
            self._tables = self._tables_of(self._applied.rules, self._marks, guarded=self._applied.guarded)
        return self._tables or {}

    def _tables_of(self, wanted: RuleSet, marks: Marks, *, guarded: bool) -> Mapping[str, Table]:
        sets = self._open(wanted.ports)
        return rules.tables(self._names, wanted, marks, guarded=guarded, publish=self._publish, port_sets=sets)

    def _open(self, ports: tuple[OpenPort, ...]) -> Mapping[str, NamedSet]:
        """The sets of open ports, the same ones for the same ports: they are many, and stay as VMs come and go."""
        if ports is not self._ports:
            self._ports, self._port_sets = ports, rules_ports.port_sets(ports)
        return self._port_sets

    def _limit(self, most: int) -> None:
        """Hold each VM to so many connections; where it is so, what is counted stays."""
        if most != self._connections:
            self._connections = None
            _nft("-f", "-", text=connection_limits.render(self._names, most))
            self._connections, self._refused = most, {}

    def _limits_fault(self) -> str:
        """What is missing of the limits, which are not known to be in force then."""
        wanted = connection_limits.chains_of(self._names, self._connections or 0)
        if not wanted:
            return ""
        name = self._names.limits_table
        try:
            found = rules.shape_of(json.loads(_nft("--json", "--terse", "list", "table", "inet", name)))
        except HostError:
            found = {}
        lacking = [chain for chain, size in wanted.items() if found.get(chain) != size]
        if lacking:
            self._connections = None
        return f"{', '.join(lacking)} of the table inet {name} are not as they were" if lacking else ""

    def _fault_of(self, family: str, table: Table) -> str:
        try:
            listed = _nft("--json", "list", "table", family, self._names.table)
        except HostError:
            return f"the table {family} {self._names.table} is gone"
        found = rules.shape_of(json.loads(listed))
        for name, size in table.shape.items():
            if found.get(name) != size:
                return (
                    f"{name} of the table {family} {self._names.table} holds {found.get(name, 0)} entries, not {size}"
                )
        return ""


def _differing(wanted: tuple[Source, ...], present: tuple[Source, ...]) -> tuple[frozenset[Source], frozenset[Source]]:
    """Those that come, and those that go."""
    if wanted == present:
        return frozenset(), frozenset()
    new, old = frozenset(wanted), frozenset(present)
    return new - old, old - new


def following(number: int) -> int:
    """The generation after that one; none is 0."""
    return number + 1 & 0xFFFF_FFFF or 1


def generation() -> int | None:
    """The number of the state that the namespace's rules are in; None where the kernel does not say."""
    request = HEADER.pack(HEADER.size, _GET_GENERATION, 1, 1, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.settimeout(ANSWER_S)
        try:
            link.sendto(request, (0, 0))
            answer = link.recv(_ANSWER_BYTES)
        except OSError:
            return None
    return _generation_in(answer)


def _generation_in(answer: bytes) -> int | None:
    at = HEADER.size
    while at + ATTRIBUTE.size <= len(answer):
        length, kind = ATTRIBUTE.unpack_from(answer, at)
        if kind == _GENERATION_ID and length == ATTRIBUTE.size + 4:
            return int.from_bytes(answer[at + ATTRIBUTE.size : at + length], "big")
        at += max(length + 3 & ~3, ATTRIBUTE.size)
    return None


def _nft(*arguments: str, text: str = "") -> bytes:
    try:
        done = subprocess.run(
            [find_program("nft"), *arguments],
            input=text.encode(),
            capture_output=True,
            timeout=_NFT_TIMEOUT_S,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError("host-firewall", f"nft did not end within {_NFT_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace").strip()[:500]
        raise HostError("host-firewall", "nft refused the rules", details=complaint)
    return done.stdout
