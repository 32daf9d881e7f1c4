"""Instances put to sleep, and woken, by somebody's word.

Sleep is what is wanted of an instance that is present (`Instance.sleep`); asleep and awake are observed. The way down is
that of a stop: out of the routes, emptied (`core.rollout`), then its node puts it on disk. Meanwhile it keeps its slot,
counts as serving, and is neither checked nor replaced.
"""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.announcements import announce
from shellwego.control.changes import instance_data
from shellwego.control.memories import refuse_moving
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.errors import ConflictError, NotFoundError
from shellwego.core.instances import SUSPEND_FAILED, Desired, Instance, Observed, Phase, Sleep
from shellwego.ports.store import Transaction
from shellwego.wire import subjects


def suspend(unit: Unit, instance: Instance) -> Instance:
    """Have an instance sleep until it is resumed; one that is to sleep already stays as it is.

    Raises:
        ConflictError: it is not healthy, or is on its way out; or its node's backends cannot.
    """
    app = _app(unit.tx, instance)
    if instance.live and instance.desired is Desired.SERVE and instance.sleep is not Sleep.AWAKE:
        return instance
    _refuse_unfit(instance)
    _refuse_incapable(unit.tx, instance)
    announce(unit, app, "instance.suspending", instance_data(instance), resource=instance.id)
    unit.hint(subjects.app(app.id))
    return unit.tx.instances.update(
        replace(instance, sleep=Sleep.DOZING, drain_since=unit.now(), routed_version=None, unrouted_version=None)
    )


def resume(unit: Unit, instance: Instance) -> Instance:
    """Have an instance run on; one that is awake stays as it is.

    Raises:
        ConflictError: it has ended, or is on its way out; or its memory is on its way to another node.
    """
    app = _app(unit.tx, instance)
    if not instance.live or instance.desired is not Desired.SERVE:
        raise ConflictError("not-asleep", f"the instance {instance.id} is on its way out, or has ended")
    if instance.sleep is Sleep.AWAKE:
        return instance
    refuse_moving(unit.tx, instance)
    announce(unit, app, "instance.resuming", instance_data(instance), resource=instance.id)
    return woken(unit, instance)


def woken(unit: Unit, instance: Instance) -> Instance:
    """The row of an instance that is to be awake, and in the routes once it is healthy if it stays; stored."""
    unit.hint(subjects.app(instance.app_id))
    unit.hint(subjects.assignments(instance.node_id))
    awake = replace(instance, sleep=Sleep.AWAKE)
    if instance.desired is Desired.SERVE:
        awake = replace(awake, drain_since=None, routed_version=None, unrouted_version=None)
    return unit.tx.instances.update(awake)


def give_up_sleep(unit: Unit, app: App, instance: Instance, observed: Observed) -> None:
    """Its node could not put it to sleep, and it runs on: it goes back into the routes, or on its way out, and people are
    told."""
    data = {**instance_data(instance), "reason": observed.reason[:200]}
    announce(unit, app, "instance.suspend_failed", data, resource=instance.id, severity="warning")
    woken(unit, instance)


def _app(tx: Transaction, instance: Instance) -> App:
    app = tx.apps.get(instance.app_id)
    if app is None:
        raise NotFoundError("instance-not-found", f"there is no instance “{instance.id}”")
    return app


def _refuse_unfit(instance: Instance) -> None:
    if instance.phase is not Phase.HEALTHY or instance.desired is not Desired.SERVE:
        state = "on its way out" if instance.desired is not Desired.SERVE else instance.phase.value
        raise ConflictError(
            "not-healthy",
            f"the instance {instance.id} is {state}; only a healthy one can be suspended",
            resolution="Wait until it is healthy.",
        )
    if instance.observed.reason_code == SUSPEND_FAILED:
        raise ConflictError(
            "suspend-failed",
            f"the node could not suspend the instance {instance.id}: {instance.observed.reason}",
            resolution="Try again in a few seconds.",
        )


def _refuse_incapable(tx: Transaction, instance: Instance) -> None:
    release, node = tx.releases.get(instance.release_id), tx.nodes.get(instance.node_id)
    name = release.config.backend if release else None
    offered = [backend for backend in (node.facts.backends if node else ()) if backend.serves(name)]
    if not any(backend.suspend for backend in offered if backend.status == "ready"):
        names = ", ".join(backend.name for backend in offered) or "none"
        raise ConflictError(
            "cannot-suspend",
            f"no backend of its node that this app may run on can suspend a VM ({names})",
            resolution="Deploy it with another --backend.",
        )
