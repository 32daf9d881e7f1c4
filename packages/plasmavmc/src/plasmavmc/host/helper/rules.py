"""The firewall of an installation as nftables text. Pure.

Theory. A VM sits alone behind its tap: an isolated port of the bridge, its address a /32 with the bridge's as on-link
gateway. So nothing passes from tap to tap as a frame; every packet is routed by the host, through the chains below.

Table `bridge`, at each frame that enters by a tap: IPv4 and ARP only, and only with that tap's own MAC and address (in
ARP: of the sender). It is one look-up in a concatenated set, whatever the number of VMs. At each frame from the host to
a tap: no broadcast and no multicast, which a bridge floods to all ports where the host itself is the sender.

Table `inet`:
- input: from a VM to the host, replies to the host's own connections only.
- forward between VMs: source and destination must be of one network id. The map gives the source's network as a mark, the
  set holds (destination, network). This is asked of every packet, before connection tracking: an address may be given to
  another tenant's VM while an old connection to it is still remembered.
- forward from a VM to elsewhere: not to link-local addresses (cloud metadata), not to what installations use, not to
  multicast, broadcast or reserved addresses; with source NAT. To a peer's gateway only replies.
- forward from elsewhere to a VM: replies, and what a peer (another node of the platform) opens. It speaks as its gateway, an
  address that no VM there can send from; that nobody else on the way does is the underlay's to see to.
- output: no ICMP redirects. The kernel would send them for VM to VM traffic, which leaves by the interface it came by, and
  the per-bridge switch for them does not help while the one for all interfaces is on.

`accept` ends a chain only in its own table: a stricter firewall of the operator's stays in force.

Traps: the text replaces both tables in one transaction (`table X`, `delete table X`, `table X {…}`), since nftables 1.0
has no `destroy`; elements of an empty set may not be written at all.
Source: nft(8); priorities: filter 0, srcnat 100, bridge filter -200.
"""

from __future__ import annotations

from collections.abc import Iterable

from plasmavmc.host.configuration import POOL
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Member, RuleSet

CLOSED_TO_VMS = (
    "0.0.0.0/8",
    str(POOL),
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
)
"""This network; all installations; loopback; link-local with the metadata service; multicast, reserved, broadcast."""


def render(names: HostNames, rules: RuleSet) -> str:
    """The text for `nft -f -` that makes the installation's tables those of `rules`."""
    return "\n".join((*_inet_table(names, rules), *_bridge_table(names, rules), ""))


def render_removal(names: HostNames) -> str:
    """The text that removes the installation's tables, where they are."""
    return "\n".join((*_replaced("inet", names), *_replaced("bridge", names), ""))


def network_numbers(members: Iterable[Member]) -> dict[str, int]:
    """A small number for each network id, to be carried as a mark; 0 means none."""
    return {network: number for number, network in enumerate(sorted({member.network_id for member in members}), 1)}


def _replaced(family: str, names: HostNames) -> tuple[str, str]:
    """Remove a table whether or not it is there."""
    return (f"table {family} {names.table}", f"delete table {family} {names.table}")


def _elements(lines: Iterable[str]) -> str:
    text = ", ".join(lines)
    return f" elements = {{ {text} }};" if text else ""


def _inet_table(names: HostNames, rules: RuleSet) -> tuple[str, ...]:
    bridge = names.bridge
    numbers = network_numbers(rules.members)
    networks = _elements(f"{member.ipv4} : {numbers[member.network_id]}" for member in rules.members)
    reachable = _elements(f"{member.ipv4} . {numbers[member.network_id]}" for member in rules.members)
    peers = _elements(str(peer.gateway) for peer in rules.peers)
    return (
        *_replaced("inet", names),
        f"table inet {names.table} {{",
        f"map networks {{ type ipv4_addr : mark;{networks} }}",
        f"set reachable {{ type ipv4_addr . mark;{reachable} }}",
        f"set peers {{ type ipv4_addr;{peers} }}",
        "chain input {",
        "type filter hook input priority 0; policy accept;",
        f'iifname "{bridge}" jump to_host',
        "}",
        "chain to_host {",
        "ct state established,related accept",
        "drop",
        "}",
        "chain forward {",
        "type filter hook forward priority 0; policy accept;",
        f'iifname "{bridge}" oifname "{bridge}" goto between',
        f'iifname "{bridge}" goto leaving',
        f'oifname "{bridge}" goto entering',
        "}",
        "chain between {",
        "meta mark set 0",
        "meta mark set ip saddr map @networks",
        "ip daddr . meta mark @reachable accept",
        "drop",
        "}",
        "chain leaving {",
        "ip daddr @peers ct state established ct direction reply accept",
        f"ip daddr {{ {', '.join(CLOSED_TO_VMS)} }} drop",
        "meta nfproto ipv4 accept",
        "drop",
        "}",
        "chain entering {",
        "ct state established,related accept",
        "ip saddr @peers accept",
        "drop",
        "}",
        "chain output {",
        "type filter hook output priority 0; policy accept;",
        f'oifname "{bridge}" icmp type redirect drop',
        "}",
        "chain postrouting {",
        "type nat hook postrouting priority 100; policy accept;",
        f'ip saddr {rules.bridge.network} ip daddr != {POOL} oifname != "{bridge}" masquerade',
        "}",
        "}",
    )


def _bridge_table(names: HostNames, rules: RuleSet) -> tuple[str, ...]:
    sources = _elements(f'"{member.tap}" . {member.mac} . {member.ipv4}' for member in rules.members)
    return (
        *_replaced("bridge", names),
        f"table bridge {names.table} {{",
        f"set sources {{ type ifname . ether_addr . ipv4_addr;{sources} }}",
        "chain prerouting {",
        "type filter hook prerouting priority -200; policy accept;",
        f'iifname "{names.link_prefix}*" goto from_vm',
        "}",
        "chain output {",
        "type filter hook output priority -200; policy accept;",
        f'oifname "{names.link_prefix}*" ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop',
        "}",
        "chain from_vm {",
        "ether type ip iifname . ether saddr . ip saddr @sources accept",
        "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 "
        "iifname . ether saddr . arp saddr ip @sources "
        "iifname . arp saddr ether . arp saddr ip @sources accept",
        "drop",
        "}",
        "}",
    )
