"""Scopes as the services know them: by the ids of organization and project, and below them by label."""

from __future__ import annotations

from plasmavmc.types import SYSTEM_SCOPE
from plasmavmc.types import Scope as EngineScope
from shellwego.control.scopes import SYSTEM, Scope

APP_LABEL, APP_ID_LABEL = "app", "app_id"
"""The services know no scope below a project; these labels name a VM's app. Only the first is taken from a caller."""


def scope_out(scope: Scope) -> EngineScope:
    return EngineScope(scope.organization_id, scope.project_id)


def scope_in(scope: EngineScope) -> Scope:
    return SYSTEM if scope == SYSTEM_SCOPE else Scope(scope.org, scope.project)
