"""`plasmavmc.v1.NodeService` over the protocol `NodeApi`. Nodes lie in the System scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from plasmavmc.errors import InvalidSpecError, NotFoundError
from plasmavmc.rpc.api import Node, NodeApi
from plasmavmc.rpc.conversions.nodes import node_to_pb
from plasmavmc.rpc.conversions.values import text
from plasmavmc.rpc.gate import Context, current_call
from plasmavmc.rpc.idempotency import Answers
from plasmavmc.rpc.paging import after_of, cut, page_size
from plasmavmc.rpc.v1 import node_pb2, node_pb2_grpc
from plasmavmc.types import SYSTEM_SCOPE

DEFAULT_DEADLINE_S = 300
MAX_DEADLINE_S = 24 * 3600


def node_not_found(node_id: str) -> NotFoundError:
    return NotFoundError("node-not-found", f"there is no node {node_id}" if node_id else "there is no node")


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    """See the module's head. Each method asks the gate before it does or tells anything."""

    def __init__(self, api: NodeApi, answers: Answers) -> None:
        self._api = api
        self._answers = answers

    async def GetNode(self, request: node_pb2.GetNodeRequest, context: Context) -> node_pb2.Node:
        return await self._told(request.node_id, self._api.get_node)

    async def ListNodes(self, request: node_pb2.ListNodesRequest, context: Context) -> node_pb2.ListNodesResponse:
        size, question = page_size(request.page_size), node_pb2.ListNodesRequest()
        after = after_of(request.page_token, question)
        reach = await current_call().reach()
        found = await self._api.list_nodes(after=after, limit=size + 1) if reach.covers(SYSTEM_SCOPE) else ()
        page, token = cut(found, size, key_of=lambda node: node.id, to_pb=node_to_pb, question=question)
        return node_pb2.ListNodesResponse(nodes=page, next_page_token=token)

    async def WatchNodes(self, request: node_pb2.WatchNodesRequest, context: Context) -> AsyncIterator[node_pb2.Node]:
        await current_call().admit(SYSTEM_SCOPE, absent=node_not_found(""))
        async with aclosing(self._api.watch_nodes()) as nodes:
            async for node in nodes:
                yield node_to_pb(node)

    async def CordonNode(self, request: node_pb2.CordonNodeRequest, context: Context) -> node_pb2.Node:
        return await self._answers.once(request, lambda: self._told(request.node_id, self._api.cordon))

    async def UncordonNode(self, request: node_pb2.UncordonNodeRequest, context: Context) -> node_pb2.Node:
        return await self._answers.once(request, lambda: self._told(request.node_id, self._api.uncordon))

    async def DrainNode(self, request: node_pb2.DrainNodeRequest, context: Context) -> node_pb2.Node:
        deadline_s = request.deadline_seconds or DEFAULT_DEADLINE_S
        if deadline_s > MAX_DEADLINE_S:
            raise InvalidSpecError("deadline_seconds", f"at most {MAX_DEADLINE_S} are taken")

        async def drain(node_id: str) -> Node:
            return await self._api.drain(node_id, deadline_s)

        return await self._answers.once(request, lambda: self._told(request.node_id, drain))

    async def _told(self, node_id: str, move: Callable[[str], Awaitable[Node]]) -> node_pb2.Node:
        """Do something with a node and tell how it is then."""
        call = current_call()
        absent = node_not_found(text("node_id", node_id, 64))
        await call.admit(SYSTEM_SCOPE, node_id, absent=absent)
        call.subject = node_id
        try:
            return node_to_pb(await move(node_id))
        except NotFoundError:
            raise absent from None
