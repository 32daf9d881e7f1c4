"""Bodies about hosts that join, and the keys and authorities they are known by."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when, when_or_none
from shellwego.control.joins import MIN_LIFE_S, JoinWish
from shellwego.core.joins import LIFE_S, JoinToken, MemberKind, NodeAuthority, NodeKey
from shellwego.core.nodes import MAX_LABELS

Place = Annotated[str, Field(min_length=1, max_length=63, examples=["eu-west"])]
LabelKey = Annotated[str, Field(min_length=1, max_length=63)]
LabelValue = Annotated[str, Field(max_length=63)]


class JoinTokenCreate(Body):
    """What a host that is to come will be. It cannot choose any of this itself, but for its name where none is given."""

    kind: Literal["node", "edge"] = "node"
    name: Annotated[str, Field(max_length=253)] = ""
    """Empty: as its host is called."""
    region: Place = "local"
    zone: Place = "local"
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS, default_factory=dict)]
    expires_in: Annotated[int, Field(ge=int(MIN_LIFE_S), le=int(LIFE_S))] = int(LIFE_S)
    """Seconds."""

    def wish(self) -> JoinWish:
        return JoinWish(
            kind=MemberKind(self.kind),
            name=self.name,
            region=self.region,
            zone=self.zone,
            labels=self.labels,
            life_s=float(self.expires_in),
        )


class JoinTokenView(View):
    id: str
    kind: str
    name: str
    region: str
    zone: str
    labels: dict[str, str]
    state: str
    """`open`, `used`, `revoked` or `expired`."""
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    used_by: str | None
    """Id of the node or edge that came of it."""


class NewJoinTokenView(JoinTokenView):
    """A join token with its secret, for the only time, and where the host is to bring it."""

    token: str
    url: str


class JoinTokenList(View):
    data: list[JoinTokenView]
    pagination: Pagination


class NodeKeyView(View):
    """A key that a node or an edge is known by; `fingerprint` is the SHA-256 of its public half."""

    id: str
    fingerprint: str
    member: str
    kind: str
    authority: str
    created_at: datetime
    expires_at: datetime
    """The end of its certificate, which its host renews in time."""
    retired_at: datetime | None


class NodeKeyList(View):
    data: list[NodeKeyView]
    pagination: Pagination


class NodeAuthorityView(View):
    """A certificate authority of the platform's nodes; `keys` have certificates of it."""

    id: str
    fingerprint: str
    keys: int
    created_at: datetime
    expires_at: datetime
    retired_at: datetime | None


class NodeAuthorityList(View):
    data: list[NodeAuthorityView]


def join_token_view(token: JoinToken, now: float) -> JoinTokenView:
    return JoinTokenView(
        id=token.id,
        kind=token.kind.value,
        name=token.name,
        region=token.region,
        zone=token.zone,
        labels=dict(token.labels),
        state=token.state(now).value,
        created_by=token.created_by,
        created_at=when(token.created_at),
        expires_at=when(token.expires_at),
        used_at=when_or_none(token.used_at),
        used_by=token.used_by or None,
    )


def node_key_view(key: NodeKey) -> NodeKeyView:
    return NodeKeyView(
        id=key.id,
        fingerprint=key.fingerprint,
        member=key.member_id,
        kind=key.kind.value,
        authority=key.authority_id,
        created_at=when(key.created_at),
        expires_at=when(key.expires_at),
        retired_at=when_or_none(key.retired_at),
    )


def node_authority_view(authority: NodeAuthority, keys: int) -> NodeAuthorityView:
    return NodeAuthorityView(
        id=authority.id,
        fingerprint=authority.fingerprint,
        keys=keys,
        created_at=when(authority.created_at),
        expires_at=when(authority.expires_at),
        retired_at=when_or_none(authority.retired_at),
    )
