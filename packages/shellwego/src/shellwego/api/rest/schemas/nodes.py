"""What is asked of nodes, and how they are emptied."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, View, when, when_or_none
from shellwego.control.peers import Rotation
from shellwego.control.scheduling import MAX_DEADLINE_S, MAX_PARALLEL
from shellwego.core.drain import DrainPlan, VolumeLeft
from shellwego.core.evicted import Waiting
from shellwego.core.nodes import MAX_LABELS, MOVES_AT_A_TIME, DrainOrder


class DrainBody(Body):
    """How a node is to be emptied. `deadline` is in seconds from now; after it what is left is told, and with `force`
    stopped, replaced or not. `parallel`: so many instances move at a time. `volumes`: those that live there go to other
    nodes, too, and their apps with them."""

    deadline: Annotated[float, Field(ge=0, le=MAX_DEADLINE_S)] | None = None
    force: bool = False
    parallel: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] = MOVES_AT_A_TIME
    volumes: bool = False


class NodePatch(Body):
    """What is left out stays. Of `labels` those that are named change; null removes one."""

    labels: Annotated[dict[str, str | None], Field(max_length=2 * MAX_LABELS)] = Field(default_factory=dict)
    region: Annotated[str, Field(max_length=63)] | None = None
    zone: Annotated[str, Field(max_length=63)] | None = None


class KeyRotationView(View):
    """An exchange of the keys that nodes know each other by: each node has others by its end, and all ways stay open."""

    began_at: datetime
    over_at: datetime
    nodes: int
    """Those that have such keys."""


class WaitingView(View):
    """What is left on a node that is emptied, and what it waits for."""

    instance_id: str
    app_id: str
    app: str
    process: str
    slot: int
    reason: str


class VolumeLeftView(View):
    """A volume that is to leave the node, too, and what it waits for."""

    volume_id: str
    volume: str
    reason: str


class DrainView(View):
    """How a node is being emptied, and how far that came."""

    since: datetime
    deadline: datetime | None
    force: bool
    parallel: int
    overdue: bool
    """The deadline has passed."""
    volumes: bool
    """Volumes leave it, too."""
    instances_left: int
    volumes_left: list[VolumeLeftView]
    """The first hundred of those that are to leave. Told of a single node only."""
    waiting: list[WaitingView]
    """The first hundred of what is left. Told of a single node only."""


TOLD = 100
"""Of what is left on a node."""


def drain_view(order: DrainOrder, left: int, plan: DrainPlan | None, apps: Mapping[str, str]) -> DrainView:
    """`plan` None: without what is waited for; `apps` are names by id."""
    return DrainView(
        since=when(order.since),
        deadline=when_or_none(order.deadline),
        force=order.force,
        parallel=order.parallel,
        overdue=order.overdue,
        volumes=order.volumes,
        instances_left=left,
        volumes_left=[_volume_view(each) for each in plan.volumes[:TOLD]] if plan else [],
        waiting=[_waiting_view(each, apps) for each in plan.waiting[:TOLD]] if plan else [],
    )


def _volume_view(left: VolumeLeft) -> VolumeLeftView:
    return VolumeLeftView(volume_id=left.volume_id, volume=left.name, reason=left.reason)


def _waiting_view(waiting: Waiting, apps: Mapping[str, str]) -> WaitingView:
    instance = waiting.instance
    return WaitingView(
        instance_id=instance.id,
        app_id=instance.app_id,
        app=apps.get(instance.app_id, ""),
        process=instance.process,
        slot=instance.slot,
        reason=waiting.reason,
    )


def key_rotation_view(rotation: Rotation) -> KeyRotationView:
    return KeyRotationView(began_at=when(rotation.began_at), over_at=when(rotation.over_at), nodes=rotation.nodes)
