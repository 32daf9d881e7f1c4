"""A client of NodeService: hosts, in the engine's own types."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from plasmavmc.rpc.api import Node
from plasmavmc.rpc.clients.calls import Metadata, answers_of, request_id_of, translated
from plasmavmc.rpc.conversions.nodes import node_from_pb
from plasmavmc.rpc.v1 import node_pb2
from plasmavmc.rpc.v1.node_pb2_grpc import NodeServiceStub


class NodeClient:
    """Hosts. No id: the only one."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._stub = NodeServiceStub(channel)
        self._metadata = metadata

    async def get(self, node_id: str = "") -> Node:
        request = node_pb2.GetNodeRequest(node_id=node_id)
        with translated():
            return node_from_pb(await self._stub.GetNode(request, metadata=self._metadata))

    async def list_nodes(self, *, page_size: int = 0) -> AsyncIterator[Node]:
        request = node_pb2.ListNodesRequest(page_size=page_size)
        while True:
            with translated():
                answer = await self._stub.ListNodes(request, metadata=self._metadata)
            for node in answer.nodes:
                yield node_from_pb(node)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def watch(self) -> AsyncIterator[Node]:
        """Each node as it is, then as it changes."""
        call = self._stub.WatchNodes(node_pb2.WatchNodesRequest(), metadata=self._metadata)
        async with aclosing(answers_of(call, call)) as nodes:
            async for node in nodes:
                yield node_from_pb(node)

    async def cordon(self, node_id: str = "", *, request_id: str = "") -> Node:
        request = node_pb2.CordonNodeRequest(request_id=request_id_of(request_id), node_id=node_id)
        with translated():
            return node_from_pb(await self._stub.CordonNode(request, metadata=self._metadata))

    async def uncordon(self, node_id: str = "", *, request_id: str = "") -> Node:
        request = node_pb2.UncordonNodeRequest(request_id=request_id_of(request_id), node_id=node_id)
        with translated():
            return node_from_pb(await self._stub.UncordonNode(request, metadata=self._metadata))

    async def drain(self, node_id: str = "", *, deadline_s: int = 0, request_id: str = "") -> Node:
        """Returns when nothing runs there any more, or the deadline is over. 0: 300 s."""
        request = node_pb2.DrainNodeRequest(
            request_id=request_id_of(request_id), node_id=node_id, deadline_seconds=deadline_s
        )
        with translated():
            return node_from_pb(await self._stub.DrainNode(request, metadata=self._metadata))
