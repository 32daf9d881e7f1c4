"""The resolvers that this host itself asks."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

RESOLVED, RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")
MOST = 3
"""As many as a C library asks (resolv.conf(5))."""


def host_resolvers() -> tuple[str, ...]:
    """Their addresses; stubs on loopback are asked like others."""
    for path in (RESOLV_CONF, RESOLVED):
        found = resolvers_of(_text(path))
        if found:
            return found
    return ()


def guest_resolvers() -> tuple[str, ...]:
    """Those that a guest can reach by itself: none of this host's own stubs on loopback."""
    for path in (RESOLVED, RESOLV_CONF):
        found = tuple(each for each in resolvers_of(_text(path)) if not ip_address(each).is_loopback and "." in each)
        if found:
            return found
    return ()


def resolvers_of(text: str) -> tuple[str, ...]:
    """The `nameserver` lines of a resolv.conf that hold an address."""
    words = [line.split() for line in text.splitlines()]
    named = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return tuple(each for each in named if _is_address(each))[:MOST]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
