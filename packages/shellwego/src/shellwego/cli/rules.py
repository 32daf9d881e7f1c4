"""What follows a network or a source in a rule on the command line: `:443/tcp`, `:8000-8100`, `/icmp`."""

from __future__ import annotations

import re
from typing import Literal, cast

Protocol = Literal["any", "tcp", "udp", "icmp"]
PORTS_AND_PROTOCOL = r"(?::(?P<ports>[0-9-]+))?(?:/(?P<protocol>any|tcp|udp|icmp))?"
"""The end of a rule's pattern."""


def ports_and_protocol(match: re.Match[str]) -> tuple[str, Protocol]:
    """Both as they were written: no ports are all of them, and ports without a protocol those of TCP."""
    ports = match["ports"] or ""
    return ports, cast("Protocol", match["protocol"] or ("tcp" if ports else "any"))
