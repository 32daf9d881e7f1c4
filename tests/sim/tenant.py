"""A tenant: asks for things of one app, and knows what must be true of it by the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shellwego.control import apps, deployments
from shellwego.control.apps import AppWish, current_deployment
from shellwego.control.authorization import Access
from shellwego.control.config import ConfigWish, PlacementWish, ProcessWish
from shellwego.control.deployments import Rollout
from shellwego.control.images import choose_image
from shellwego.control.runs import RunWish, create_run, stop_run
from shellwego.control.sleep import resume, suspend
from shellwego.control.targets import AppTarget, ProjectTarget, VolumeTarget
from shellwego.control.unit import Unit
from shellwego.core.apps import App, Service
from shellwego.core.deployments import CanaryPlan
from shellwego.core.errors import ConflictError, ForbiddenError, ShellWeGoError
from shellwego.core.instances import OwnerKind, Phase, Sleep
from shellwego.core.tenancy import Project
from shellwego.ports.store import eq
from tests.sim import disks
from tests.sim.client import Client, Request, Told, answering, told
from tests.sim.disks import Disks
from tests.sim.story import Event

if TYPE_CHECKING:
    from tests.sim.server import Server
    from tests.sim.world import World

PRIORITIES = (20, 50, 80)
MEMORIES_BYTES = (256 << 20, 1 << 30, 2 << 30, 2 << 30, 3 << 30, 5 << 30)
"""What an instance may take of the 5 or 8 GiB that a node has: some of these fill it to the brim."""
LARGE_BYTES = 3 << 30
STRATEGIES = ("rolling", "immediate", "bluegreen", "canary")
EFFECTS = {
    "create": "app.created",
    "deploy": "app.deployment.requested",
    "deploy-bad": "app.deployment.requested",
    "scale": "app.scaled",
    "rollback": "app.deployment.requested",
    "restart": "app.deployment.requested",
    "stop": "app.stopped",
    "start": "app.started",
    "run": "app.run.requested",
    "sleep": "instance.suspending",
    "wake": "instance.resuming",
    "cancel": "app.deployment.cancelled",
    "prioritize": "app.deployment.requested",
    "destroy": "app.deleting",
    **disks.EFFECTS,
}
"""The event by which each operation is told, once."""


@dataclass(slots=True)
class Model:
    """What must be stored of an app, by the answers that were given."""

    app_id: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    stopped: bool = False
    generation: int = 0
    destroyed: bool = False
    deployments: dict[str, str] = field(default_factory=dict)
    """Those that were acknowledged, and the request of each."""
    cancelled: set[str] = field(default_factory=set)


class Tenant(Client):
    """All requests about one app name."""

    effects = EFFECTS

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, f"app-{index}")
        self.model = Model()
        self._disks = Disks(world, self.name)

    def _meant(self, event: Event, tag: str) -> Request:
        operation = event.kind
        if self.model.app_id == "":
            operation = "create"
        elif operation in disks.EFFECTS:
            operation = self._disks.meant(operation, event.number)
        return Request(operation, self.name, event.number, tag)

    async def _do(self, server: Server, request: Request) -> Told:
        access = self._access(server, request, _PERMISSIONS.get(request.operation, "apps:write"))
        project = self._world.project_id
        if request.operation == "create":
            return told(await access.write_once(ProjectTarget(project), answering(_create(request))))
        if request.operation in disks.EFFECTS:
            return await self._do_to_volume(access, request)
        if request.operation in _OUTSIDE and (known := await access.recalled()) is not None:
            return told(known)
        work = await _work(self._world, server, request)
        return told(await access.write_once(AppTarget(request.name, project), answering(work)))

    async def _do_to_volume(self, access: Access, request: Request) -> Told:
        name, project = self._disks.name(request.number), self._world.project_id
        if request.operation == "volume-create":
            return told(await access.write_once(ProjectTarget(project), answering(disks.create(request, name))))
        work = disks.work(access, request, project, _rollout(request))
        return told(await access.write_once(VolumeTarget(name, project), answering(work)))

    def _refused(self, request: Request, error: ShellWeGoError) -> None:
        if request.operation == "denied":
            self._check_denied(request, error)
        elif isinstance(error, ForbiddenError):
            self._violated("wrong-answer", request, error.code)
        if error.code == "app-not-found":
            self._gone(request)
        if error.code == "volume-not-found" and (lost := self._disks.gone(request)):
            self._violated("lost-write", request, lost)

    def _done(self, request: Request, answer: Told) -> None:
        model = self.model
        match request.operation:
            case "denied":
                self._violated("allowed", request, "a viewer may not")
            case "create":
                self.model = Model(app_id=str(answer["app"]))
            case "scale":
                model.counts["web"] = int(str(answer["count"]))
            case "stop" | "start":
                model.stopped = request.operation == "stop"
            case "destroy":
                model.destroyed = True
            case "attach":
                model.counts["web"] = 1
            case "restart":
                model.generation += 1
            case "cancel":
                model.cancelled.add(str(answer["deployment"]))
        if EFFECTS.get(request.operation) == "app.deployment.requested" and answer["deployment"]:
            model.deployments[str(answer["deployment"])] = request.tag
        self._disks.learn(request, answer)

    def _gone(self, request: Request) -> None:
        if not self.model.destroyed:
            self._violated("lost-write", request, f"the app {self.name} is gone")
        self.model = Model()

    def _check_denied(self, request: Request, answer: ShellWeGoError) -> None:
        if answer.code == "app-not-found":
            return
        if not isinstance(answer, ForbiddenError):
            self._violated("wrong-answer", request, answer.code)
        if not self._world.watch.refusals[request.tag]:
            self._violated("unaudited", request, "the refusal left no record")

    def check(self) -> None:
        """What was acknowledged is stored, now that nothing is under way."""
        if self.busy:
            return
        for fault in self._disks.faults():
            self._world.watch.violated("lost-write", fault)
        if self.model.app_id:
            self._check_app()

    def _check_app(self) -> None:
        model, app = self.model, self._world.app(self.name)
        if app is None or app.id != model.app_id:
            if not model.destroyed:
                self._world.watch.violated("lost-write", f"{self.name} is gone")
            return
        stored = (dict(app.counts), app.stopped, app.generation, app.deleting)
        if stored != (model.counts, model.stopped, model.generation, model.destroyed):
            self._world.watch.violated("lost-write", f"{self.name} is {stored}, and should be {model}")
        rows = self._world.rows("deployments")
        for id_ in model.deployments:
            if id_ not in rows:
                self._world.watch.violated("lost-write", f"deployment {id_} of {self.name} is gone")
        for id_ in model.cancelled:
            if rows[id_].state.value != "cancelled":
                self._world.watch.violated("lost-write", f"deployment {id_} of {self.name} is {rows[id_].state}")


Work = Callable[[Unit, App], Told]


def _create(request: Request) -> Callable[[Unit, Project], Told]:
    config = ConfigWish(services=(Service(process="web", port=8080),), drain_timeout_s=2.0)
    if request.number % 5 == 0:
        config = ConfigWish(services=())

    def work(unit: Unit, project: Project) -> Told:
        wish = AppWish(name=request.name, config=config)
        return {"app": apps.create_app(unit, project, wish, "localhost").id}

    return work


async def _work(world: World, server: Server, request: Request) -> Work:
    number = request.number
    match request.operation:
        case "deploy" | "deploy-bad":
            from tests.sim.world import BAD, GOOD  # noqa: PLC0415

            references = GOOD if request.operation == "deploy" else BAD
            reference = references[number % len(references)]
            image = await choose_image(server.control, server.work, world.project_id, reference)
            rollout = _rollout(request)

            def deploy(unit: Unit, app: App) -> Told:
                before = unit.tx.apps.get(app.id)
                made = deployments.request_deployment(unit, app, ConfigWish(image=reference), image, rollout)
                after = unit.tx.apps.get(app.id)
                return {"deployment": made.id, "effect": before.last_release_number != after.last_release_number}

            return deploy
        case "rollback":
            return lambda unit, app: {"deployment": deployments.rollback(unit, app, None, _rollout(request)).id}
        case "restart":
            return lambda unit, app: {"deployment": deployments.restart(unit, app, _rollout(request)).id}
        case "prioritize":
            return _prioritize(request)
        case _:
            return _SIMPLE[request.operation](number)


def _rollout(request: Request) -> Rollout:
    strategy = STRATEGIES[request.number % 4]
    return Rollout(
        strategy=strategy,
        wait_timeout_s=5.0 + request.number % 10,
        rollback_on_failure=request.number % 7 != 0,
        description=request.tag,
        canary=CanaryPlan(weights=(40,), pause_s=1.0) if strategy == "canary" else None,
    )


def _scale(number: int) -> Work:
    def work(unit: Unit, app: App) -> Told:
        count = number % 4
        deployments.refuse_deleting(app)
        apps.scale_app(unit, app, {"web": count})
        return {"count": count}

    return work


def _set_stopped(stopped: bool) -> Work:
    def work(unit: Unit, app: App) -> Told:
        (apps.stop_app if stopped else apps.start_app)(unit, app)
        return {"effect": app.stopped != stopped}

    return work


def _destroy(unit: Unit, app: App) -> Told:
    apps.destroy_app(unit, app)
    return {"effect": not app.deleting}


def _run(number: int) -> Work:
    command = ("exit", str(number % 2)) if number % 3 else ("sleep",)
    return lambda unit, app: {"run": create_run(unit, app, RunWish(command=command)).id}


def _stop_run(unit: Unit, app: App) -> Told:
    runs = [row for row in unit.tx.instances.select(eq("app_id", app.id)) if row.owner is OwnerKind.RUN and row.live]
    if not runs:
        raise ConflictError("no-run", "nothing runs")
    return {"run": stop_run(unit, app, runs[0].id).id}


def _sleep(number: int) -> Work:
    def work(unit: Unit, app: App) -> Told:
        rows = unit.tx.instances.select(eq("app_id", app.id))
        awake = [row for row in rows if row.phase is Phase.HEALTHY and row.sleep is Sleep.AWAKE]
        own = [row for row in awake if row.owner is OwnerKind.APP]
        if not own:
            raise ConflictError("none-awake", "nothing is awake")
        return {"instance": suspend(unit, own[number % len(own)]).id}

    return work


def _wake(unit: Unit, app: App) -> Told:
    rows = unit.tx.instances.select(eq("app_id", app.id))
    asleep = [row for row in rows if row.live and row.sleep is not Sleep.AWAKE]
    if not asleep:
        raise ConflictError("none-asleep", "nothing sleeps")
    return {"instance": resume(unit, asleep[0]).id}


def _prioritize(request: Request) -> Work:
    """To matter more, or less; and to need more or less room. Of those that have volumes most are large and matter
    least: what would be taken first, if they might be taken."""
    number = request.number

    def prioritize(unit: Unit, app: App) -> Told:
        priority, memory = PRIORITIES[number % 3], MEMORIES_BYTES[number // 3 % len(MEMORIES_BYTES)]
        if app.config.mounts and number % 4:
            priority, memory = PRIORITIES[0], LARGE_BYTES
        wish = ConfigWish(
            placement=PlacementWish(priority=priority), processes={"web": ProcessWish(memory_bytes=memory)}
        )
        made = deployments.change(unit, app, wish, _rollout(request))
        after = unit.tx.apps.get(app.id)
        effect = after is not None and after.last_release_number != app.last_release_number
        return {"deployment": made.id if made else "", "effect": effect}

    return prioritize


def _cancel(unit: Unit, app: App) -> Told:
    deployment = current_deployment(unit.tx, app)
    if deployment is None:
        raise ConflictError("none", "nothing was deployed")
    return {"deployment": deployments.cancel(unit, app, deployment).id}


_SIMPLE: Mapping[str, Callable[[int], Work]] = {
    "scale": _scale,
    "denied": _scale,
    "stop": lambda number: _set_stopped(True),
    "start": lambda number: _set_stopped(False),
    "run": _run,
    "stop-run": lambda number: _stop_run,
    "sleep": _sleep,
    "wake": lambda number: _wake,
    "cancel": lambda number: _cancel,
    "destroy": lambda number: _destroy,
}
_OUTSIDE = ("deploy", "deploy-bad")
"""What asks the registry before it is written."""
_PERMISSIONS = {
    "deploy": "deployments:write",
    "deploy-bad": "deployments:write",
    "rollback": "deployments:write",
    "cancel": "deployments:write",
    **dict.fromkeys(disks.EFFECTS, "volumes:write"),
}
