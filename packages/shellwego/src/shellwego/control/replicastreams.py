"""The difference between two snapshots of a volume, on its way from the volume's node to a node that keeps a copy.

The bytes come from the volume's node over the stream that its agent opened, and are passed on at once to the other
node's download, as memories are (`memories`). No server stores them, and of an encrypted volume they are ciphertext. A
node may fetch the round that is wanted of a replica that it keeps, and nothing else; one stream for each replica at a
time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from shellwego.control.replicareports import replica_order
from shellwego.control.scopes import missing, organization_of
from shellwego.control.streams import poured
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.moves import MoveStage
from shellwego.core.replicas import Replica, marked, marker
from shellwego.core.volumes import Volume
from shellwego.ports.streams import StreamKind, StreamRequest, Streams


class NodeReplicas:
    """See `ports.uplink.Replicas`: the control plane's end, on one server."""

    def __init__(self, control: Control, streams: Streams) -> None:
        self._control = control
        self._streams = streams
        self._passing: set[str] = set()

    async def replica(self, node_id: str, replica_id: str, snapshot_id: str, since: str) -> AsyncGenerator[bytes]:
        """See `ports.uplink.Replicas`."""
        if replica_id in self._passing:
            raise UnavailableError("replica-busy", f"the replica {replica_id[:80]} is being sent already")
        self._passing.add(replica_id)
        try:
            source, request = await self._control.commit(
                lambda unit: _hand_over(unit, node_id, replica_id, snapshot_id, since), Caller(actor=node_id)
            )
            async with aclosing(poured(self._streams, source, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._passing.discard(replica_id)


def _hand_over(unit: Unit, node_id: str, replica_id: str, snapshot_id: str, since: str) -> tuple[str, StreamRequest]:
    """The node that has what a replica's node may have now, and what to ask it for; noted before a whole copy leaves."""
    replica = unit.tx.replicas.get(replica_id)
    volume = unit.tx.volumes.get(replica.volume_id) if replica else None
    if replica is None or volume is None or replica.node_id != node_id or replica.dropping:
        raise missing("replica", replica_id)
    along = replica_order(unit.tx, replica).chain
    if snapshot_id not in (marker(replica.id, replica.round), *along) or not _is_base(replica, since, along):
        raise missing("snapshot", snapshot_id)
    if not volume.node_id or volume.node_id == node_id or volume.deleting or volume.lost:
        raise ConflictError("volume-not-there", f"the volume {volume.name} has no data elsewhere")
    if not since:
        _note(unit, replica, volume)
    request = StreamRequest(
        kind=StreamKind.REPLICA,
        instance_id="",
        volume_id=volume.id,
        snapshot_id=snapshot_id,
        base_id=since,
        quiet=volume.move is not None and volume.move.stage is MoveStage.LAST and volume.move.replica_id == replica.id,
    )
    return volume.node_id, request


def _is_base(replica: Replica, since: str, along: tuple[str, ...]) -> bool:
    of = marked(since)
    return not since or since in along or (of is not None and of[0] == replica.id)


def _note(unit: Unit, replica: Replica, volume: Volume) -> None:
    unit.audit(
        "volumes:replicate",
        volume.id,
        organization_id=organization_of(unit.tx, volume.project_id),
        project_id=volume.project_id,
        detail=f"{replica.purpose.value} {replica.id} to {replica.node_id}",
    )
