"""What apps may open connections to: changed at once for what runs, without a release.

It travels with the assignments (`control.assignments.workload`); the nodes that have something of the app are hinted.
"""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.announcements import announce
from shellwego.control.deployments import refuse_deleting
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.unit import Unit
from shellwego.core.apps import App
from shellwego.core.destinations import Egress
from shellwego.ports.store import eq, within
from shellwego.wire import subjects


def set_egress(unit: Unit, app: App, egress: Egress) -> App:
    """Have the app's VMs open connections as it says, those that run too.

    Raises:
        ConflictError: the app is being destroyed.
    """
    refuse_deleting(app)
    if egress == app.egress:
        return app
    data = {"mode": "listed" if egress.listed else "open", "destinations": str(len(egress.destinations))}
    announce(unit, app, "app.egress_changed", data)
    live = unit.tx.instances.select(eq("app_id", app.id), within("phase", LIVE_PHASES))
    for node_id in sorted({instance.node_id for instance in live} - {""}):
        unit.hint(subjects.assignments(node_id))
    return unit.tx.apps.update(replace(app, egress=egress, updated_at=unit.now()))
