"""Instances that are told to leave their nodes, by a mark on their rows; the rollout loop does the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shellwego.control.announcements import announce
from shellwego.control.changes import apply, instance_data
from shellwego.control.unit import Unit
from shellwego.core.changes import Stop
from shellwego.core.instances import Eviction, OwnerKind
from shellwego.wire import subjects


def evict(unit: Unit, ids: Iterable[str], eviction: Eviction) -> None:
    """Mark instances as those that have to leave their nodes; a one-off run is stopped."""
    for instance in filter(None, map(unit.tx.instances.get, ids)):
        app = unit.tx.apps.get(instance.app_id)
        if app is None:
            continue
        if instance.owner is OwnerKind.RUN:
            apply(unit, app, [Stop(instance_id=instance.id, reason="its node is emptied")])
            continue
        unit.tx.instances.update(replace(instance, eviction=eviction))
        data = {**instance_data(instance), "how": eviction.value}
        announce(unit, app, "instance.evicted", data, resource=instance.id)
        unit.hint(subjects.app(app.id))
