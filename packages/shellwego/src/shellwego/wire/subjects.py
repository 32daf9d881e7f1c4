"""Subjects of hints: one place, so that publisher and listener cannot disagree."""

from __future__ import annotations

from shellwego.core.errors import InvalidError
from shellwego.core.ids import is_id

ROUTES = "routes"
OUTBOX = "outbox"
"""Events were written that have no number yet."""
EVENTS = "events"
"""Events were numbered: whoever follows them finds new ones."""
AUDIT = "audit"
ALL_APPS = "app.*"
IMAGES = "images"
DRAINS = "drains"
BACKUPS = "backups"
REPLICAS = "replicas"
"""A copy of a volume was brought up, or whoever waits for that may go on."""
VAULTS = "vaults"
MASTER_KEYS = "master-keys"
BUS_KEYS = "bus-keys"


def app(app_id: str) -> str:
    """Something about this app changed: plan again."""
    return f"app.{app_id}"


def assignments(node_id: str) -> str:
    """This node's assignments changed: fetch them."""
    return f"node.{node_id}.assignments"


def everything(listener_id: str) -> str:
    """The subject by which a listener apart is told to look at all that concerns him."""
    return assignments(listener_id) if is_id("node", listener_id) else ROUTES


def audible(listener_id: str) -> tuple[str, ...]:
    """The patterns that a listener apart may subscribe to: what concerns one node, or the routes if it is an edge.

    Raises:
        InvalidError: `invalid-listener`.
    """
    if is_id("node", listener_id):
        return (f"node.{listener_id}.>",)
    if is_id("edg", listener_id):
        return (ROUTES,)
    raise InvalidError("invalid-listener", f"{listener_id[:80]!r} is the id of neither a node nor an edge")
