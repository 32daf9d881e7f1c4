"""Events of an app and of what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping

from shellwego.control.scopes import organization_of
from shellwego.control.unit import Unit
from shellwego.core.apps import App


def announce(
    unit: Unit,
    app: App,
    type_: str,
    data: Mapping[str, str] | None = None,
    *,
    resource: str = "",
    severity: str = "info",
) -> None:
    """Write an event about the app, or about a `resource` (an id) that belongs to it."""
    unit.emit(
        type_,
        resource or app.id,
        organization_id=organization_of(unit.tx, app.project_id),
        project_id=app.project_id,
        severity=severity,
        data={"app": app.id, "name": app.name, **(data or {})},
    )
