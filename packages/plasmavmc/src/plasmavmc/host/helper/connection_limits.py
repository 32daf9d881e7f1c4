"""How many connections one VM may have, so that none fills the table in which the host remembers those of all. Pure.

Theory. Each connection through the host is an entry of its connection tracking, which has room for so many; once it is
full no VM can open any. So a VM may have so many open at once, and open so many a second: beyond that its packets are
dropped, and counted by its MAC, which is its own since no other enters at its tap. Counted is what it opens, to others
and to its host's resolver; and, by its address, what is opened to it from elsewhere. VMs of its own host count where they
are the ones that open. What the host itself opens (checks, the edge) is not counted, so a VM at its limit is still
served.

Questions for names are held to a number a second besides, each datagram of them and not streams: they wait in one buffer,
where those of one VM that never stops would leave no room for the others'. So is their size, for the same reason.

Counting is done in a table of its own, after the chains that decide (`rules`), so that it counts what passes; and it
outlives a load of those, or each load would let every VM begin from none. A connection that ends is taken off by the kernel.

Traps: a stream of UDP to which nothing answers stays "new" for each of its packets, so only the first of each (not confirmed
yet) is counted; an element of such a set keeps the limit it was made with, so another limit is another table; who finds a
set full is let through, so they have room for every address of a node.
Source: nft(8), "set statement", "ct count" and "limit".
"""

from __future__ import annotations

from collections.abc import Mapping

from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import QUESTION_BYTES, QUESTIONS_PER_SECOND, RESOLVER_PORT

FEWEST = 64
MOST = 1 << 22
_ROOM = 8192
"""A /20 has half as many."""
_RATE_SHARE = 8
"""Of the limit, what may be opened in a second once a burst as large as the limit is over."""
_FORGOTTEN_S = 60
_QUESTIONS_AT_ONCE = 1000
"""The resolver's buffer (`sockets`) has room for those of several VMs."""
_UDP_HEADER = 8


def render(names: HostNames, most: int) -> str:
    """The text for `nft -f -` that holds each VM to so many connections; with 0 it holds none."""
    table = f"table inet {names.limits_table}"
    lines = (table, f"delete {table}", *((f"{table} {{", *_sets(), *_chains(names, most), "}") if most else ()))
    return "\n".join((*lines, ""))


def chains_of(names: HostNames, most: int) -> Mapping[str, int]:
    """How many rules each chain has."""
    found: dict[str, int] = {}
    chain = ""
    for line in _chains(names, most) if most else ():
        if line.startswith("chain "):
            chain = line.split()[1]
            found[chain] = 0
        elif line != "}" and not line.startswith("type "):
            found[chain] += 1
    return found


def refused_in(listing: Mapping[str, object]) -> dict[str, int]:
    """Connections that were refused, by MAC, of the set as `nft --json list set` shows it."""
    items = listing.get("nftables")
    found: dict[str, int] = {}
    for item in items if isinstance(items, list) else ():
        for element in item.get("set", {}).get("elem", ()):
            found[element["elem"]["val"]] = element["elem"]["counter"]["packets"]
    return found


def _sets() -> tuple[str, ...]:
    counted = f"size {_ROOM}; flags dynamic;"
    forgotten = f"size {_ROOM}; flags dynamic,timeout; timeout {_FORGOTTEN_S}s;"
    return (
        f"set opened {{ type ether_addr; {counted} }}",
        f"set received {{ type ipv4_addr; {counted} }}",
        f"set received6 {{ type ipv6_addr; {counted} }}",
        f"set rates {{ type ether_addr; {forgotten} }}",
        f"set questions {{ type ether_addr; {forgotten} }}",
        f"set refused {{ type ether_addr; {counted} counter; }}",
    )


def _chains(names: HostNames, most: int) -> tuple[str, ...]:
    rate = f"limit rate over {max(1, most // _RATE_SHARE)}/second burst {most} packets"
    over = f"ct count over {most}"
    asked = f"limit rate over {QUESTIONS_PER_SECOND}/second burst {_QUESTIONS_AT_ONCE} packets"
    fresh = "ct status & confirmed != confirmed"
    return (
        "chain from_vm {",
        f"update @rates {{ ether saddr {rate} }} goto refuse",
        f"add @opened {{ ether saddr {over} }} goto refuse",
        "}",
        "chain refuse {",
        "update @refused { ether saddr }",
        "drop",
        "}",
        "chain question {",
        f"udp length > {QUESTION_BYTES + _UDP_HEADER} drop",
        f"update @questions {{ ether saddr {asked} }} drop",
        "}",
        "chain to_vm {",
        f"add @received {{ ip daddr {over} }} drop",
        f"add @received6 {{ ip6 daddr {over} }} drop",
        "}",
        "chain forward {",
        "type filter hook forward priority 10; policy accept;",
        f'iifname "{names.bridge}" {fresh} goto from_vm',
        f'oifname "{names.bridge}" {fresh} goto to_vm',
        "}",
        "chain input {",
        "type filter hook input priority 10; policy accept;",
        f'iifname "{names.bridge}" udp dport {RESOLVER_PORT} jump question',
        f'iifname "{names.bridge}" {fresh} goto from_vm',
        "}",
    )
