"""Who may open what to whom: declared once, held against real packets, and quoted by docs/design/trust-boundaries.md.

A row says it for all kinds of packets of a family, on any port: TCP, UDP and echo requests, DNS and databases too.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("tcp", "udp", "icmp")
PORTS = ("dns", "dns over tcp", "database")
OWN = "VM of its project on its node"
OWN_ELSEWHERE = "VM of its project on another node"
GROUPED_OPEN = "VM of its project in groups, what they let it open"
GROUPED_CLOSED = "VM of its project in groups, all else"
OTHER_PROJECT = "VM of another project or organization, on its node"
OTHER_PROJECT_ELSEWHERE = "VM of another project or organization, on another node"
OTHER_INSTALLATION = "VM of another installation, on its host"
ITS_HOST, ANOTHER_NODE = "its host", "another node"
PUBLISHED_BY_ITS_HOST = "published ports of its host or another node"
PUBLISHED = "published ports of any node"
METADATA, POOL = "metadata and other link-local addresses", "addresses of installations elsewhere"
ELSEWHERE = "elsewhere"
LISTED = "VM that is held to a list"
ON_ITS_LIST, OFF_ITS_LIST = "elsewhere, on its list", "elsewhere, not on its list"


@dataclass(frozen=True, slots=True)
class Row:
    source: str
    target: str
    ipv4: bool
    ipv6: bool
    """By private addresses; what has none is closed."""

    def open(self, family: int) -> bool:
        return self.ipv6 if family == 6 else self.ipv4


ROWS = (
    Row("VM", OWN, ipv4=True, ipv6=True),
    Row("VM", OWN_ELSEWHERE, ipv4=False, ipv6=True),
    Row("VM", GROUPED_OPEN, ipv4=True, ipv6=True),
    Row("VM", GROUPED_CLOSED, ipv4=False, ipv6=False),
    Row("VM", OTHER_PROJECT, ipv4=False, ipv6=False),
    Row("VM", OTHER_PROJECT_ELSEWHERE, ipv4=False, ipv6=False),
    Row("VM", OTHER_INSTALLATION, ipv4=False, ipv6=False),
    Row("VM", ITS_HOST, ipv4=False, ipv6=False),
    Row("VM", ANOTHER_NODE, ipv4=False, ipv6=False),
    Row("VM", PUBLISHED_BY_ITS_HOST, ipv4=True, ipv6=False),
    Row("VM", METADATA, ipv4=False, ipv6=False),
    Row("VM", POOL, ipv4=False, ipv6=False),
    Row("VM", ELSEWHERE, ipv4=True, ipv6=False),
    Row(LISTED, OWN, ipv4=True, ipv6=True),
    Row(LISTED, ITS_HOST, ipv4=False, ipv6=False),
    Row(LISTED, METADATA, ipv4=False, ipv6=False),
    Row(LISTED, POOL, ipv4=False, ipv6=False),
    Row(LISTED, ON_ITS_LIST, ipv4=True, ipv6=False),
    Row(LISTED, OFF_ITS_LIST, ipv4=False, ipv6=False),
    Row("host", "VM", ipv4=True, ipv6=True),
    Row("host of a peer", "VM", ipv4=True, ipv6=False),
    Row("elsewhere", "VM", ipv4=False, ipv6=False),
    Row("elsewhere", PUBLISHED, ipv4=True, ipv6=True),
)
_BY_ENDS = {(row.source, row.target): row for row in ROWS}


def may(source: str, target: str, family: int) -> bool:
    """What the table says."""
    return _BY_ENDS[source, target].open(family)


def as_markdown() -> str:
    """The table as people read it."""
    words = {True: "yes", False: "no"}
    lines = [f"| {row.source} | {row.target} | {words[row.ipv4]} | {words[row.ipv6]} |" for row in ROWS]
    return "\n".join(("| from | to | IPv4 | IPv6 |", "|---|---|---|---|", *lines))
