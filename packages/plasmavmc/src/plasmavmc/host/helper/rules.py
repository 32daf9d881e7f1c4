"""The firewall of an installation as nftables text. Pure.

Theory. A VM sits alone behind its tap: an isolated port of the bridge, its address a /32 with the bridge's as on-link
gateway. So nothing passes from tap to tap as a frame; every packet is routed by the host, through the chains below.

Table `bridge`, at each frame that enters by a tap: IPv4, IPv6 and ARP only, and only with that tap's own MAC and address (in
ARP: of the sender). It is one look-up in a concatenated set, whatever the number of VMs. Of IPv6 no multicast, and nothing
of neighbour discovery: host and guest know each other's MAC, so a solicitation, an advertisement or a redirect could only
be about others. At each frame from the host to a tap: no broadcast and no multicast, which a bridge floods to all ports
where the host itself is the sender.

Where programs stand at the taps (`ebpf_guard`) they do all of this, and the table is empty.

Table `inet`:
- input: from a VM to the host, replies to the host's own connections, and questions for names to the gateway, where a
  resolver is. The gateway's address could be reached from other hosts as well; they get nothing at that port.
- forward between VMs: source and destination must be of one network id. The map gives the source's network as a mark, the
  set holds (destination, network). This is asked of every packet, before connection tracking: an address may be given to
  another tenant's VM while an old connection to it is still remembered.
- the same by IPv6 (`private`): platform and network number of both addresses are the same, which the addresses say by
  themselves (`host.addresses`): a map from the source's to a mark, a set of (the destination's, mark), with an element for
  each network that has a VM here. Asked of every packet too, and in both directions between nodes. Where it is to stay here
  there is besides a VM that has the address (`here6`): the host would ask for any other, of four thousand million in each
  network, and its memory of neighbours, which it has for all of its links, is full after a thousand. Of a VM here this is
  asked before its packet finds its way (`unknown`), since the kernel makes a neighbour then to tell it of a shorter one.
- of both, where the VM that is opened to has rules for that: what those let in (`rules_groups`).
- forward from a VM to elsewhere: not to link-local addresses (cloud metadata), not to what installations use, not to
  multicast, broadcast or reserved addresses, and where it has a list, to what is on that only (`rules_policy`); with source
  NAT. To a peer's gateway only replies, and to its host only at published ports and those of the web, where an
  edge may serve everybody. To the tunnel's port nowhere: with source
  NAT it would speak in the name of its host, which is all that the tunnel asks for. By IPv6 to peers' VMs of its network,
  and nowhere else.
- source NAT: a VM's connections leave from ports where no service of a host listens by itself. From another one they would
  take what somebody sends to that service for an answer to them, and have it.
- forward from elsewhere to a VM: replies, what comes in at open ports (`rules_ports`), and what a peer (another node of the
  platform) opens. It speaks as its gateway, an address that no VM there can send from; that nobody else on the way does is
  the underlay's to see to. By IPv6 what comes from VMs of a peer, never what claims to be from here; and what the way says
  of a packet that went out (too big). By IPv4 too only to an address that a VM has (`here`): the other end of a connection
  goes on sending when its VM is gone, and connections of a thousand such VMs would fill that memory as well.
- input: of the tunnel to other nodes (`vxlan`), with the platform's number, what their hosts send.
- where they are reached by WireGuard: input at its ports, what their hosts send; and of all that is from their networks, or
  for them, what comes or goes by its devices. So nobody on the way can speak as one of theirs, and while there is no tunnel
  nothing is sent in clear. This is asked before connection tracking, and after everything else.
- output: no ICMP redirects. The kernel would send them for VM to VM traffic, which leaves by the interface it came by, and
  the per-bridge switch for them does not help while the one for all interfaces is on.

`accept` ends a chain only in its own table: a stricter firewall of the operator's stays in force.

Where only elements differ from what is in force, only they are changed (`render_change`): one VM more is a few elements, of
any number.

Traps: else the text replaces both tables in one transaction (`table X`, `delete table X`, `table X {…}`), since nftables 1.0
has no `destroy`; elements of an empty set may not be written at all.
Source: nft(8); priorities: filter 0, srcnat 100, bridge filter -200.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network

from plasmavmc.host.addresses import NETWORK_MASK, NODE_MASK, node_mark
from plasmavmc.host.configuration import POOL
from plasmavmc.host.helper import rules_groups, rules_members, rules_policy, rules_ports, vxlan
from plasmavmc.host.helper.nft import NamedSet, Table
from plasmavmc.host.helper.rules_members import BRIDGE, INET, Marks
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import RESOLVER_PORT, RuleSet
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishSite
from plasmavmc.host.rotation import SLOTS

CLOSED_TO_VMS = (
    "0.0.0.0/8",
    str(POOL),
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
)
"""This network; all installations; loopback; link-local with the metadata service; multicast, reserved, broadcast."""
_OF_THE_WEB = (80, 443)
"""By TCP. An app's public name may lead to the host of any node that is an edge."""
OWN_PORTS = "32768-65535"
"""Of the host's, from which connections of VMs leave: services are below by custom, tunnels and published ports too."""
_DISCOVERY = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect"
_ON_THE_WAY = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem"
"""What ICMPv6 says of a packet that did not arrive (RFC 4443, section 3)."""
FAMILIES = (INET, BRIDGE)

