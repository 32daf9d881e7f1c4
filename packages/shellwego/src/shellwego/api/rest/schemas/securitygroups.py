"""Security groups: what is asked, and what is told of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Name, Pagination, View, when
from shellwego.api.rest.schemas.egress import ProtocolName
from shellwego.control.securitygroups import Landscape
from shellwego.core.destinations import IpProtocol
from shellwego.core.securitygroups import MAX_RULES, IngressRule, RuleWish, SecurityGroup, SourceKind


class RuleBody(Body):
    """Who may open what to the apps of a group."""

    source: Annotated[str, Field(min_length=1, max_length=128, examples=["group:web", "app:shop", "project"])]
    """`group:NAME`: all apps in it; `app:NAME`; `project`: all of the group's project."""
    protocol: ProtocolName = "any"
    ports: Annotated[str, Field(max_length=11, examples=["5432", "8000-8100"])] = ""
    """Of tcp or udp; empty: all."""

    def wish(self) -> RuleWish:
        return RuleWish(source=self.source, protocol=IpProtocol(self.protocol), ports=self.ports)


Rules = Annotated[list[RuleBody], Field(max_length=MAX_RULES)]


class GroupCreate(Body):
    """A new group, which no app is in."""

    name: Annotated[str, Field(min_length=1, max_length=63, examples=["database"])]
    """a-z, 0-9, - and _, beginning with a letter; unique in the project."""
    allow: Rules = Field(default_factory=list)
    """Its rules. Without any it lets in nothing."""


class GroupPatch(Body):
    """All of it is done, or nothing."""

    allow: Rules = Field(default_factory=list)
    """Rules to be in it."""
    deny: Rules = Field(default_factory=list)
    """Rules to go out of it, each as it is in it."""


class MemberBody(Body):
    """The app that is meant, of the group's project."""

    app: Name


class RuleView(View):
    source: str
    protocol: ProtocolName
    ports: str


class GroupView(View):
    id: str
    project_id: str
    name: str
    rules: list[RuleView]
    apps: list[str]
    """Those in it."""
    named_by: list[str]
    """Groups with a rule that names it."""
    created_at: datetime
    updated_at: datetime
    created_by: str
    version: int


class GroupList(View):
    data: list[GroupView]
    pagination: Pagination


def group_view(group: SecurityGroup, known: Landscape) -> GroupView:
    """A group as it stands in its project."""
    return GroupView(
        id=group.id,
        project_id=group.project_id,
        name=group.name,
        rules=[_rule_view(rule, known) for rule in group.rules],
        apps=[app.name for app in known.members(group)],
        named_by=[other.name for other in known.naming(group)],
        created_at=when(group.created_at),
        updated_at=when(group.updated_at),
        created_by=group.created_by,
        version=group.version,
    )


def _rule_view(rule: IngressRule, known: Landscape) -> RuleView:
    return RuleView(source=_source(rule, known), protocol=rule.protocol.value, ports=rule.ports)


def _source(rule: IngressRule, known: Landscape) -> str:
    if rule.source is SourceKind.PROJECT:
        return rule.source.value
    named = known.groups if rule.source is SourceKind.GROUP else known.apps
    found = named.get(rule.source_id)
    return f"{rule.source.value}:{found.name if found else rule.source_id}"
