"""One-off commands: a VM of the app's release with another command, beside its instances.

A run is an instance with owner `run`. The rollout loop places it like any other and prunes it when it has ended; the
planner never counts, routes, restarts or replaces it. Its output is its log, its result the exit code that its node saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.announcements import announce
from shellwego.control.config import check_command, refuse, refuse_unplaceable
from shellwego.control.deployments import refuse_deleting
from shellwego.control.images import require_image
from shellwego.control.instances import LIVE_PHASES, find_instance
from shellwego.control.priorities import allowed_priority
from shellwego.control.quotas import charge_run
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.apps import MIB, App, Process, Release
from shellwego.core.deployments import FINISHED
from shellwego.core.errors import ConflictError, FieldError, QuotaError
from shellwego.core.instances import Desired, Instance, OwnerKind
from shellwego.ports.store import Transaction, eq, within
from shellwego.wire import subjects

MAX_RUNS = 20
"""At a time, of one app."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWish:
    command: tuple[str, ...]
    process: str | None = None
    """Whose size and entrypoint it gets; None: the first."""
    memory_bytes: int | None = None
    id: str = ""
    """Of the run, where it was chosen before so that a repeated wish finds it."""


def create_run(unit: Unit, app: App, wish: RunWish) -> Instance:
    """Have the command run once.

    Raises:
        InvalidError: the command cannot be run, or the app has no such process.
        ConflictError: the app was never deployed, its image was deleted, or it is being destroyed.
        QuotaError: the app has as many runs as it may, or its project or organization all that it may.
    """
    refuse_deleting(app)
    check_command(wish.command)
    release = _release(unit.tx, app)
    process = _process(release, wish)
    refuse_unplaceable(replace(release.config, processes=(process,)), unit.tx.nodes.select())
    running = unit.tx.instances.count(eq("app_id", app.id), eq("owner", OwnerKind.RUN), within("phase", LIVE_PHASES))
    if running >= MAX_RUNS:
        raise QuotaError("too-many-runs", f"an app has at most {MAX_RUNS} one-off commands at a time")
    run = _instance(unit, app, release, process, wish)
    charge_run(unit, app, run)
    unit.tx.instances.insert(run)
    announce(unit, app, "app.run.requested", {"instance": run.id})
    unit.hint(subjects.app(app.id))
    return run


def _release(tx: Transaction, app: App) -> Release:
    """What the app runs: the last release rolled out in full, else what it is being rolled out to."""
    release = tx.releases.get(app.stable_release_id or app.release_id)
    if release is None:
        raise ConflictError("never-deployed", f"the app {app.name} has no release yet", resolution="Deploy it first.")
    require_image(tx, app.project_id, release.image_digest)
    return release


def _process(release: Release, wish: RunWish) -> Process:
    for process in release.config.processes:
        if wish.process in (None, process.name):
            return process if wish.memory_bytes is None else _resized(process, wish.memory_bytes)
    fault = FieldError("process", "no-such-process", f"the release has no process “{str(wish.process)[:40]}”")
    refuse("no-such-process", (fault,))
    raise AssertionError("refused above")


def _resized(process: Process, memory_bytes: int) -> Process:
    if not 32 * MIB <= memory_bytes <= 1024 * 1024 * MIB:
        refuse("bad-size", (FieldError("memory", "out-of-range", "between 32m and 1tb"),))
    return replace(process, memory_bytes=memory_bytes)


def _instance(unit: Unit, app: App, release: Release, process: Process, wish: RunWish) -> Instance:
    return Instance(
        id=wish.id or unit.new_id("ins"),
        app_id=app.id,
        owner=OwnerKind.RUN,
        process=process.name,
        slot=0,
        release_id=release.id,
        content_hash=release.content_hash,
        generation=app.generation,
        command=wish.command,
        memory_bytes=process.memory_bytes,
        cpu_milli=process.cpu_milli,
        disk_bytes=process.disk_bytes,
        priority=allowed_priority(unit.tx, app, release.config),
        created_at=unit.now(),
        phase_since=unit.now(),
    )


def stop_run(unit: Unit, app: App, id_: str) -> Instance:
    """Stop a one-off command; one that has ended stays as it is. Raises `NotFoundError`."""
    run = find_instance(unit.tx, app, id_)
    if run.owner is not OwnerKind.RUN:
        raise missing("run", id_)
    if not run.live or run.desired is Desired.STOP:
        return run
    unit.hint(subjects.app(app.id))
    if run.node_id:
        unit.hint(subjects.assignments(run.node_id))
    return unit.tx.instances.update(replace(run, desired=Desired.STOP))


def forget_run(unit: Unit, app: App, id_: str) -> None:
    """Remove the row of a one-off command that has ended; its log stays on the node for its time.

    Raises:
        NotFoundError: the app has no such run.
        ConflictError: it has not ended, or its deployment still has to look at it.
    """
    run = find_instance(unit.tx, app, id_)
    if run.owner is not OwnerKind.RUN:
        raise missing("run", id_)
    deployment = unit.tx.deployments.get(run.deployment_id) if run.deployment_id else None
    if run.live or (deployment is not None and deployment.state not in FINISHED):
        raise ConflictError("not-ended", f"the run {run.id} has not ended", resolution="Stop it first.")
    unit.tx.instances.delete(run.id)
    announce(unit, app, "app.run.deleted", {"instance": run.id})
