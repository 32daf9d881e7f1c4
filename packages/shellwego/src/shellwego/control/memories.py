"""The memory of a sleeping instance that has to leave its node: the instance that replaces it goes on with it.

Theory. At any time one row says which instance owns a memory. As long as the new instance has `memory_of`, the old one
owns it: the new one only fetches a copy, which stays asleep, and nobody tells it to wake. When the new instance's node
reports that the copy is whole and asleep, the same transaction makes the new instance the owner and tells the old one
to stop, which deletes the old copy. Nobody can wake either of them before that. Whatever fails on the way, on either
node or here, leaves the old instance asleep where it is; the new one then begins without a memory, as after any loss of
one.

The bytes come from the old node over the stream that its agent opened, and are passed on at once to the new node's
download; no server stores them. A node may fetch only the memory that one of its own instances is to go on with, only
while that is so, and over one stream at a time. Each fetch is audited before its first byte.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from shellwego.control.announcements import announce
from shellwego.control.changes import apply, instance_data
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.scopes import missing
from shellwego.control.streams import poured
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.apps import App
from shellwego.core.changes import Stop
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.instances import Desired, Instance, Phase, Sleep
from shellwego.core.nodes import Backend
from shellwego.core.placement import PlacementRequest
from shellwego.ports.store import Transaction, eq, within
from shellwego.ports.streams import StreamKind, StreamRequest, Streams
from shellwego.wire import subjects

_GATHERING = frozenset({Phase.ASSIGNED, Phase.STARTING})
"""Phases of an instance that has no VM yet, or none that is whole."""


# Where it may go


def with_memory(tx: Transaction, request: PlacementRequest, instance: Instance) -> PlacementRequest:
    """What an instance needs of a node if it is to go on with the memory that it was meant to."""
    source = tx.instances.get(instance.memory_of)
    node = tx.nodes.get(source.node_id) if source is not None and source.sleeps else None
    backend = next((b for b in node.facts.backends if _sleeps_on(b, request)), None) if node else None
    return replace(request, memory=("", ()) if backend is None else (backend.name, backend.snapshot_host))


def _sleeps_on(backend: Backend, request: PlacementRequest) -> bool:
    """The backend that a node takes for such a VM: the first that can."""
    return backend.status == "ready" and backend.suspend and backend.serves(request.backend)


def leave(unit: Unit, app: App, instance: Instance, reason: str) -> Instance:
    """Let an instance begin without the memory that it was to go on with; stored, and told."""
    data = {**instance_data(instance), "from": instance.memory_of, "reason": reason[:200]}
    announce(unit, app, "instance.memory_left", data, resource=instance.id, severity="warning")
    unit.hint(subjects.app(app.id))
    if instance.node_id:
        unit.hint(subjects.assignments(instance.node_id))
    return unit.tx.instances.update(replace(instance, memory_of="", sleep=Sleep.AWAKE))


# Who owns it


def arrived(unit: Unit, app: App, instance: Instance) -> None:
    """The memory is whole where the instance is, and asleep: it is its own from now on, and no other's."""
    source = unit.tx.instances.get(instance.memory_of)
    if instance.desired is not Desired.SERVE:
        return
    if source is not None and source.live and source.sleep is not Sleep.ASLEEP:
        apply(unit, app, [Stop(instance_id=instance.id, reason=f"{source.id} was woken")])
        return
    unit.tx.instances.update(replace(instance, memory_of=""))
    data = {**instance_data(instance), "from": instance.memory_of}
    announce(unit, app, "instance.memory_moved", data, resource=instance.id)
    if source is not None and source.live and source.desired is not Desired.STOP:
        apply(unit, app, [Stop(instance_id=source.id, reason=f"{instance.id} has its memory")])


def refuse_moving(tx: Transaction, instance: Instance) -> None:
    """Whoever wakes an instance waits while its memory goes from one node to another: awake it would have to be left
    behind, and the copy must not be woken before it is whole.

    Raises:
        ConflictError: `memory-moving`, it does.
    """
    others = tx.instances.select(eq("app_id", instance.app_id), within("phase", LIVE_PHASES))
    takers = [i for i in others if i.memory_of == instance.id and i.desired is Desired.SERVE]
    comes = instance.memory_of and instance.phase is not Phase.ASLEEP
    if takers or comes:
        there = takers[0].id if takers else instance.id
        raise ConflictError(
            "memory-moving",
            f"the memory of the instance {instance.id} is on its way to another node",
            resolution=f"Try again in a few seconds, with {there}.",
        )


# On its way


class NodeMemories:
    """See `ports.uplink.Memories`: the control plane's end, on one server."""

    def __init__(self, control: Control, streams: Streams) -> None:
        self._control = control
        self._streams = streams
        self._passing: set[str] = set()

    async def memory(self, node_id: str, instance_id: str) -> AsyncGenerator[bytes]:
        """See `ports.uplink.Memories`."""
        if instance_id in self._passing:
            raise UnavailableError("memory-busy", f"the memory for {instance_id[:80]} is being fetched already")
        self._passing.add(instance_id)
        try:
            source = await self._control.commit(
                lambda unit: _hand_over(unit, node_id, instance_id), Caller(actor=node_id)
            )
            request = StreamRequest(kind=StreamKind.MEMORY, instance_id=source.id)
            async with aclosing(poured(self._streams, source.node_id, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._passing.discard(instance_id)


def _hand_over(unit: Unit, node_id: str, instance_id: str) -> Instance:
    """The instance whose memory a node may have now; noted before it has it."""
    target = unit.tx.instances.get(instance_id)
    if target is None or target.node_id != node_id or not _may_have(target):
        raise missing("instance", instance_id)
    source, app = unit.tx.instances.get(target.memory_of), unit.tx.apps.get(target.app_id)
    project = unit.tx.projects.get(app.project_id) if app else None
    if source is None or project is None or source.app_id != target.app_id or not source.sleeps:
        raise ConflictError("memory-gone", f"the instance {target.memory_of} does not sleep any more")
    unit.audit(
        "instances:move-memory",
        source.id,
        organization_id=project.organization_id,
        project_id=project.id,
        detail=f"to {target.id} on {node_id}",
    )
    return source


def _may_have(target: Instance) -> bool:
    return bool(target.memory_of) and target.desired is Desired.SERVE and target.phase in _GATHERING