_PEER_MASK = "ffff:ffff:ffff:ffff::"
_NETWORKS = "ipv4_addr; flags interval"


def tables(
    names: HostNames,
    rules: RuleSet,
    marks: Marks,
    *,
    guarded: bool = False,
    publish: PublishSite = NOTHING_PUBLISHED,
    port_sets: Mapping[str, NamedSet] | None = None,
) -> dict[str, Table]:
    """The installation's tables by family, where networks have these marks. `guarded`: programs at the taps do what that for
    frames would, so it is empty. `publish`: what may be published; nothing: there is nothing of open ports in it.
    `port_sets`: as `rules_ports` makes them of these rules, where that was done already."""
    frames = Table({}, {}) if guarded else _bridge_table(names, rules)
    return dict(zip(FAMILIES, (_inet_table(names, rules, marks, publish, port_sets), frames), strict=True))


def render(names: HostNames, wanted: Mapping[str, Table]) -> str:
    """The text for `nft -f -` that makes the installation's tables these."""
    lines = (line for family, table in wanted.items() for line in _lines(family, names, table))
    return "\n".join((*lines, ""))


def render_change(names: HostNames, present: Mapping[str, Table], wanted: Mapping[str, Table]) -> str | None:
    """The text that makes them these, where they are those before, by the elements that differ: it takes as long as the
    change is large, however many VMs there are. Empty: nothing differs. None: more than elements does."""
    if {family: table.frame for family, table in present.items()} != {
        family: table.frame for family, table in wanted.items()
    }:
        return None
    added, removed = [], []
    for family, table in wanted.items():
        for name, each in table.sets.items():
            if each is present[family].sets[name]:
                continue  # as open ports are, which are many and rarely others
            old = frozenset(present[family].sets[name].elements)
            new = frozenset(each.elements)
            added += _element_lines("add", f"{family} {names.table} {name}", sorted(new - old))
            removed += _element_lines("delete", f"{family} {names.table} {name}", map(_key_of, sorted(old - new)))
    return "".join(f"{line}\n" for line in (*removed, *added))


def _element_lines(what: str, place: str, elements: Iterable[str]) -> list[str]:
    text = ", ".join(elements)
    return [f"{what} element {place} {{ {text} }}"] if text else []


def _key_of(element: str) -> str:
    """Of a map's element, what it is found by."""
    return element.partition(" : ")[0]


def render_removal(names: HostNames) -> str:
    """The text that removes the installation's tables, where they are."""
    return "\n".join((*(line for family in FAMILIES for line in _replaced(family, names)), ""))


def shape_of(listing: Mapping[str, object]) -> dict[str, int]:
    """The shape of a table as `nft --json list table` shows it."""
    found: dict[str, int] = {}
    items = listing.get("nftables")
    for item in items if isinstance(items, list) else ():
        for kind, content in item.items():
            if kind in ("set", "map"):
                found[content["name"]] = len(content.get("elem", ()))
            elif kind == "chain":
                found.setdefault(content["name"], 0)
            elif kind == "rule":
                found[content["chain"]] = found.get(content["chain"], 0) + 1
    return found


def _replaced(family: str, names: HostNames) -> tuple[str, str]:
    """Remove a table whether or not it is there."""
    return (f"table {family} {names.table}", f"delete table {family} {names.table}")


def _lines(family: str, names: HostNames, table: Table) -> Iterator[str]:
    yield from _replaced(family, names)
    yield f"table {family} {names.table} {{"
    for name, each in table.sets.items():
        elements = f" elements = {{ {', '.join(each.elements)} }};" if each.elements else ""
        flags = " flags interval;" if each.ranges else ""
        yield f"{each.kind} {name} {{ type {each.type};{flags}{elements} }}"
    for name, rules in table.chains.items():
        yield f"chain {name} {{"
        yield from rules
        yield "}"
    yield "}"


