"""The servers of a platform, as nodes and edges are told of them.

Each server that runs says by which URLs servers are reached: its own, and those that its operator named beside it. What is
told is all that any of them says. So a server that comes is told once it runs, also where the others were not told of it;
and one that went is told no more once nobody names it, and it has said nothing itself for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KEPT_S = 600.0
"""What a server said counts for so long."""
SAY_S = 60.0
"""So often it says it again."""
MOST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs, or ran a while ago."""

    id: str
    """Its installation's."""
    urls: tuple[str, ...]
    seen_at: float
    version: int = 1


def urls_of(servers: Iterable[Server], now: float) -> tuple[str, ...]:
    """What nodes and edges are told, in an order that all servers tell alike; empty: nobody names any."""
    said = [each for each in servers if now < each.seen_at + KEPT_S]
    named = (url for each in sorted(said, key=lambda each: each.id) for url in each.urls)
    return tuple(dict.fromkeys(named))[:MOST]
