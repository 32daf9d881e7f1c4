"""Subjects of hints: one place, so that publisher and listener cannot disagree."""

from __future__ import annotations

ROUTES = "routes"
EVENTS = "events"
AUDIT = "audit"
ALL_APPS = "app.*"
IMAGES = "images"
DRAINS = "drains"
MASTER_KEYS = "master-keys"


def app(app_id: str) -> str:
    """Something about this app changed: plan again."""
    return f"app.{app_id}"


def assignments(node_id: str) -> str:
    """This node's assignments changed: fetch them."""
    return f"node.{node_id}.assignments"
