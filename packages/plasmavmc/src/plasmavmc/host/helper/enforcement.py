"""The rules in force: all that makes the host keep to a set of rules, brought there together and in one order.

The packet filter, the guards at the taps, what the bridge knows of its neighbours, and the connections that are remembered:
each holds a part of the rules, and none of them is right without the others. After a change that failed half way nobody
knows what is in force, and the next rules have to be told whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plasmavmc.host import protocol
from plasmavmc.host.helper.checks import check_rules, refusal
from plasmavmc.host.helper.checks_ports import check_ports
from plasmavmc.host.helper.connections import Connections
from plasmavmc.host.helper.departed import Departed
from plasmavmc.host.helper.ebpf_guard import TapGuard
from plasmavmc.host.helper.firewall import Firewall
from plasmavmc.host.helper.links import Links
from plasmavmc.host.helper.neighbours import Neighbours
from plasmavmc.host.helper.roster import Roster
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import CONNECTIONS, RuleSet
from plasmavmc.host.ports import PublishSite
from plasmavmc.types import NetworkUsage


class Enforcement:
    """The rules of one installation."""

    def __init__(self, names: HostNames, publish: PublishSite, links: Links, guard: TapGuard) -> None:
        self._names = names
        self._publish = publish
        self._links = links
        self._guard = guard
        self._neighbours = Neighbours(links.ip)
        self._firewall = Firewall(names, publish)
        self._connections = Connections(publish)
        self._departed = Departed()
        self._roster: Roster | None = None
        """Of the rules in force; None before any are, and where that is not known."""

    def apply(self, rules: RuleSet) -> None:
        """Have these rules in force, whatever was.

        Raises:
            HostError: they are refused, or the host does not take them.
        """
        check_rules(self._names, rules)
        roster = Roster(self._names, rules)
        check_ports(rules, self._publish)
        self._roster = None
        guarded = self._links.guard(rules.members)
        self._firewall.apply(rules, guarded=guarded)
        self._neighbours.set(self._names.bridge, rules.members)
        self._connections.keep_to(rules)
        self._departed.keep_to(rules.bridge, rules.members)
        self._roster = roster

    def change(self, request: protocol.RulesChange) -> None:
        """Have the rules in force with what comes and without what goes.

        Raises:
            HostError: they are refused, the host does not take them, or none are in force that could be changed.
        """
        roster, self._roster = self._roster, None  # should it fail or be refused, the next ones are told whole
        if roster is None:
            raise refusal("rules", "none are in force that could be changed")
        leaving = roster.change(request.added, request.removed, request.ports, request.sources)
        if roster.rules.ports and (request.ports is not None or leaving):
            check_ports(roster.rules, self._publish)
        guarded = self._links.change_guard(request.added, leaving)
        self._firewall.change(roster.rules, request.added, leaving, guarded=guarded)
        self._neighbours.change(self._names.bridge, roster.rules.members, request.added, leaving)
        self._connections.keep_to(roster.rules)
        self._departed.change(roster.rules.bridge, request.added, leaving)
        self._roster = roster

    def fault(self) -> str:
        """What of the packet filter is not as it was put there; empty: nothing."""
        return self._firewall.fault()

    def usage(self, taps: Iterable[str]) -> Mapping[str, NetworkUsage]:
        """What went through the taps that are counted, with the connections that were refused to their VMs."""
        counted = {name: used for name in taps if (used := self._guard.usage(name)) is not None}
        refused = self._firewall.refused() if counted else {}
        return {name: self._with_refused(name, used, refused) for name, used in counted.items()}

    def _with_refused(self, tap: str, used: NetworkUsage, refused: Mapping[str, int]) -> NetworkUsage:
        member = self._roster.member(tap) if self._roster is not None else None
        count = 0 if member is None else refused.get(member.mac, 0)
        return replace(used, dropped={**used.dropped, CONNECTIONS: count}) if count else used

    def remove(self) -> None:
        """Take the packet filter away, and with it the rules."""
        self._roster, self._departed = None, Departed()
        self._firewall.remove()
