"""Takes the backups that were ordered of this host's volumes, checks those that are to be checked, and makes volumes of
others.

Each order has a task of its own, a few at a time. A backup is of a snapshot that has the backup's id: it is taken when the
order is begun, so an agent that was ended goes on with the same one, and it goes when no order needs it any more. What is
needed to read and write the repository is asked for as the work begins, and is held in memory alone. It is asked for again
before the manifest is stored: a host that was cut off meanwhile may not have heard that its backup was given up, and what
it stored then would stay for ever, for nobody would know of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

import structlog

from shellwego.agent.repository import Repository
from shellwego.agent.waiting import cancel_all
from shellwego.core.backups import (
    BackupAccess,
    BackupAccessRequest,
    BackupOrder,
    BackupPhase,
    ObservedBackup,
)
from shellwego.core.chunks import VaultCipher
from shellwego.core.errors import ConflictError, ForbiddenError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.ids import is_id
from shellwego.core.sensitive import Sensitive
from shellwego.core.troubles import Troubles
from shellwego.core.volumes import VolumeView
from shellwego.ports.clock import Clock
from shellwego.ports.engine import VolumeEngine
from shellwego.ports.objects import OpenObjects
from shellwego.ports.uplink import NodeUplink

AT_ONCE = 2
RETRY_S = (1.0, 5.0, 15.0, 60.0, 300.0)
"""Pause after the first failure of an order in a row, the second, …"""
_STEPS = 50
"""In which progress is told."""
_ENDED = (BackupPhase.DONE, BackupPhase.FAILED)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Course:
    """How far an order has come."""

    order: BackupOrder
    seen: ObservedBackup
    failures: int = 0
    next_try: float = 0.0


class Backups:
    """One host's. `changed` is called when another look is worth while; `identity` is the node's id and epoch."""

    def __init__(
        self,
        engine: VolumeEngine | None,
        uplink: NodeUplink,
        open_objects: OpenObjects,
        clock: Clock,
        *,
        identity: Callable[[], tuple[str, int]],
        changed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._uplink = uplink
        self._open = open_objects
        self._clock = clock
        self._identity = identity
        self._changed = changed
        self._courses: dict[str, _Course] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._drops: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._troubles = Troubles()
        self._told = False

    @property
    def observed(self) -> Mapping[str, ObservedBackup]:
        """By backup id."""
        return {id_: course.seen for id_, course in self._courses.items()}

    def assign(self, orders: Iterable[BackupOrder]) -> bool:
        """Take new orders; False where they are those we had. What is not ordered any more is ended."""
        self._told = True
        wanted = {order.backup_id: order for order in orders}
        known = wanted == {id_: course.order for id_, course in self._courses.items()}
        for id_ in [id_ for id_, course in self._courses.items() if wanted.get(id_) != course.order]:
            del self._courses[id_]
            if task := self._tasks.pop(id_, None):
                task.cancel()
        for id_, order in wanted.items():
            self._courses.setdefault(id_, _Course(order, ObservedBackup(verify=order.verify)))
        return not known

    def look(self, volumes: Iterable[VolumeView]) -> float | None:
        """Begin what is due, and drop snapshots that no order needs. Returns the monotonic time at which time alone changes
        something."""
        engine = self._engine
        if engine is None or not self._told:
            return None
        now = self._clock.monotonic()
        waiting = [id_ for id_ in self._unfinished() if id_ not in self._tasks]
        for id_ in waiting:
            if self._courses[id_].next_try <= now:
                self._begin(engine, self._courses[id_].order)
        for snapshot_id in self._strays(volumes):
            self._drop(engine, snapshot_id)
        later = [self._courses[id_].next_try for id_ in waiting if id_ not in self._tasks]
        return min(later, default=None)

    async def fill(self, engine: VolumeEngine, volume_id: str, backup_id: str, key: Sensitive | None) -> None:
        """Make a volume of a backup; `key` is that of the volume, where it is encrypted.

        Raises:
            ConflictError: `backup-damaged`, naming what of it cannot be had; or `wrong-key`.
            UnavailableError: it cannot be had now, or there is no room.
        """
        access = await self._access(backup_id, volume_id)
        repository = self._repository(access)
        manifest = await repository.manifest(backup_id, volume_id, access.digest)
        if manifest.sealed != (key is not None):
            kind = "an encrypted volume" if manifest.sealed else "a volume in clear"
            raise ConflictError("wrong-key", f"the backup {backup_id} is of {kind}, and the volume is not to be")
        async with aclosing(repository.content(manifest)) as content:
            await engine.fill_volume(volume_id, manifest.size_bytes, content, key)

    async def close(self) -> None:
        """Let go of orders under way."""
        await cancel_all([*self._tasks.values(), *self._drops.values()])

    def _unfinished(self) -> Iterator[str]:
        return (id_ for id_, course in self._courses.items() if course.seen.phase not in _ENDED)

    def _strays(self, volumes: Iterable[VolumeView]) -> list[str]:
        needed = {id_ for id_ in self._unfinished() if not self._courses[id_].order.verify}
        there = (snapshot.snapshot_id for volume in volumes for snapshot in volume.snapshots)
        return [id_ for id_ in there if is_id("bak", id_) and id_ not in needed and id_ not in self._tasks]

    def _drop(self, engine: VolumeEngine, snapshot_id: str) -> None:
        if snapshot_id not in self._drops:
            task = asyncio.create_task(self._dropped(engine, snapshot_id), name=f"drop {snapshot_id}")
            self._drops[snapshot_id] = task
            task.add_done_callback(lambda _: self._drops.pop(snapshot_id, None))

    async def _dropped(self, engine: VolumeEngine, snapshot_id: str) -> None:
        try:
            await engine.delete_snapshot(snapshot_id)
        except ShellWeGoError as error:
            if trouble := self._troubles.failed(f"drop {snapshot_id}", str(error), self._clock.monotonic()):
                _log.warning("agent.snapshot_not_dropped", snapshot=snapshot_id, reason=str(error), **trouble.fields)

    def _begin(self, engine: VolumeEngine, order: BackupOrder) -> None:
        id_ = order.backup_id
        task = asyncio.create_task(self._carry_out(engine, order), name=f"backup {id_}")
        self._tasks[id_] = task
        task.add_done_callback(lambda ended: self._ended(id_, ended))

    def _ended(self, id_: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(id_) is task:
            del self._tasks[id_]
        self._changed()

    async def _carry_out(self, engine: VolumeEngine, order: BackupOrder) -> None:
        try:
            async with self._room:
                seen = await (self._check(order) if order.verify else self._take(engine, order))
        except ShellWeGoError as error:
            self._fail(order, error)
        except Exception as error:  # noqa: BLE001 - one order must not end the agent; it is told, and tried again
            self._fail(order, UnavailableError("backup-failed", f"the host failed: {error}"), trace=error)
        else:
            self._see(order, seen)

    async def _take(self, engine: VolumeEngine, order: BackupOrder) -> ObservedBackup:
        repository = self._repository(await self._access(order.backup_id))
        await engine.snapshot_volume(order.volume_id, order.backup_id, freeze=order.freeze)
        async with engine.read_snapshot(order.backup_id) as source:
            size = source.size_bytes
            taken = await repository.take(
                order,
                source,
                lambda done, added: self._progress(order, done, added, size),
                lambda: self._still_wanted(order),
            )
        return ObservedBackup(
            phase=BackupPhase.DONE,
            done_bytes=source.volume_bytes,
            stored_bytes=taken.stored_bytes,
            digest=taken.digest,
        )

    async def _check(self, order: BackupOrder) -> ObservedBackup:
        repository = self._repository(await self._access(order.backup_id))
        done = ObservedBackup(phase=BackupPhase.DONE, verify=order.verify)
        try:
            manifest = await repository.manifest(order.backup_id, order.volume_id, order.digest)
        except ConflictError as error:
            return replace(done, reason=error.message)
        damage = await repository.check(
            manifest, lambda checked, added: self._progress(order, checked, added, manifest.size_bytes)
        )
        return replace(done, done_bytes=manifest.size_bytes, reason=damage)

    async def _still_wanted(self, order: BackupOrder) -> None:
        """Wait until the control plane says that it is: all that takes long is done then, and is not begun anew for that.
        Where it does not say so for minutes, others have their turn."""
        with _about_to_be_told():
            for pause in RETRY_S:
                try:
                    await self._ask(order.backup_id)
                except UnavailableError as error:
                    self._hinder(order, error.message)
                    await self._clock.sleep(pause)
                else:
                    return
            await self._ask(order.backup_id)

    async def _access(self, backup_id: str, volume_id: str = "") -> BackupAccess:
        with _about_to_be_told():
            return await self._ask(backup_id, volume_id)

    async def _ask(self, backup_id: str, volume_id: str = "") -> BackupAccess:
        node_id, epoch = self._identity()
        asked = BackupAccessRequest(node_id=node_id, epoch=epoch, backup_id=backup_id, volume_id=volume_id)
        return await self._uplink.backup_access(asked)

    def _repository(self, access: BackupAccess) -> Repository:
        return Repository(self._open(access.place), VaultCipher(access.key), access.project_id)

    def _progress(self, order: BackupOrder, done: int, added: int, size: int) -> None:
        step = max(size // _STEPS, 1)
        course = self._courses.get(order.backup_id)
        if course is None or course.order != order:
            return
        if done // step > course.seen.done_bytes // step:
            seen = replace(course.seen, done_bytes=done // step * step, stored_bytes=added, reason="")
            self._courses[order.backup_id] = replace(course, seen=seen, failures=0)
            self._changed()
        else:
            self._hinder(order, "")

    def _hinder(self, order: BackupOrder, reason: str) -> None:
        """Say why it is held up; empty: it is not any more, and on its way to where it was."""
        course = self._courses.get(order.backup_id)
        if course is not None and course.order == order and course.seen.reason != reason:
            self._courses[order.backup_id] = replace(course, seen=replace(course.seen, reason=reason))
            self._changed()

    def _see(self, order: BackupOrder, seen: ObservedBackup) -> None:
        course = self._courses.get(order.backup_id)
        if course is not None and course.order == order:
            self._courses[order.backup_id] = replace(course, seen=seen)

    def _fail(self, order: BackupOrder, error: ShellWeGoError, trace: Exception | None = None) -> None:
        now, course = self._clock.monotonic(), self._courses.get(order.backup_id)
        if course is None or course.order != order:
            return
        phase = BackupPhase.RUNNING if error.temporary else BackupPhase.FAILED
        pause = RETRY_S[min(course.failures, len(RETRY_S) - 1)]
        self._courses[order.backup_id] = replace(
            course,
            seen=replace(course.seen, phase=phase, reason=error.message),
            failures=course.failures + 1,
            next_try=now + pause,
        )
        if trouble := self._troubles.failed(f"backup {order.backup_id}", str(error), now):
            said = {"backup": order.backup_id, "volume": order.volume_id, "reason": str(error), **trouble.fields}
            _log.warning("agent.backup_failed", exc_info=trace, **said)


@contextmanager
def _about_to_be_told() -> Iterator[None]:
    """What a node may not have now, it is about to be told; it has failed for good only when it is ordered still."""
    try:
        yield
    except (ForbiddenError, NotFoundError) as error:
        raise UnavailableError(error.code, error.message, resolution=error.resolution) from error
