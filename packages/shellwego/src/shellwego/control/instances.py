"""Instances, as people ask for them: one of an app by its id, or whichever a command or a log should reach."""

from __future__ import annotations

from shellwego.control.config import refuse_unknown
from shellwego.control.scopes import missing
from shellwego.core.apps import App
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.instances import SERVING, TERMINAL, Instance, OwnerKind, Phase
from shellwego.ports.store import Op, Order, Transaction, Where, eq, within

_RUNNING = (Phase.HEALTHY, Phase.UNHEALTHY, Phase.STARTING)
LIVE_PHASES = tuple(phase.value for phase in Phase if phase not in TERMINAL)
_ENDED_PHASES = tuple(phase.value for phase in Phase if phase in TERMINAL)
_NEWEST = Order("created_at", descending=True)
SHORTEST_PART = 4
"""Characters of an id that may stand for it; fewer may be a slip."""
MAX_FOLLOWED = 64
"""Instances whose logs one request reads at most: what lives, then the newest of what ended."""


def app_instances(tx: Transaction, app: App, *conditions: Where, limit: int | None = None) -> list[Instance]:
    """The app's own instances, one-off runs left out, newest first."""
    own = (eq("app_id", app.id), eq("owner", OwnerKind.APP))
    return tx.instances.select(*own, *conditions, order=_NEWEST, limit=limit)


def find_instance(tx: Transaction, app: App, ref: str) -> Instance:
    """An instance of this app, one-off runs included: by its id, by a beginning or an end of that which only it has, or by
    its place such as `web.0`, where what lives comes before what ended.

    Raises:
        NotFoundError: the app has no such instance.
        InvalidError: it has several with this part of an id.
    """
    instance = tx.instances.get(ref)
    if instance is not None and instance.app_id == app.id:
        return instance
    found = _in_place(tx, app, ref) or _with_part(tx, app, ref)
    if not found:
        raise missing("instance", ref)
    if len(found) > 1:
        raise InvalidError(
            "ambiguous-instance",
            f"“{ref}” is a part of the ids of {len(found)} instances of {app.name}",
            resolution="Give more of the id, from its end.",
        )
    return found[0]


def _in_place(tx: Transaction, app: App, ref: str) -> list[Instance]:
    process, _, slot = ref.rpartition(".")
    filled = [i for i in app_instances(tx, app) if (i.process, str(i.slot)) == (process, slot)] if process else []
    return sorted(filled, key=lambda instance: not instance.live)[:1]


def _with_part(tx: Transaction, app: App, ref: str) -> list[Instance]:
    if len(ref) < SHORTEST_PART:
        return []
    own = tx.instances.select(eq("app_id", app.id))
    return [i for i in own if i.id.endswith(ref) or i.id.startswith(ref) or i.id.partition("_")[2].startswith(ref)]


def refuse_not_running(instance: Instance) -> None:
    """Raises `ConflictError` where nothing can be run in it now."""
    if instance.phase not in _RUNNING:
        asleep = instance.phase is Phase.ASLEEP
        raise ConflictError(
            "not-running",
            f"the instance {instance.id} does not run now: it is {instance.phase.value}",
            resolution="Resume it first." if asleep else "",
        )


def reachable_instance(tx: Transaction, app: App, id_: str = "", process: str = "") -> Instance:
    """The instance that a command should run in: the one named, or else a serving one, or else any that runs.

    Raises:
        NotFoundError: the app has no such instance.
        InvalidError: the app has no such process, or several such instances.
        ConflictError: it does not run, or none does.
    """
    if id_:
        instance = find_instance(tx, app, id_)
        refuse_not_running(instance)
        candidates = [instance]
    else:
        running = app_instances(tx, app, within("phase", _RUNNING))
        candidates = [instance for instance in running if process in ("", instance.process)]
    if not candidates:
        if process:
            refuse_unknown(app.config, {"process": process})
        raise ConflictError("not-running", f"no instance of {app.name}{process and f' {process}'} runs now")
    return min(candidates, key=lambda instance: (instance.phase not in SERVING, instance.slot))


def logged_instances(tx: Transaction, app: App, id_: str = "", process: str = "") -> list[Instance]:
    """Instances whose logs a request asks for: those that reached a node, the living before the ended, newest first.

    Raises:
        NotFoundError: the app has no such instance.
        InvalidError: the app has several such instances; or no such process, and no instance left of when it had one.
    """
    if id_:
        instance = find_instance(tx, app, id_)
        return [instance] if instance.node_id else []
    placed = Where("node_id", Op.GT, "")
    living = app_instances(tx, app, placed, within("phase", LIVE_PHASES))
    ended = app_instances(tx, app, placed, within("phase", _ENDED_PHASES), limit=MAX_FOLLOWED)
    found = [instance for instance in (*living, *ended) if process in ("", instance.process)]
    if process and not found:
        refuse_unknown(app.config, {"process": process})
    return found[:MAX_FOLLOWED]


def live_instances(tx: Transaction, app: App) -> list[Instance]:
    """The app's own instances that have, or will have, something on a node."""
    return app_instances(tx, app, within("phase", LIVE_PHASES))


def instances_on(tx: Transaction, node_id: str) -> list[Instance]:
    """All that a node has, or will have, of whichever owner."""
    return tx.instances.select(eq("node_id", node_id), within("phase", LIVE_PHASES))
