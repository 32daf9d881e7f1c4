"""What must hold of release commands in every history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shellwego.core.changes import StartCommand
from shellwego.core.deployments import FINISHED, Deployment, DeploymentState
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.rollout import RolloutPlan

if TYPE_CHECKING:
    from tests.core.rollout_platform import Platform


def check(world: Platform, before: Mapping[str, Instance], plan: RolloutPlan) -> None:
    """Rules on the runs that a plan leaves."""
    for change in plan.changes:
        if isinstance(change, StartCommand):
            _check_start(world, before, world.deployments[change.deployment_id])
    for run in world.runs():
        over = world.deployments[run.deployment_id].state in FINISHED
        assert not (over and run.live and run.desired is Desired.SERVE), "a run outlives its deployment"
    for deployment in world.deployments.values():
        _check_begun(world, deployment)


def _check_start(world: Platform, before: Mapping[str, Instance], deployment: Deployment) -> None:
    assert deployment.state is DeploymentState.PENDING, "its command comes before its rollout"
    assert not [i for i in before.values() if i.deployment_id == deployment.id], "a command is started once"
    others = [i for i in world.runs() if i.live and i.deployment_id != deployment.id]
    assert not others, "two commands at a time"


def _check_begun(world: Platform, deployment: Deployment) -> None:
    """What is rolled out, or was, had its command end well; a command that did not ends its deployment."""
    if deployment.release_command is None:
        return
    runs = [i for i in world.runs() if i.deployment_id == deployment.id]
    well = [i for i in runs if i.phase is Phase.STOPPED and i.desired is Desired.SERVE and i.observed.exit_code == 0]
    if deployment.started_at is not None:
        assert well, "rolled out before its command ended well"
    if deployment.state is DeploymentState.PENDING:
        assert all(i.live for i in runs), "waits for a command that is over"
        assert world.now < deployment.deadline, "waits beyond its deadline"
        assert not any(
            i.release_id == deployment.release_id for i in world.own() if i.created_at >= deployment.created_at
        )
