"""What each action of the services needs: one of the platform's permissions. One that is missing here is an error at
import, as a method without an action is one of the schema (`plasmavmc.rpc.actions`)."""

from __future__ import annotations

from collections.abc import Mapping

from plasmavmc.rpc.access import Action

PERMISSIONS: Mapping[Action, str] = {
    Action.VM_READ: "instances:read",
    Action.VM_LOGS: "instances:read",
    Action.VM_CREATE: "instances:exec",
    Action.VM_START: "instances:exec",
    Action.VM_STOP: "instances:exec",
    Action.VM_RESTART: "instances:exec",
    Action.VM_SUSPEND: "instances:write",
    Action.VM_RESUME: "instances:write",
    Action.VM_RESTRICT: "network:write",
    Action.VM_SCREEN: "network:write",
    Action.VM_FORK: "instances:exec",
    Action.VM_DELETE: "instances:exec",
    Action.VM_EXEC: "instances:exec",
    Action.IMAGE_READ: "images:read",
    Action.IMAGE_REGISTER: "images:write",
    Action.IMAGE_DELETE: "images:write",
    Action.NODE_READ: "nodes:read",
    Action.NODE_CORDON: "nodes:write",
    Action.NODE_DRAIN: "nodes:write",
}


def check_permissions(table: Mapping[Action, str]) -> None:
    """Refuse a table that does not name every action.

    Raises:
        LookupError: with those that are missing.
    """
    missing = sorted(set(Action) - table.keys())
    if missing:
        raise LookupError(f"actions without a permission: {missing}")


check_permissions(PERMISSIONS)
