"""VMs of the whole platform for the engine's services. Implements `VmApi` over the use cases.

Theory. A VM is an instance. Those of an app are its planner's: what would take one away, or bring one, is refused with the
command that says it to the planner. What a client makes here is a one-off VM of an app's release, as `swg run` makes:
it names the app by the label `app`, and may stop and delete it. What a one-off VM cannot be is refused by field, never
passed over.

Each method works through the call's `Access`, which decides in the transaction that reads or changes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from itertools import islice

from plasmavmc import types as engine
from plasmavmc.errors import ConflictError, InvalidSpecError, NotFoundError
from plasmavmc.guest.api import ExecSession
from plasmavmc.policy import Egress, Ingress
from plasmavmc.rpc.access import Reach
from plasmavmc.rpc.api import Position, VmEvent, VmFilter
from plasmavmc.rpc.identifiers import name_of
from plasmavmc.states import VmState
from plasmavmc.types import CopyTarget, ExecSpec, ForkIdentity, LogLine, LogStream, TerminalSize, Vm, VmSpec
from shellwego.api.grpc.callers import Callers
from shellwego.api.grpc.errors import not_offered, translated
from shellwego.api.grpc.feed import VmFeed
from shellwego.api.grpc.scopes import APP_ID_LABEL, APP_LABEL, scope_out
from shellwego.api.grpc.sessions import StreamSession
from shellwego.api.grpc.views import vm_view
from shellwego.control import runs, sleep
from shellwego.control.authorization import Access
from shellwego.control.config import check_command
from shellwego.control.events import changes
from shellwego.control.instances import refuse_not_running
from shellwego.control.logs import MAX_TAIL, LogFollower, LogQuery, read_logs
from shellwego.control.logs import LogLine as ToldLine
from shellwego.control.scopes import Scope, app_scope, missing
from shellwego.control.streams import open_stream
from shellwego.control.targets import AppTarget, InstanceTarget
from shellwego.control.unit import Control, Unit
from shellwego.control.vms import KnownVm, known_vm, known_vms
from shellwego.core.apps import App, Release
from shellwego.core.ids import is_id, make_id
from shellwego.core.instances import Instance, OwnerKind, Phase, Sleep
from shellwego.ports.store import Transaction
from shellwego.ports.streams import StreamKind, StreamRequest, Streams
from shellwego.wire import subjects

_NOT_THERE_YET = (Phase.PENDING, Phase.ASSIGNED)
_MAY_FALL_ASLEEP = (Phase.HEALTHY, Phase.UNHEALTHY, Phase.STARTING)
PROCESS_LABEL = "process"
_DEFAULT = VmSpec("", engine.Scope("", ""), "", "")
_UNCHANGED = (
    "entrypoint", "env", "user", "workdir", "files", "networks", "volumes", "hostname", "stop_signal", "stop_grace_s",
    "snapshot_safe", "backend", "stdio", "published",
)  # fmt: skip
"""What a one-off VM has of its app's release, and of the platform."""


def choose_instance_id(prefix: str, principal: str, request_id: str, number: int = 0) -> str:
    """See `plasmavmc.rpc.identifiers.ChooseId`: an instance's id, without a time in it where it follows from a request."""
    del prefix
    seed = hashlib.sha256(f"{principal}\0{request_id}\0{number}".encode()).digest()
    return make_id("ins", int.from_bytes(seed[10:16], "big"), seed[:10]) if request_id else ""


