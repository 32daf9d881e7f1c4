"""How hosts come to the platform: join tokens, and the keys and authorities that nodes are known by."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, refuse_key, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, one_of
from shellwego.api.rest.routes.common import Here, Id, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.joins import (
    JoinTokenCreate,
    JoinTokenList,
    JoinTokenView,
    NewJoinTokenView,
    NodeAuthorityList,
    NodeAuthorityView,
    NodeKeyList,
    NodeKeyView,
    join_token_view,
    node_authority_view,
    node_key_view,
)
from shellwego.control import joins, nodeauthority, nodekeys
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.targets import JoinTokenTarget, NodeAuthorityTarget, NodeKeyTarget, SystemTarget
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.joins import JoinToken, NodeAuthority, NodeKey
from shellwego.ports.store import Transaction

router = resource_router("nodes")
_SORTS: dict[str, type[str] | type[float]] = {"created_at": float, "id": str}


@operation(
    router, "POST", "/nodes/join-tokens", permission="nodes:admin", answer=NewJoinTokenView, status=201, refusals=(503,)
)
async def create_join_token(*, here: Here, access: Granted, body: JoinTokenCreate) -> Response:
    """Let one host join, within the hour. The token is in this answer only; it is brought to the node port."""
    refuse_key(access)
    await access.read(SystemTarget(), lambda tx, _: None)
    if not here.node_urls:
        raise ConflictError(
            "no-node-port",
            "this server has no port for nodes",
            resolution="Start it with --node-port 7081 and --node-listen ADDRESS.",
        )
    authority = await here.authorities.shown()
    secret = joins.join_secret()

    def work(unit: Unit, _: None) -> Answer:
        token = joins.create_join_token(unit, access.principal, body.wish(), secret)
        view = join_token_view(token, unit.now())
        made = NewJoinTokenView(token=secret + authority.fingerprint, url=here.node_urls[0], **view.model_dump())
        return body_answer(made, 201)

    return await write(access, SystemTarget(), work)


@operation(router, "GET", "/nodes/join-tokens", permission="nodes:admin", answer=JoinTokenList)
async def list_join_tokens(*, access: Granted, listing: Listing) -> Response:
    """All join tokens, the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, _: None) -> Answer:
        found = page(tx.join_tokens, request)
        views = [join_token_view(token, tx.now()) for token in found.items]
        return body_answer(JoinTokenList(data=views, pagination=pagination(found)))

    return await read(access, SystemTarget(), look)


@operation(router, "DELETE", "/nodes/join-tokens/{join_token}", permission="nodes:admin", answer=JoinTokenView)
async def revoke_join_token(*, access: Granted, join_token: Id) -> Response:
    """Let nobody in by a join token any more."""

    def work(unit: Unit, row: JoinToken) -> Answer:
        return body_answer(join_token_view(joins.revoke_join_token(unit, row), unit.now()))

    return await write(access, JoinTokenTarget(join_token), work)


@operation(router, "GET", "/nodes/keys", permission="nodes:admin", answer=NodeKeyList)
async def list_node_keys(
    *,
    access: Granted,
    listing: Listing,
    member: Annotated[str | None, Query(alias="filter[member]", max_length=2000)] = None,
) -> Response:
    """The keys that nodes and edges are known by, the newest first."""
    request = listing.page(_SORTS, "created_at:desc")

    def look(tx: Transaction, _: None) -> Answer:
        found = page(tx.node_keys, request, *one_of("member_id", member))
        views = [node_key_view(key) for key in found.items]
        return body_answer(NodeKeyList(data=views, pagination=pagination(found)))

    return await read(access, SystemTarget(), look)


@operation(router, "DELETE", "/nodes/keys/{node_key}", permission="nodes:admin", answer=NodeKeyView)
async def revoke_node_key(*, access: Granted, node_key: Id) -> Response:
    """Let nobody in by a key any more; its node is then silent until it joins anew."""

    def work(unit: Unit, row: NodeKey) -> Answer:
        return body_answer(node_key_view(nodekeys.retire_key(unit, row)))

    return await write(access, NodeKeyTarget(node_key), work)


@operation(router, "GET", "/nodes/authorities", permission="nodes:admin", answer=NodeAuthorityList)
async def list_node_authorities(*, access: Granted) -> Response:
    """The authorities that sign for nodes, the newest first, with how many keys have certificates of each."""

    def look(tx: Transaction, _: None) -> Answer:
        return body_answer(NodeAuthorityList(data=[_view(tx, each) for each in nodeauthority.authorities(tx)]))

    return await read(access, SystemTarget(), look)


@operation(
    router,
    "POST",
    "/nodes/authorities/actions/rotate",
    permission="nodes:admin",
    answer=NodeAuthorityView,
    status=201,
    refusals=(503,),
)
async def rotate_node_authority(*, here: Here, access: Granted) -> Response:
    """Make another authority, which signs from now on; the one before holds until it is retired."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    await access.read(SystemTarget(), lambda tx, _: None)
    fresh = await here.authorities.prepare()

    def work(unit: Unit, _: None) -> Answer:
        return body_answer(_view(unit.tx, nodeauthority.add(unit, fresh)), 201)

    return await write(access, SystemTarget(), work)


@operation(
    router, "POST", "/nodes/authorities/{authority}/actions/retire", permission="nodes:admin", answer=NodeAuthorityView
)
async def retire_node_authority(*, access: Granted, authority: Id) -> Response:
    """Believe an authority no more; refused while keys have certificates of it."""

    def work(unit: Unit, row: NodeAuthority) -> Answer:
        return body_answer(_view(unit.tx, nodeauthority.retire(unit, row)))

    return await write(access, NodeAuthorityTarget(authority), work)


def _view(tx: Transaction, authority: NodeAuthority) -> NodeAuthorityView:
    return node_authority_view(authority, nodeauthority.keys_under(tx, authority.id))
