"""What tests of the rollout planner share: one app with some releases, and a look at what is planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from shellwego.core.apps import App, Release
from shellwego.core.changes import Change, MoveDeployment
from shellwego.core.deployments import Deployment
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance
from shellwego.core.rollout import ImageFacts, RolloutFacts, RolloutPlan, plan_rollout
from shellwego.core.routing import Edge
from tests.core.app_builder import NOW, app, release

C = TypeVar("C")
V1, V2, V3 = release(1), release(2), release(3)
STABLE = app(release_id=V1.id, stable_release_id=V1.id)
READY = ImageFacts(state=ImageState.READY)


def plan(
    of: App,
    *instances: Instance,
    deployments: Sequence[Deployment] = (),
    edges: Sequence[Edge] = (),
    image: ImageFacts = READY,
    releases: Sequence[Release] = (V1, V2, V3),
    dead_nodes: Sequence[str] = (),
    published: frozenset[str] = frozenset(),
    now: float = NOW,
) -> RolloutPlan:
    facts = RolloutFacts(
        app=of,
        releases={release.id: release for release in releases},
        deployments=tuple(deployments),
        instances=instances,
        images={deployment.release_id: image for deployment in deployments},
        edges=tuple(edges),
        published=published,
        dead_nodes=frozenset(dead_nodes),
    )
    return plan_rollout(facts, now)


def kinds(changes: Sequence[Change]) -> list[str]:
    return [type(change).__name__ for change in changes]


def only(made: RolloutPlan, kind: type[C]) -> C:
    (found,) = [change for change in made.changes if isinstance(change, kind)]
    return found


def last_move(made: RolloutPlan) -> MoveDeployment:
    return [change for change in made.changes if isinstance(change, MoveDeployment)][-1]
