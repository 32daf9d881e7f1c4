"""Which ports programs of this host itself listen at, as the kernel tells everybody.

Source: proc_pid_net(5): /proc/net/tcp and its like; addresses in hexadecimal, state 0A listens, a UDP socket without a peer
is 07.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from plasmavmc.host.ports import Transport

_TABLES = (
    (Transport.TCP, "tcp", "0A"),
    (Transport.TCP, "tcp6", "0A"),
    (Transport.UDP, "udp", "07"),
    (Transport.UDP, "udp6", "07"),
)
_LOOPBACK = ("7F", "00000000000000000000000001000000")
"""How 127.0.0.0/8 (its first byte, which is written last) and ::1 are told: by words of 32 bits, backwards."""


def listening_ports(directory: Path = Path("/proc/net")) -> frozenset[tuple[Transport, int]]:
    """Ports at addresses beside loopback."""
    found: set[tuple[Transport, int]] = set()
    for transport, name, state in _TABLES:
        with suppress(OSError):  # a host without IPv6
            lines = (directory / name).read_text().splitlines()[1:]
            found.update((transport, port) for line in lines if (port := _port(line, state)))
    return frozenset(found)


def _port(line: str, state: str) -> int:
    """0 where it is of another state, or of loopback."""
    words = line.split()
    if len(words) < 4 or words[3] != state:
        return 0
    address, _, port = words[1].partition(":")
    if address == _LOOPBACK[1] or (len(address) == 8 and address.endswith(_LOOPBACK[0])):
        return 0
    return int(port, 16)
