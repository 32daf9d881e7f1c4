"""Whose things they are: organizations, projects, users, service accounts, tokens, roles and grants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    id: str
    name: str
    plan: str
    created_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    id: str
    organization_id: str
    name: str
    network_id: str
    """VMs of one project share a network; those of two never meet."""
    network_number: int = 0
    """The network's in private addresses, given once and never again; 0 for a moment, where an older version made it."""
    first: bool
    """The organization's first project: its apps get the short hostname."""
    created_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    id: str
    email: str
    """In the form of `emails.normalized`."""
    name: str = ""
    created_at: float
    disabled_at: float | None = None
    """Since when nothing is answered to his tokens, nor to his password."""
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """A principal that is nobody: what a pipeline or another system works as. Unique by name in its organization."""

    id: str
    organization_id: str
    name: str
    description: str = ""
    created_at: float
    version: int = 1


class TokenKind(StrEnum):
    PERSONAL = "pat"
    SERVICE = "sat"
    SESSION = "ses"
    TEMPORARY = "tmp"
    JOIN = "join"


class Issuer(StrEnum):
    """What a token was made by."""

    HOST = "host"
    """Whoever holds the platform's machine."""
    LOGIN = "login"
    TOKEN = "token"  # noqa: S105 - a word
    """Another token, its parent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A credential. Only the hash is kept; the secret is shown once, when it is made."""

    id: str
    kind: TokenKind
    principal_id: str
    """The user or service account that it stands for."""
    name: str
    secret_hash: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None
    revoked_at: float | None = None
    parent_id: str = ""
    """The token that made this one and ends it with itself; empty: none did."""
    resources: tuple[str, ...] = ()
    """Ids of organizations, projects and apps to which it is narrowed; empty: whatever its principal may reach."""
    issued_by: Issuer = Issuer.TOKEN
    version: int = 1

    def holds(self, now: float) -> bool:
        """Whether it may still be used."""
        return not self.ended_by(now)

    def ended_by(self, moment: float) -> bool:
        """Whether it was revoked, or had expired, at this time."""
        return any(end is not None and end <= moment for end in (self.revoked_at, self.expires_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUse:
    """When a token was used last, to within `authentication.USE_STEP_S`: apart from it, so that use never
    disturbs a change."""

    id: str
    """The token's."""
    used_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A named set of permissions that an organization made for itself; unique by name there. What it holds is held only
    where a grant within the organization names the role by its id."""

    id: str
    organization_id: str
    name: str
    permissions: tuple[str, ...]
    """Single permissions, without `*`: what is added to the platform later is added to no custom role by itself."""
    created_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """(principal, role, scope). A grant on a scope holds for all below it; `scope_id` empty is the whole system."""

    id: str
    principal_id: str
    role: str
    """The name of a role that every organization has, or the id of a custom one."""
    scope_id: str
    created_at: float
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks: the user or service account behind the token, what the token names, and the grants that hold."""

    principal_id: str
    token_id: str
    scopes: tuple[str, ...]
    grants: tuple[Grant, ...]
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The custom roles that the grants name, by id."""
    resources: tuple[str, ...] = ()
    """Scopes that the token is bound to, and all below them; empty: not bound."""