def _inet_table(
    names: HostNames, rules: RuleSet, marks: Marks, publish: PublishSite, port_sets: Mapping[str, NamedSet] | None
) -> Table:
    chains = {
        **_host_chains(names, rules),
        **_forward_chains(names, rules.bridge.network),
        **_leaving_chains(names, rules),
        **(_sealed_chains(names) if rules.tunnel_ports else {}),
    }
    if not publish.allowed:
        return Table(_inet_sets(rules, marks), chains)
    return Table(
        sets={**_inet_sets(rules, marks), **(port_sets or rules_ports.port_sets(rules.ports))},
        chains={
            **rules_ports.port_chains(
                publish, rules_policy.held_at_ports(names.bridge), (vxlan.PORT, *rules.tunnel_ports)
            ),
            **rules_ports.woven(chains, rules.bridge),
        },
    )


def _inet_sets(rules: RuleSet, marks: Marks) -> dict[str, NamedSet]:
    said = rules_members.packet_sets(rules.members, rules.sources, marks)
    peers = tuple(str(peer.gateway) for peer in rules.peers)
    peers6 = tuple(str(peer.private.network_address) for peer in rules.peers if peer.private is not None)
    networks_of_peers = tuple(str(peer.network) for peer in rules.peers)
    sealed = {"sealed": NamedSet("set", _NETWORKS, networks_of_peers)} if rules.tunnel_ports else {}
    return {
        **sealed,
        "networks": NamedSet("map", "ipv4_addr : mark", said.get("networks", ())),
        "reachable": NamedSet("set", "ipv4_addr . mark", said.get("reachable", ())),
        "here": NamedSet("set", "ipv4_addr", said.get("here", ())),
        "peers": NamedSet("set", "ipv4_addr", peers),
        "networks6": NamedSet("map", "ipv6_addr : mark", said.get("networks6", ())),
        "reachable6": NamedSet("set", "ipv6_addr . mark", said.get("reachable6", ())),
        "here6": NamedSet("set", "ipv6_addr", said.get("here6", ())),
        "peers6": NamedSet("set", "ipv6_addr", peers6),
        "hosts": NamedSet("set", "ipv4_addr", tuple(str(host) for host in sorted({peer.via for peer in rules.peers}))),
        "published": NamedSet(
            "set", "inet_proto . inet_service", tuple(f"{each.transport} . {each.number}" for each in rules.published)
        ),
        "egress_held": NamedSet("set", "ipv4_addr", said.get("egress_held", ())),
        "egress_lists": NamedSet("map", "ipv4_addr : mark", said.get("egress_lists", ())),
        "egress_open": NamedSet(
            "set", "mark . ipv4_addr . inet_proto . inet_service", said.get("egress_open", ()), ranges=True
        ),
        **rules_groups.group_sets(said),
    }


def _host_chains(names: HostNames, rules: RuleSet) -> dict[str, tuple[str, ...]]:
    bridge, number = names.bridge, None if rules.tunnel_ports else vxlan.number_of(rules.peers)
    resolver = f"ip daddr {rules.bridge.gateway} meta l4proto {{ tcp, udp }} th dport {RESOLVER_PORT}"
    strangers = () if number is None else (f"udp dport {vxlan.PORT} @th,96,24 {number} ip saddr != @hosts drop",)
    return {
        "input": (
            "type filter hook input priority 0; policy accept;",
            f'iifname "{bridge}" jump to_host',
            *([f'iifname != "lo" {resolver} drop'] if rules.resolver else []),
            *strangers,
            *_wireguard_input(rules.tunnel_ports),
        ),
        "to_host": (
            "ct state established,related accept",
            *([f"{resolver} accept"] if rules.resolver else []),
            "drop",
        ),
        "output": (
            "type filter hook output priority 0; policy accept;",
            f'oifname "{bridge}" icmp type redirect drop',
            f'oifname "{bridge}" icmpv6 type nd-redirect drop',
        ),
    }


