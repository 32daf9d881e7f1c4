"""Standby copies of volumes: kept, given up, promoted; and what a promotion left behind."""

from __future__ import annotations

from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Project
from shellwego.api.rest.routes.common import Id, Ref, resource_router
from shellwego.api.rest.schemas.volumes import ReplicationBody, VolumeDetail
from shellwego.api.rest.volumeviews import volume_answer
from shellwego.control import standbys
from shellwego.control.idempotency import Answer
from shellwego.control.targets import NodeTarget, VolumeTarget
from shellwego.control.unit import Unit
from shellwego.core.volumes import Volume

router = resource_router("volumes")


@operation(
    router,
    "PUT",
    "/volumes/{volume}/replication",
    permission="volumes:write",
    answer=VolumeDetail,
    refusals=(412,),
)
async def replicate_volume(
    *, access: Granted, match: IfMatch, volume: Ref, body: ReplicationBody, project: Project = ""
) -> Response:
    """Keep a standby copy on another node, brought up again and again; where the volume's node is lost it becomes the
    volume. From then on the volume has a lease: what has it ends where its node does not hear the platform for 40 s. To name
    the node takes `nodes:read` on the platform, too."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        node = access.require(unit.tx, NodeTarget(body.node), "nodes:read") if body.node else None
        standbys.replicate(unit, row, body.every_s, node, automatic=body.automatic)
        return volume_answer(unit.tx, row)

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "DELETE",
    "/volumes/{volume}/replication",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
)
async def stop_volume_replication(*, access: Granted, volume: Ref, project: Project = "") -> Response:
    """Keep no standby copy any more; the one there is goes, and the volume's lease with it."""

    def work(unit: Unit, row: Volume) -> Answer:
        standbys.stop_replicating(unit, row)
        return volume_answer(unit.tx, row, 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "POST",
    "/volumes/{volume}/actions/promote",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
    refusals=(412,),
)
async def promote_volume(*, access: Granted, match: IfMatch, volume: Ref, project: Project = "") -> Response:
    """Let its standby copy become the volume: once its node is down, and nothing there can have it any more."""

    def work(unit: Unit, row: Volume) -> Answer:
        match.check(row.version)
        return volume_answer(unit.tx, standbys.promote_volume(unit, row), 202)

    return await write(access, VolumeTarget(volume, project), work)


@operation(
    router,
    "DELETE",
    "/volumes/{volume}/copies/{copy}",
    permission="volumes:write",
    answer=VolumeDetail,
    status=202,
)
async def drop_volume_copy(*, access: Granted, volume: Ref, copy: Id, project: Project = "") -> Response:
    """Destroy a copy that was left behind when a standby became the volume. What only it has cannot be had back."""

    def work(unit: Unit, row: Volume) -> Answer:
        standbys.drop_left(unit, row, copy)
        return volume_answer(unit.tx, row, 202)

    return await write(access, VolumeTarget(volume, project), work)
