"""Who may do what: roles are sets of permissions `resource:action`, grants give a role on a scope and all below it.

Deny by default: a permission is held only where some grant on the scope's chain carries a role that names it, and where
the token, if it is scoped, names it too. A token therefore only ever narrows its user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from shellwego.core.tenancy import Principal

_OWN = frozenset({"tokens:*", "user:*"})
"""What concerns only the caller: each role has it, and what is reached by it is the caller's."""

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "owner": frozenset({"*:*"}),
        "admin": frozenset(
            {
                "*:read",
                "apps:*",
                "audit:*",
                "deployments:*",
                "events:*",
                "images:*",
                "instances:*",
                "members:*",
                "nodes:*",
                "projects:*",
                "webhooks:*",
            }
        )
        | _OWN,
        "developer": frozenset(
            {
                "apps:*",
                "deployments:*",
                "events:read",
                "images:*",
                "instances:*",
                "nodes:read",
                "organizations:read",
                "projects:read",
                "webhooks:*",
            }
        )
        | _OWN,
        "viewer": frozenset(
            {
                "apps:read",
                "deployments:read",
                "events:read",
                "images:read",
                "instances:read",
                "nodes:read",
                "organizations:read",
                "projects:read",
            }
        )
        | _OWN,
    }
)
"""A role that is not here gives nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and why: the reason is for the audit record and for operators, never for a stranger."""

    allowed: bool
    reason: str


def decide(principal: Principal, permission: str, chain: Sequence[str]) -> Decision:
    """Judge one permission on a resource whose scopes, from the system (empty) downwards, are `chain`."""
    if principal.scopes and not _names(principal.scopes, permission):
        return Decision(False, f"the token is not scoped for {permission}")
    for grant in principal.grants:
        if grant.scope_id in chain and _names(ROLES.get(grant.role, frozenset()), permission):
            return Decision(True, f"role {grant.role} on {grant.scope_id or 'the system'}")
    return Decision(False, f"no grant on this scope or above it gives {permission}")


def allowed(principal: Principal, permission: str, chain: Sequence[str]) -> bool:
    """`decide` without its reason."""
    return decide(principal, permission, chain).allowed


def read_permission(permission: str) -> str:
    """The permission to see what this permission acts on."""
    return f"{permission.partition(':')[0]}:read"


def _names(patterns: Iterable[str], permission: str) -> bool:
    """`*` stands for a whole resource or action; what is not `resource:action` is named by nothing."""
    resource, colon, action = permission.partition(":")
    if not (resource and colon and action) or "*" in permission:
        return False
    return any(pattern in (permission, f"{resource}:*", f"*:{action}", "*:*") for pattern in patterns)
