"""Nodes that are emptied, in random histories: what an operator and the drains loop do, by the world's own simple means."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shellwego.core.changes import Stop, change_instance
from shellwego.core.drain import released
from shellwego.core.instances import Desired, Eviction
from tests.core.rollout_parts import NODES

if TYPE_CHECKING:
    from tests.core.rollout_platform import Platform


def begin(world: Platform, node: str) -> None:
    """As an operator, who never drains all."""
    if len(world.draining | {node}) < len(NODES):
        world.draining.add(node)


def end(world: Platform, node: str) -> None:
    """As the use case: what has not begun to move stays."""
    if node not in world.draining:
        return
    world.draining.discard(node)
    here = [i for i in world.own() if i.node_id == node]
    stay, unneeded = released(here, {"app": world.own()})
    for id_ in stay:
        world.instances[id_] = replace(world.instances[id_], eviction=Eviction.NONE)
    for id_ in unneeded:
        stop = Stop(instance_id=id_, reason="nobody needs it")
        world.instances[id_] = change_instance(world.instances[id_], stop, world.now)


def evict(world: Platform, eviction: Eviction, share: float = 1.0) -> None:
    """What is on nodes that are emptied has to leave, or some of it."""
    for i in world.own():
        leaves = i.live and i.desired is Desired.SERVE and i.node_id in world.draining
        if leaves and i.eviction is not Eviction.FORCED and world.random.random() < share:
            world.instances[i.id] = replace(i, eviction=eviction)
