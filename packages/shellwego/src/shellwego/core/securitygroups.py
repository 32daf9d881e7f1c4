"""Security groups: what VMs of a project may open to the apps that are in them. Pure.

Theory. As egress they are policy and not config: in no release, and they act on what runs. An app in no group takes anything
from VMs of its project, as if there were none. One that is in any takes what the rules of its groups let in together, and
nothing else; a group without rules lets in nothing. Answers, health checks, the edge and published ports are not asked.

A rule names its source by what it is, never by addresses: a group (whatever apps are in it at the time), an app, or the
whole project. For nodes it is resolved to apps (`openings_of`), whose VMs they know by their own means. VMs of another
project are let in by no rule. An app that is in a group that is gone is in one without rules: what is not known is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from shellwego.core.apps import App
from shellwego.core.destinations import LAST_PORT, IpProtocol, WishFaultError, parse_ports, ports_text
from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.openings import ANYBODY, Ingress, Opening

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MAX_GROUPS = 100
"""Of a project."""
MAX_RULES = 32
"""Of a group."""
MAX_GROUPS_OF_APP = 8
MAX_OPENINGS = 64
"""Of one app, with each group that a rule names as the apps that are in it; as many as nodes take."""


class SourceKind(StrEnum):
    GROUP = "group"
    APP = "app"
    PROJECT = "project"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressRule:
    """Who may open what."""

    source: SourceKind
    source_id: str = ""
    """Of the group or app; a project's is the group's own."""
    protocol: IpProtocol = IpProtocol.ANY
    first_port: int = 0
    """Of TCP and UDP; others have none to choose among."""
    last_port: int = LAST_PORT

    @property
    def ports(self) -> str:
        """`443` or `8000-8100`; empty: all."""
        return ports_text(self.first_port, self.last_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroup:
    id: str
    project_id: str
    name: str
    rules: tuple[IngressRule, ...] = ()
    created_at: float
    updated_at: float
    created_by: str = ""
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWish:
    """A rule as it was written: `group:web`, `app:shop` or `project`, by name or id."""

    source: str
    protocol: IpProtocol = IpProtocol.ANY
    ports: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What rules of a project may name: id by name."""

    groups: Mapping[str, str]
    apps: Mapping[str, str]


def parse_rules(field: str, wishes: Sequence[RuleWish], known: Known) -> tuple[IngressRule, ...]:
    """Rules with their sources found.

    Raises:
        InvalidError: with every fault, each by its place below `field`.
    """
    found: list[IngressRule] = []
    faults: list[FieldError] = []
    for index, wish in enumerate(wishes):
        try:
            found.append(_parsed(wish, known))
        except WishFaultError as fault:
            faults.append(FieldError(f"{field}.{index}.{fault.field}", fault.code, str(fault)))
    _refuse(faults)
    return tuple(found)


def changed(
    group: SecurityGroup, *, allow: Iterable[IngressRule] = (), deny: Sequence[IngressRule] = ()
) -> SecurityGroup:
    """The group after a change. What is allowed twice is in it once.

    Raises:
        InvalidError: a rule that is to go is not in it, or there would be too many.
    """
    _refuse(
        [
            FieldError(f"deny.{index}", "no-such-rule", f"the group {group.name} has no such rule")
            for index, each in enumerate(deny)
            if each not in group.rules
        ]
    )
    rules = tuple(each for each in dict.fromkeys((*group.rules, *allow)) if each not in deny)
    if len(rules) > MAX_RULES:
        _refuse([FieldError("allow", "too-many", f"a group has {MAX_RULES} rules at most")])
    return replace(group, rules=rules)


def openings_of(app: App, groups: Mapping[str, SecurityGroup], apps: Iterable[App]) -> Ingress:
    """All that may be opened to the app's VMs, by its project's groups (by id) and apps; None: anything."""
    if not app.groups:
        return None
    members: dict[str, list[str]] = {}
    for other in apps:
        for group_id in other.groups:
            members.setdefault(group_id, []).append(other.id)
    mine = [groups[group_id] for group_id in app.groups if group_id in groups]
    openings = {
        Opening(identity=identity, protocol=rule.protocol, first_port=rule.first_port, last_port=rule.last_port)
        for group in mine
        for rule in group.rules
        for identity in _identities(rule, members)
    }
    return tuple(sorted(openings, key=lambda each: (each.identity, each.protocol, each.first_port, each.last_port)))


def _identities(rule: IngressRule, members: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if rule.source is SourceKind.PROJECT:
        yield ANYBODY
    elif rule.source is SourceKind.APP:
        yield rule.source_id
    else:
        yield from members.get(rule.source_id, ())


def without_app(group: SecurityGroup, app_id: str) -> SecurityGroup:
    """The group without rules that name this app."""
    return replace(group, rules=tuple(rule for rule in group.rules if rule.source_id != app_id))


def _parsed(wish: RuleWish, known: Known) -> IngressRule:
    kind, _, name = wish.source.partition(":")
    if kind not in set(SourceKind) or bool(name) is (kind == SourceKind.PROJECT) or wish.source.endswith(":"):
        raise WishFaultError("source", "bad-source", "group:NAME, app:NAME or project")
    ids = {SourceKind.GROUP: known.groups, SourceKind.APP: known.apps}.get(SourceKind(kind), {"": ""})
    source_id = ids.get(name, name if name in ids.values() else None)
    if source_id is None:
        raise WishFaultError("source", f"no-such-{kind}", f"the project has no {kind} “{name[:80]}”")
    first, last = parse_ports(wish.protocol, wish.ports)
    return IngressRule(
        source=SourceKind(kind), source_id=source_id, protocol=wish.protocol, first_port=first, last_port=last
    )


def _refuse(faults: Sequence[FieldError]) -> None:
    if faults:
        raise InvalidError("group-refused", f"{faults[0].field}: {faults[0].message}", errors=tuple(faults))
