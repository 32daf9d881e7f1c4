"""Who may do what: roles are sets of permissions `resource:action`, grants give a role on a scope and all below it.

Deny by default: a permission is held only where some grant on the scope's chain carries a role that names it, and where
the token, if it is scoped, names it too. A token therefore only ever narrows its user.

Nobody passes on what he does not hold: who makes a grant, a role or a token is asked whether what he holds *covers* it.
Patterns are compared as patterns, part by part: `*:*` covers everything that will ever be added, and a set of single
permissions never covers a `*`, even where it names all that exist today.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from shellwego.core.tenancy import Principal

ACTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "apps": ("read", "write", "env"),
        "audit": ("read",),
        "deployments": ("read", "write"),
        "events": ("read",),
        "grants": ("read", "write"),
        "images": ("read", "write"),
        "instances": ("read", "write", "exec"),
        "keys": ("read", "write"),
        "members": ("read", "write"),
        "network": ("read", "write"),
        "nodes": ("read", "write", "admin"),
        "organizations": ("read", "create", "write", "delete"),
        "ports": ("read", "write"),
        "projects": ("read", "write", "limit"),
        "quotas": ("read", "write"),
        "roles": ("read", "write"),
        "secrets": ("read", "write"),
        "service-accounts": ("read", "write"),
        "tokens": ("read", "write"),
        "usage": ("read",),
        "user": ("read", "write"),
        "users": ("read", "write"),
        "volumes": ("read", "write"),
        "webhooks": ("read", "write"),
    }
)
"""Every resource, and what can be done to it. An operation declares one of these; a custom role is made of them."""
PERMISSIONS: frozenset[str] = frozenset(f"{name}:{action}" for name, actions in ACTIONS.items() for action in actions)
PLATFORM: frozenset[str] = frozenset(
    {"keys:read", "keys:write", "organizations:create", "quotas:write", "users:read", "users:write"}
)
"""What concerns the platform's operator: held by a grant on the system only, whatever the role is on an organization."""

OWNER = "owner"
_OWN = frozenset({"tokens:*", "user:*"})
"""What concerns only the caller: each role has it, and what is reached by it is the caller's."""
_ABOUT = frozenset(f"{name}:read" for name in ("organizations", "projects", "quotas", "usage"))
"""What an organization is and takes."""
_PEOPLE = frozenset(f"{name}:read" for name in ("grants", "members", "roles", "service-accounts"))
_WORKLOADS = frozenset(
    f"{name}:read"
    for name in (
        "apps",
        "deployments",
        "events",
        "images",
        "instances",
        "network",
        "nodes",
        "ports",
        "secrets",
        "volumes",
    )
)

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        OWNER: frozenset({"*:*"}),
        "admin": frozenset(
            {
                "*:read",
                "apps:*",
                "audit:*",
                "deployments:*",
                "events:*",
                "grants:*",
                "images:*",
                "instances:*",
                "members:*",
                "network:*",
                "nodes:*",
                "organizations:write",
                "ports:*",
                "projects:*",
                "roles:*",
                "secrets:*",
                "service-accounts:*",
                "volumes:*",
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
                "network:*",
                "nodes:read",
                "ports:*",
                "secrets:*",
                "volumes:*",
                "webhooks:*",
            }
        )
        | _ABOUT
        | _PEOPLE
        | _OWN,
        "viewer": _WORKLOADS | _ABOUT | _PEOPLE | _OWN,
        "billing": _ABOUT | _OWN,
    }
)
"""The roles that every organization has. A name that is neither here nor among the principal's own roles gives nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and why: the reason is for the audit record and for operators, never for a stranger."""

    allowed: bool
    reason: str


def decide(principal: Principal, permission: str, chain: Sequence[str]) -> Decision:
    """Judge one permission on a resource whose scopes, from the system (empty) downwards, are `chain`."""
    if not scoped_for(principal, permission):
        return Decision(False, f"the token is not scoped for {permission}")
    if not _within_resources(principal, chain):
        return Decision(False, "the token is bound to other resources")
    for grant in principal.grants:
        above = grant.scope_id in chain and not (grant.scope_id and permission in PLATFORM)
        if above and names(role_permissions(principal, grant.role), permission):
            return Decision(True, f"role {grant.role} on {grant.scope_id or 'the system'}")
    return Decision(False, f"no grant on this scope or above it gives {permission}")


def allowed(principal: Principal, permission: str, chain: Sequence[str]) -> bool:
    """`decide` without its reason."""
    return decide(principal, permission, chain).allowed


def scoped_for(principal: Principal, permission: str) -> bool:
    """Whether the token leaves this permission to its user; one without scopes leaves him all."""
    return not principal.scopes or names(principal.scopes, permission)


def role_permissions(principal: Principal, role: str) -> frozenset[str]:
    """What a role is made of: one that every organization has, else a custom one that the principal's grants name."""
    return ROLES.get(role) or principal.roles.get(role, frozenset())


def held(principal: Principal, chain: Sequence[str]) -> frozenset[str]:
    """Patterns of all that the principal may do at the end of this chain, its token's limits included."""
    if not _within_resources(principal, chain):
        return frozenset()
    granted = frozenset[str]().union(
        *(role_permissions(principal, grant.role) for grant in principal.grants if grant.scope_id in chain)
    )
    return intersection(granted, principal.scopes) if principal.scopes else granted


def may_give(principal: Principal, permissions: Iterable[str], chain: Sequence[str]) -> bool:
    """Whether the principal could give another these permissions at the end of this chain: he holds each himself."""
    return covers(held(principal, chain), permissions)


def covers(held: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether each permission that a wanted pattern names, today or ever, is named by a held one."""
    known = tuple(held)
    return all(any(_meet(pattern, each) == each for pattern in known) for each in wanted)


def intersection(first: Iterable[str], second: Iterable[str]) -> frozenset[str]:
    """Patterns that name exactly what both sets name."""
    others = tuple(second)
    met = {both for one in first for other in others if (both := _meet(one, other))}
    return frozenset(each for each in met if not any(_meet(wider, each) == each for wider in met - {each}))


def read_permission(permission: str) -> str:
    """The permission to see what this permission acts on."""
    return f"{permission.partition(':')[0]}:read"


def names(patterns: Iterable[str], permission: str) -> bool:
    """Whether a pattern names this permission: `*` stands for a whole resource or action. What is not `resource:action`
    is named by nothing."""
    resource, colon, action = permission.partition(":")
    if not (resource and colon and action) or "*" in permission:
        return False
    return any(pattern in (permission, f"{resource}:*", f"*:{action}", "*:*") for pattern in patterns)


def _within_resources(principal: Principal, chain: Sequence[str]) -> bool:
    return not principal.resources or any(scope in chain for scope in principal.resources)


def _meet(first: str, second: str) -> str:
    """The pattern of what both name; empty where that is nothing."""
    parts = [*zip(first.split(":"), second.split(":"), strict=False)]
    if len(parts) != 2 or any(a != b and "*" not in (a, b) for a, b in parts):
        return ""
    return ":".join(b if a == "*" else a for a, b in parts)