def _forward_chains(names: HostNames, network: IPv4Network) -> dict[str, tuple[str, ...]]:
    bridge, nobody_here = names.bridge, "ip6 daddr != @here6 drop"
    of_here = f"ip6 daddr & {NODE_MASK} == {node_mark(network)}"
    return {
        "private": (
            "meta mark set 0",
            f"meta mark set ip6 saddr & {NETWORK_MASK} map @networks6",
            f"ip6 daddr & {NETWORK_MASK} . meta mark @reachable6 goto ingress6",
            "drop",
        ),
        "between": (
            "meta nfproto ipv6 goto between6",
            "meta mark set 0",
            "meta mark set ip saddr map @networks",
            "ip daddr . meta mark @reachable goto ingress",
            "drop",
        ),
        "leaving": (
            f"ip6 daddr & {_PEER_MASK} @peers6 goto private",
            f"udp dport {vxlan.PORT} drop",
            "ip daddr @hosts jump to_node",
            "ip daddr @peers ct state established ct direction reply accept",
            f"ip daddr {{ {', '.join(CLOSED_TO_VMS)} }} drop",
            "meta nfproto ipv4 goto egress",
            "drop",
        ),
        "to_node": (
            "meta l4proto icmp ct state related return",
            "meta l4proto . th dport @published return",
            f"tcp dport {{ {', '.join(map(str, _OF_THE_WEB))} }} return",
            "drop",
        ),
        "egress": rules_policy.egress_chain(),
        **rules_groups.group_chains(),
        "between6": (nobody_here, "goto private"),
        "entering6": (
            nobody_here,
            f"icmpv6 type {{ {_ON_THE_WAY} }} ct state related accept",
            f"ip6 saddr & {_PEER_MASK} @peers6 goto private",
            "drop",
        ),
        "entering": (
            "meta nfproto ipv6 goto entering6",
            "ip daddr != @here drop",
            "ct state related accept",
            "ct state established ct direction reply accept",
            "ip saddr @peers accept",
            "drop",
        ),
        "unknown": (
            "type filter hook prerouting priority -290; policy accept;",
            f'iifname "{bridge}" {of_here} {nobody_here}',
        ),
        "forward": (
            "type filter hook forward priority 0; policy accept;",
            f'iifname "{bridge}" oifname "{bridge}" goto between',
            f'iifname "{bridge}" goto leaving',
            f'oifname "{bridge}" goto entering',
        ),
    }


def _wireguard_input(ports: Sequence[int]) -> tuple[str, ...]:
    """No node is reached by IPv6."""
    if not ports:
        return ()
    listening = f"udp dport {{ {', '.join(map(str, ports))} }}"
    return (f"{listening} ip saddr != @hosts drop", f"{listening} meta nfproto ipv6 drop")


def _sealed_chains(names: HostNames) -> dict[str, tuple[str, ...]]:
    """Whatever is from or for peers goes through our devices that encrypt, or nowhere."""
    devices = f"{{ {', '.join(names.encrypted(slot) for slot in SLOTS)} }}"
    return {
        "sealed_in": (
            "type filter hook prerouting priority -300; policy accept;",
            f"iifname != {devices} ip saddr @sealed drop",
            f"iifname != {devices} ip6 saddr & {_PEER_MASK} @peers6 drop",
        ),
        "sealed_out": (
            "type filter hook postrouting priority 0; policy accept;",
            f"oifname != {devices} ip daddr @sealed drop",
            f"oifname != {devices} ip6 daddr & {_PEER_MASK} @peers6 drop",
        ),
    }


def _leaving_chains(names: HostNames, rules: RuleSet) -> dict[str, tuple[str, ...]]:
    leaving = f'ip saddr {rules.bridge.network} ip daddr != {POOL} oifname != "{names.bridge}"'
    return {
        "postrouting": (
            "type nat hook postrouting priority 100; policy accept;",
            f"{leaving} meta l4proto {{ tcp, udp }} masquerade to :{OWN_PORTS}",
            f"{leaving} masquerade",
        )
    }


def _bridge_table(names: HostNames, rules: RuleSet) -> Table:
    said = rules_members.frame_sets(rules.members)
    return Table(
        sets={
            "sources": NamedSet("set", "ifname . ether_addr . ipv4_addr", said.get("sources", ())),
            "sources6": NamedSet("set", "ifname . ether_addr . ipv6_addr", said.get("sources6", ())),
        },
        chains={
            "from_vm": (
                "ether type ip iifname . ether saddr . ip saddr @sources accept",
                "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 "
                "iifname . ether saddr . arp saddr ip @sources "
                "iifname . arp saddr ether . arp saddr ip @sources accept",
                f"icmpv6 type {{ {_DISCOVERY} }} drop",
                "ip6 daddr ff00::/8 drop",
                "ether type ip6 iifname . ether saddr . ip6 saddr @sources6 accept",
                "drop",
            ),
            "prerouting": (
                "type filter hook prerouting priority -200; policy accept;",
                f'iifname "{names.link_prefix}*" goto from_vm',
            ),
            "output": (
                "type filter hook output priority -200; policy accept;",
                f'oifname "{names.link_prefix}*" ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop',
            ),
        },
    )
