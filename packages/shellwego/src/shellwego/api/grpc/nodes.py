"""The platform's nodes for the engine's services. Implements `NodeApi` over the use cases."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from plasmavmc.errors import InvalidSpecError
from plasmavmc.rpc.api import Node, Scheduling
from shellwego.api.grpc.callers import Callers
from shellwego.api.grpc.errors import translated
from shellwego.api.grpc.views import node_view
from shellwego.control import scheduling
from shellwego.control.events import changes
from shellwego.control.facts import node_usage
from shellwego.control.targets import NodeTarget, SystemTarget
from shellwego.control.unit import Control, Unit
from shellwego.core import nodes
from shellwego.core.placement import NodeUsage
from shellwego.ports.store import Op, Transaction, Where
from shellwego.wire import subjects


class PlatformNodes:
    """See the module's head. An empty id means the only node."""

    def __init__(self, control: Control, callers: Callers) -> None:
        self._control = control
        self._callers = callers

    async def get_node(self, node_id: str) -> Node:
        target = NodeTarget(await self._one(node_id))
        with translated():
            return await self._callers.access().read(target, _shown)

    async def list_nodes(self, *, after: str, limit: int) -> Sequence[Node]:
        with translated():
            return await self._callers.access().read(SystemTarget(), lambda tx, _: _nodes(tx, after, limit))

    async def watch_nodes(self) -> AsyncGenerator[Node]:
        async with aclosing(self._callers.while_valid(self._changed(), SystemTarget())) as told:
            async for node in told:
                yield node

    async def _changed(self) -> AsyncGenerator[Node]:
        known: dict[str, Node] = {}
        access = self._callers.access()
        async with aclosing(changes(self._control, subjects.EVENTS)) as ticks:
            async for _ in ticks:
                with translated():
                    present = await access.read(SystemTarget(), lambda tx, _: _nodes(tx))
                for node in present:
                    if known.get(node.id) != node:
                        yield node
                known = {node.id: node for node in present}

    async def cordon(self, node_id: str) -> Node:
        return await self._move(node_id, scheduling.cordon)

    async def uncordon(self, node_id: str) -> Node:
        return await self._move(node_id, scheduling.uncordon)

    async def drain(self, node_id: str, deadline_s: float) -> Node:
        wish = scheduling.DrainWish(deadline_s=deadline_s)
        until = self._control.clock.monotonic() + deadline_s
        node = await self._move(node_id, lambda unit, node: scheduling.drain(unit, node, wish))
        access = self._callers.access()
        async with aclosing(changes(self._control, subjects.EVENTS)) as ticks:
            async for _ in ticks:
                await self._callers.renew(access)
                with translated():
                    node = await access.read(NodeTarget(node.id), _shown)
                if node.scheduling is not Scheduling.DRAINING or self._control.clock.monotonic() >= until:
                    break
        return node

    async def _move(self, node_id: str, move: Callable[[Unit, nodes.Node], nodes.Node]) -> Node:
        target = NodeTarget(await self._one(node_id))
        with translated():
            return await self._callers.access().write(target, lambda unit, node: _shown(unit.tx, move(unit, node)))

    async def _one(self, node_id: str) -> str:
        if node_id:
            return node_id
        with translated():
            found = await self._callers.access().read(SystemTarget(), lambda tx, _: tx.nodes.select(limit=2))
        if len(found) != 1:
            raise InvalidSpecError("node_id", f"the platform has {'several nodes' if found else 'no node'}: name one")
        return found[0].id


def _nodes(tx: Transaction, after: str = "", limit: int | None = None) -> list[Node]:
    usage = node_usage(tx)
    found = tx.nodes.select(Where("id", Op.GT, after), limit=limit)
    return [node_view(node, usage.get(node.id, NodeUsage())) for node in found]


def _shown(tx: Transaction, node: nodes.Node) -> Node:
    return node_view(node, node_usage(tx, node.id).get(node.id, NodeUsage()))