class PlatformVms:
    """See the module's head."""

    def __init__(self, control: Control, streams: Streams, callers: Callers, feed: VmFeed) -> None:
        self._control = control
        self._streams = streams
        self._callers = callers
        self._feed = feed

    # One-off VMs

    async def create(self, spec: VmSpec, *, start: bool) -> Vm:
        if not start:
            raise not_offered("keep a VM that has not begun", "Ask for `start` with it.")
        access = self._callers.access()
        target = AppTarget(_app_named(spec), spec.scope.project)

        def work(unit: Unit, app: App) -> Vm:
            present = unit.tx.instances.get(spec.id) if spec.id else None
            if present is None:
                present = runs.create_run(unit, app, _wish(spec, unit.tx, app))
            _check_same(present, spec, app)
            return vm_view(_whole(unit.tx, present))

        with translated():
            return await access.write(target, work)

    async def start(self, vm_id: str) -> Vm:
        vm = await self._mine(vm_id, "start", "`swg apps start`, or `swg scale`")
        if not vm.instance.live:
            raise ConflictError("vm-ended", f"VM {vm_id} has run", resolution="Create another.")
        return vm_view(vm)  # it begins by itself

    async def stop(self, vm_id: str, grace_s: float | None) -> Vm:
        if grace_s is not None:
            raise InvalidSpecError(
                "grace", "the app's process says how long a stop may take", resolution="Leave it out."
            )
        await self._stop(vm_id)
        return await self._until(vm_id, lambda vm: not vm.instance.live)

    async def restart(self, vm_id: str) -> Vm:
        await self._mine(vm_id, "restart", "`swg apps restart`")
        raise not_offered("run a one-off VM again", "Create another.")

    async def delete(self, vm_id: str) -> None:
        app_id = (await self._stop(vm_id)).app_id
        access = self._callers.access()
        with suppress(NotFoundError):  # others may have removed it meanwhile
            await self._until(vm_id, lambda vm: not vm.instance.live)
            with translated():
                await access.write(AppTarget(app_id), lambda unit, app: runs.forget_run(unit, app, vm_id))

    async def _stop(self, vm_id: str) -> Instance:
        vm = await self._mine(vm_id, "stop", "`swg scale`, `swg apps stop`, or a deploy")
        access = self._callers.access()
        with translated():
            return await access.write(AppTarget(vm.app.id), lambda unit, app: runs.stop_run(unit, app, vm_id))

    async def _mine(self, vm_id: str, move: str, instead: str) -> KnownVm:
        """A one-off VM; the app's own are refused with what to do instead."""
        vm = await self._known(vm_id)
        if vm.instance.owner is not OwnerKind.RUN:
            raise ConflictError(
                "owned-by-app",
                f"VM {vm_id} is an instance of the app {vm.app.name}, whose planner alone may {move} it",
                resolution=f"Use {instead} for the app {vm.app.name}.",
            )
        return vm

    # Sleep, of an app's own as well

    async def suspend(self, vm_id: str) -> Vm:
        with translated():
            await self._callers.access().write(InstanceTarget(vm_id), sleep.suspend)
        try:
            vm = await self._until(vm_id, lambda vm: vm.instance.phase not in _MAY_FALL_ASLEEP or _is_awake(vm))
        except asyncio.CancelledError:
            with translated():
                await self._callers.access().write(InstanceTarget(vm_id), sleep.resume)
            raise
        if vm.status.state is not VmState.SUSPENDED:
            raise ConflictError("not-suspended", f"VM {vm_id} was not suspended: {vm.status.reason or 'it was woken'}")
        return vm

    async def resume(self, vm_id: str) -> Vm:
        with translated():
            await self._callers.access().write(InstanceTarget(vm_id), sleep.resume)
        return await self._until(vm_id, lambda vm: vm.instance.phase is not Phase.ASLEEP)

    # Moves that the platform has not

    async def restrict(self, vm_id: str, egress: Egress) -> Vm:
        await self._known(vm_id)
        raise not_offered("change what one VM may reach", "Change it for its app (`swg egress`): all its VMs follow.")

    async def screen(self, vm_id: str, identity: str, ingress: Ingress) -> Vm:
        await self._known(vm_id)
        raise not_offered(
            "change what may be opened to one VM", "Change it for its app (`swg groups`): all its VMs follow."
        )

    async def fork(self, vm_id: str, copies: Sequence[ForkIdentity]) -> tuple[Vm, ...]:
        await self._known(vm_id)
        raise not_offered(
            "copy a running VM",
            "Scale the app (`swg scale`); copies are made by an engine of its own (`plasmavmc serve`).",
        )

    # Reads

    async def scope_of(self, vm_id: str) -> engine.Scope:
        """Asked by the gate before it knows whether the caller may: so this alone goes without an `Access`."""

        def look(tx: Transaction) -> Scope:
            instance = tx.instances.get(vm_id)
            app = tx.apps.get(instance.app_id) if instance else None
            if app is None:
                raise missing("instance", vm_id)
            return app_scope(tx, app)

        with translated():
            return scope_out(await self._control.read(look))

    async def get(self, vm_id: str) -> Vm:
        return vm_view(await self._known(vm_id))

    async def list_vms(self, chosen: VmFilter, reach: Reach, *, after: str, limit: int) -> Sequence[Vm]:
        def look(tx: Transaction) -> tuple[Vm, ...]:
            views = (vm_view(known) for known in known_vms(tx, after) if _reaches(reach, known))
            return tuple(islice((view for view in views if chosen.admits(view)), limit))

        with translated():
            return await self._control.read(look)

    def watch(self, after: Position | None) -> AsyncGenerator[VmEvent]:
        return self._callers.while_valid(self._feed.watch(after))

    # Reaching into a VM

    async def exec(self, vm_id: str, spec: ExecSpec) -> ExecSession:
        size = spec.terminal
        request = StreamRequest(
            kind=StreamKind.EXEC,
            instance_id=vm_id,
            command=spec.command,
            env=spec.env,
            user=spec.user or "",
            workdir=spec.workdir or "",
            rows=size.rows if size else 0,
            columns=size.columns if size else 0,
        )
        with translated():
            check_command(spec.command)
        return await self._session(vm_id, request)

    async def attach(self, vm_id: str, size: TerminalSize | None) -> ExecSession:
        await self._until(vm_id, lambda vm: vm.instance.phase not in _NOT_THERE_YET)
        rows, columns = (size.rows, size.columns) if size else (0, 0)
        request = StreamRequest(kind=StreamKind.ATTACH, instance_id=vm_id, rows=rows, columns=columns)
        return await self._session(vm_id, request)

    async def copy_in(self, vm_id: str, target: CopyTarget) -> ExecSession:
        request = StreamRequest(
            kind=StreamKind.COPY_IN,
            instance_id=vm_id,
            path=target.path,
            name=target.name,
            contents=target.contents,
        )
        return await self._session(vm_id, request)

    async def copy_out(self, vm_id: str, path: str) -> ExecSession:
        return await self._session(vm_id, StreamRequest(kind=StreamKind.COPY_OUT, instance_id=vm_id, path=path))

    async def _session(self, vm_id: str, request: StreamRequest) -> ExecSession:
        """A session in a VM that runs; it is audited."""

        def admit(unit: Unit, instance: Instance) -> Instance:
            refuse_not_running(instance)
            return instance

        with translated():
            target = InstanceTarget(vm_id)
            instance = await self._callers.access().write(target, admit)
            return StreamSession(await open_stream(self._streams, instance, request), self._callers, target)

    async def logs(self, vm_id: str, *, follow: bool, tail: int, since: float) -> AsyncIterator[LogLine]:
        query = LogQuery(tail=min(tail, MAX_TAIL), since=since, instance_id=vm_id)
        told = self._lines(vm_id, query, follow=follow)
        async with aclosing(self._callers.while_valid(told, InstanceTarget(vm_id))) as lines:
            async for line in lines:
                record = line.record
                stream = LogStream(record.stream) if record.stream in set(LogStream) else LogStream.SYSTEM
                yield LogLine(record.time, stream, record.text)

    async def _lines(self, vm_id: str, query: LogQuery, *, follow: bool) -> AsyncGenerator[ToldLine]:
        access = self._callers.access()

        async def look() -> list[Instance]:
            instance = await access.read(InstanceTarget(vm_id), lambda _tx, row: row)
            return [instance] if instance.node_id else []

        with translated():
            if not follow:
                for line in await read_logs(self._streams, await look(), query):
                    yield line
                return
            await self._until(vm_id, lambda vm: bool(vm.instance.node_id) or not vm.instance.live)
            app_id = (await self._known(vm_id)).app.id
            follower = LogFollower(self._control, self._streams, query)
            async with aclosing(follower.lines(app_id, look)) as lines:
                async for line in lines:
                    yield line

    # Small parts

    async def _known(self, vm_id: str, access: Access | None = None) -> KnownVm:
        with translated():
            reading = access or self._callers.access()
            return await reading.read(InstanceTarget(vm_id), _whole)

    async def _until(self, vm_id: str, done: Callable[[KnownVm], bool]) -> Vm:
        """The VM, once it is so; each look is by what the caller may then."""
        access = self._callers.access()
        known = await self._known(vm_id, access)
        async with aclosing(changes(self._control, subjects.app(known.app.id))) as ticks:
            async for _ in ticks:
                await self._callers.renew(access)
                known = await self._known(vm_id, access)
                if done(known):
                    break
        return vm_view(known)


