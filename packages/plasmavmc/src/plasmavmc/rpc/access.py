"""Who asks, for what, and may they: the words of authorization, and the port that decides.

Theory. A scope is System > organization > project; a grant on a scope holds for everything below it. VMs and images lie
in projects; nodes, and images that all may use, lie in `SYSTEM_SCOPE`. What is not granted is denied. Each call passes one
gate (`gate.py`), which asks for the right to *see* the thing together with the right to do what was asked: who may not
see it hears that it does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from plasmavmc.types import SYSTEM_SCOPE, Scope


class Action(StrEnum):
    """What can be allowed: `resource:verb`."""

    VM_READ = "vm:read"
    VM_LOGS = "vm:logs"
    VM_CREATE = "vm:create"
    VM_START = "vm:start"
    VM_STOP = "vm:stop"
    VM_RESTART = "vm:restart"
    VM_SUSPEND = "vm:suspend"
    VM_RESUME = "vm:resume"
    VM_RESTRICT = "vm:restrict"
    VM_SCREEN = "vm:screen"
    VM_FORK = "vm:fork"
    VM_DELETE = "vm:delete"
    VM_EXEC = "vm:exec"
    IMAGE_READ = "image:read"
    IMAGE_REGISTER = "image:register"
    IMAGE_DELETE = "image:delete"
    NODE_READ = "node:read"
    NODE_CORDON = "node:cordon"
    NODE_DRAIN = "node:drain"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `id` is stable, and fit for a log: `token:ci`, `uid:0`, `certificate:CN=alice`."""

    id: str
    scope: Scope | None = None
    """The one project that all its grants lie in, where there is exactly one: what an empty scope in a request means."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the authorizer. `resource` is the id of the thing, empty where none exists yet."""

    action: Action
    scope: Scope
    resource: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of what is to be made: an authorizer whose grants reach below a project may read there where it will lie."""


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str
    """One line for people and for the log: which grant allows it, or that none does."""


@dataclass(frozen=True, slots=True)
class Reach:
    """All scopes in which a principal may do something, as data: lists are cut to it, here or in a database."""

    everything: bool = False
    orgs: frozenset[str] = frozenset()
    projects: frozenset[Scope] = frozenset()
    labelled: frozenset[tuple[Scope, str, str]] = frozenset()
    """Scope, name and value: within a project that is not reached as a whole, what has this label. Only for labels that the
    caller cannot set."""

    def covers(self, scope: Scope, labels: Mapping[str, str] | None = None) -> bool:
        """Whether a thing of this scope, with these labels, is within reach."""
        if self.everything or scope.org in self.orgs or scope in self.projects:
            return True
        return any((scope, name, value) in self.labelled for name, value in (labels or {}).items())

    def with_system(self) -> Reach:
        """This, and what all tenants share."""
        return replace(self, projects=self.projects | {SYSTEM_SCOPE})


EVERYTHING = Reach(everything=True)


class Authorizer(Protocol):
    """Port: decides. It never raises for a principal that it does not know; it denies."""

    async def authorize_all(self, principal: Principal, requests: Sequence[Request]) -> tuple[Decision, ...]:
        """May `principal` do each of these? Told in their order."""

    async def reach(self, principal: Principal, action: Action) -> Reach:
        """Where `principal` may do this: `reach(p, a).covers(s)` is what `authorize_all` says of `a` in `s`."""
