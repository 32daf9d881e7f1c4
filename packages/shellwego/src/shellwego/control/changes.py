"""A plan's changes, made in the transaction that they were planned in, with their events and hints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shellwego.control.announcements import announce
from shellwego.control.facts import releases_of
from shellwego.control.grants import forget_grants
from shellwego.control.holds import let_go
from shellwego.control.priorities import allowed_priority, reprioritize
from shellwego.control.securitygroups import forget_app
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Release
from shellwego.core.changes import (
    Aim,
    Change,
    Drain,
    Forget,
    Lose,
    MoveDeployment,
    Start,
    StartCommand,
    Stop,
    Suspend,
    change_instance,
    move_deployment,
    new_command,
    new_instance,
)
from shellwego.core.deployments import Deployment, DeploymentState
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase
from shellwego.core.publishing import PublishedPort
from shellwego.core.slots import FAILURE_WINDOW_S
from shellwego.core.target import Target, stable_target
from shellwego.ports.store import Order, Table, Transaction, eq
from shellwego.wire import subjects

KEPT_ENDED = 20
"""Ended instances of an app that are kept for people to look at."""
_BAD = frozenset({DeploymentState.FAILED, DeploymentState.ROLLED_BACK})


def apply(unit: Unit, app: App, changes: Iterable[Change]) -> None:
    """Make the changes, planned in this transaction from the app as it is in it."""
    aimed, stepped = False, False
    for change in changes:
        match change:
            case Start():
                _start(unit, app, change)
            case StartCommand():
                _start_command(unit, app, change)
            case Drain() | Stop() | Suspend() | Lose():
                _change(unit, app, change)
            case MoveDeployment():
                stepped |= _move(unit, app, change)
            case Aim():
                _aim(unit, app, change)
                aimed = True
            case Forget():
                _forget(unit, app)
                return
    if stepped and not aimed:
        unit.tx.apps.update(app)  # loops that look which apps changed see another version: the weight is in its routes


def instance_data(instance: Instance) -> dict[str, str]:
    """What an event tells of an instance."""
    return {"process": instance.process, "slot": str(instance.slot), "node": instance.node_id}


def _start(unit: Unit, app: App, start: Start) -> None:
    release = releases_of(unit.tx, [start.release_id])[start.release_id]
    instance = new_instance(start, app.id, release, id_=unit.new_id("ins"), now=unit.now())
    unit.tx.instances.insert(replace(instance, priority=allowed_priority(unit.tx, app, release.config)))
    data = {**instance_data(instance), "release": f"v{release.number}"}
    announce(unit, app, "instance.created", data, resource=instance.id)


def _start_command(unit: Unit, app: App, start: StartCommand) -> None:
    release = releases_of(unit.tx, [start.release_id])[start.release_id]
    command = new_command(start, app.id, release, id_=unit.new_id("ins"), now=unit.now())
    run = unit.tx.instances.insert(replace(command, priority=allowed_priority(unit.tx, app, release.config)))
    data = {**instance_data(run), "release": f"v{release.number}", "deployment": start.deployment_id}
    announce(unit, app, "app.release_command.requested", data, resource=run.id)


def _change(unit: Unit, app: App, change: Drain | Stop | Suspend | Lose) -> None:
    stored = unit.tx.instances.get(change.instance_id)
    if stored is None:
        return
    changed = unit.tx.instances.update(change_instance(stored, change, unit.now()))
    if changed.node_id:
        unit.hint(subjects.assignments(changed.node_id))
    if not changed.live:
        let_go(unit, changed)
    data = {**instance_data(changed), "reason": change.reason}
    match change:
        case Drain():
            announce(unit, app, "instance.draining", data, resource=changed.id)
        case Stop() | Suspend():
            data |= {"cut_sessions": str(change.cut)} if change.cut else {}
            data |= {"silent_edges": ", ".join(change.silent_edges)} if change.silent_edges else {}
            severity = "warning" if change.cut or change.silent_edges else "info"
            kind = "stopping" if isinstance(change, Stop) else "emptied"
            announce(unit, app, f"instance.{kind}", data, resource=changed.id, severity=severity)
        case Lose():
            announce(unit, app, "instance.lost", data, resource=changed.id, severity="error")


def _aim(unit: Unit, app: App, aim: Aim) -> None:
    aimed = replace(
        app,
        release_id=aim.release_id,
        stable_release_id=aim.stable_release_id,
        stable_generation=aim.stable_generation,
        updated_at=unit.now(),
    )
    unit.tx.apps.update(aimed)
    if aimed.release_id != app.release_id:
        reprioritize(unit, aimed)


def _move(unit: Unit, app: App, move: MoveDeployment) -> bool:
    """Whether a canary came to another step by it."""
    stored = unit.tx.deployments.get(move.deployment_id)
    if stored is None:
        return False
    moved = unit.tx.deployments.update(move_deployment(stored, move, unit.now()))
    if moved.state is not stored.state:
        kind = moved.state.value
    elif moved.step.number != stored.step.number:
        kind = "step"
    elif moved.stage is not stored.stage:
        kind = "stage"
    else:
        return False
    data = {"deployment": moved.id, "stage": moved.stage.value, "reason": moved.reason[:500]}
    data |= {"weight": str(moved.weight)} if moved.canary else {}
    severity = "error" if moved.state in _BAD else "info"
    announce(unit, app, f"app.deployment.{kind}", data, severity=severity)
    return moved.step.number != stored.step.number


def _forget(unit: Unit, app: App) -> None:
    """Remove the app with all its rows; its name and hostname are free again."""
    announce(unit, app, "app.deleted")
    _clear(unit.tx.instances, app)
    _clear(unit.tx.deployments, app)
    _clear(unit.tx.releases, app)
    _clear(unit.tx.published_ports, app)
    forget_app(unit, app)
    forget_grants(unit, app.id)
    unit.tx.apps.delete(app.id)


def _clear(table: Table[Instance] | Table[Deployment] | Table[Release] | Table[PublishedPort], app: App) -> None:
    for row in table.select(eq("app_id", app.id)):
        table.delete(row.id)


def prune(unit: Unit, app_id: str) -> None:
    """Forget ended instances that no plan looks at any more, beyond the newest few.

    A job that ended well fills its slot as long as the app aims at its content and generation.
    """
    newest = Order("created_at", descending=True)
    ended = [row for row in unit.tx.instances.select(eq("app_id", app_id), order=newest) if not row.live]
    old = [row for row in ended[KEPT_ENDED:] if unit.now() - row.phase_since > FAILURE_WINDOW_S]
    app = unit.tx.apps.get(app_id)
    targets = _aims(unit.tx, app) if app and old else ()
    for row in old:
        job = row.owner is OwnerKind.APP and row.phase is Phase.STOPPED and row.desired is Desired.SERVE
        if not (job and any(target.matches(row) for target in targets)):
            unit.tx.instances.delete(row.id)


def _aims(tx: Transaction, app: App) -> tuple[Target, ...]:
    """What the app is on its way to, and what it would return to."""
    releases = releases_of(tx, [app.release_id, app.stable_release_id])
    return Target(release=releases.get(app.release_id), generation=app.generation), stable_target(app, releases)