def _reaches(reach: Reach, vm: KnownVm) -> bool:
    return reach.covers(scope_out(vm.scope), {APP_ID_LABEL: vm.app.id})


def _is_awake(vm: KnownVm) -> bool:
    """It is not to sleep (any more)."""
    return vm.instance.sleep is Sleep.AWAKE


def _whole(tx: Transaction, instance: Instance) -> KnownVm:
    known = known_vm(tx, instance)
    if known is None:
        raise missing("instance", instance.id)
    return known


def _app_named(spec: VmSpec) -> str:
    app = spec.labels.get(APP_LABEL, "")
    if not app:
        raise InvalidSpecError(
            f"labels.{APP_LABEL}", "a VM runs the release of an app", resolution="Give the app's name, or its id."
        )
    return app


def _wish(spec: VmSpec, tx: Transaction, app: App) -> runs.RunWish:
    """What is asked for, as a one-off command of the app.

    Raises:
        InvalidSpecError: something of it is the platform's, or the release's, to say.
    """
    for field in _UNCHANGED:
        if getattr(spec, field) != getattr(_DEFAULT, field):
            raise InvalidSpecError(field, "a one-off VM has what its app's release says", resolution="Leave it out.")
    unknown = sorted(spec.labels.keys() - {APP_LABEL, PROCESS_LABEL})
    if unknown:
        words = f"the platform gives labels; only {APP_LABEL} and {PROCESS_LABEL} are taken"
        raise InvalidSpecError(f"labels.{unknown[0]}", words)
    if spec.scope.project != app.project_id:
        raise InvalidSpecError("scope", f"the app {app.name} lies in another project", resolution="Name that one.")
    if spec.name not in (name_of(spec.id), app.name):
        raise InvalidSpecError("name", "a VM has the name of its app", resolution="Leave it empty.")
    if spec.id and not is_id("ins", spec.id):
        raise InvalidSpecError("id", "the platform chooses ids", resolution="Leave it empty.")
    release = tx.releases.get(app.stable_release_id or app.release_id)
    if release is not None:
        _check_image(spec, app, release)
    size, default = spec.resources, _DEFAULT.resources
    if (size.cpu_milli, size.vcpus, size.disk_bytes) != (default.cpu_milli, default.vcpus, default.disk_bytes):
        raise InvalidSpecError("resources", "of a one-off VM only memory_bytes can be chosen")
    return runs.RunWish(
        id=spec.id,
        command=spec.command or (),
        process=spec.labels.get(PROCESS_LABEL),
        memory_bytes=None if size.memory_bytes == default.memory_bytes else size.memory_bytes,
    )


def _check_image(spec: VmSpec, app: App, release: Release) -> None:
    if spec.image not in (release.image_digest, release.config.image):
        raise InvalidSpecError(
            "image",
            f"the app {app.name} runs {release.config.image or release.image_digest}",
            resolution="Give that image, or deploy the other one first.",
        )


def _check_same(present: Instance, spec: VmSpec, app: App) -> None:
    """A repeated order finds its VM; another order must not."""
    if (present.app_id, present.owner, present.command) != (app.id, OwnerKind.RUN, spec.command):
        raise ConflictError("vm-exists", f"VM {present.id} exists with another specification")
