"""Names that never leave this host, because nobody outside could answer them, or should hear of them.

Source: RFC 6761 (localhost, invalid, test), RFC 6762 (local), RFC 7686 (onion), RFC 6303 and RFC 7793 (reverse zones of
private addresses), RFC 9476 (alt), and `internal`, which the root zone keeps free for private use.
"""

from __future__ import annotations

from plasmavmc.network.dns import wire

_ZONES = frozenset(
    wire.name_of(zone)
    for zone in (
        "internal",
        "localhost",
        "invalid",
        "test",
        "local",
        "onion",
        "alt",
        "home.arpa",
        "0.in-addr.arpa",
        "10.in-addr.arpa",
        "127.in-addr.arpa",
        "254.169.in-addr.arpa",
        "168.192.in-addr.arpa",
        *(f"{number}.172.in-addr.arpa" for number in range(16, 32)),
        *(f"{number}.100.in-addr.arpa" for number in range(64, 128)),
        "2.0.192.in-addr.arpa",
        "100.51.198.in-addr.arpa",
        "113.0.203.in-addr.arpa",
        "255.255.255.255.in-addr.arpa",
        f"{'0.' * 32}ip6.arpa",
        f"1.{'0.' * 31}ip6.arpa",
        "c.f.ip6.arpa",
        "d.f.ip6.arpa",
        *(f"{digit}.e.f.ip6.arpa" for digit in "89ab"),
    )
)


def zone_of(name: bytes, type_: int) -> bytes | None:
    """The zone by which a question is answered on this host or not at all; None for one that others are asked. Addresses of
    a name without a dot, which is meant for a search list, are nobody's: their zone is the root."""
    if name not in _ZONES and len(wire.labels_of(name)) == 1 and type_ in (wire.A, wire.AAAA):
        return b"\0"
    while name != b"\0":
        if name in _ZONES:
            return name
        name = wire.parent_of(name)
    return None
