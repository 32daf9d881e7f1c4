"""The agent of one node: three loops that talk through what they know, none of which waits for another.

`fetch` gets the assignments (on a hint, on a timer), `look` reconciles (when the engine, a check or the assignments changed,
on a timer), `report` tells what was seen (at once when there is news, and as heart-beat), and streams are served beside. An
uplink that hangs or is cut holds up no look: VMs are kept, restarted and checked by the last assignments, and nothing is
stopped that those did not stop. Only a server's word that an operator put this node out ends everything on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from shellwego.agent.backups import Backups
from shellwego.agent.checks import Checker
from shellwego.agent.names import Names
from shellwego.agent.peers import Peers
from shellwego.agent.probes import HostProber, Prober
from shellwego.agent.publishing import Ports
from shellwego.agent.reconciler import Reconciler
from shellwego.agent.replicas import Replicas as KeptReplicas
from shellwego.agent.report import Reports, Sight
from shellwego.agent.secrets import SecretKeeper
from shellwego.agent.state import NodeState
from shellwego.agent.streams import StreamServer
from shellwego.agent.traffic import COUNT_S, Traffic
from shellwego.core.assignments import Assignments, Registration
from shellwego.core.errors import ForbiddenError, ShellWeGoError, ThrottledError
from shellwego.core.nodecallers import SHUT_OUT
from shellwego.core.nodes import WHOLE, NodeFacts, Offer
from shellwego.core.troubles import Troubles
from shellwego.ports.bus import Bus
from shellwego.ports.clock import Clock, Waiter
from shellwego.ports.engine import Engine, VolumeEngine
from shellwego.ports.objects import OpenObjects, without_objects
from shellwego.ports.streams import StreamListener
from shellwego.ports.uplink import Memories, NodeUplink, Replicas
from shellwego.wire import subjects

HEARTBEAT_S = 2.0
LOOK_AGAIN_S = 2.0
RETRY_S = 1.0
COALESCE_S = 0.01
"""Between two reports, so that a flood of changes is told together."""
DETAIL_S = 0.05
"""What a start is doing is told so much later, and at a quick start not at all: each report costs the whole control plane a
look, just when the start needs the processors."""

_log = structlog.get_logger(__name__)


class _Waits:
    """What each loop waits by; the others ring it to have it look again."""

    def __init__(self, clock: Clock, engine: Engine) -> None:
        self.fetch = Waiter(clock)
        self.look = Waiter(clock, engine.changed)
        self.report = Waiter(clock)
        self.enforce = Waiter(clock)

    async def aclose(self) -> None:
        for waiter in (self.fetch, self.look, self.report, self.enforce):
            await waiter.aclose()


class Agent:
    """Runs one node until it is cancelled. VMs outlive it; whoever owns the engine closes it."""

    def __init__(
        self,
        *,
        engine: Engine,
        uplink: NodeUplink,
        listener: StreamListener,
        bus: Bus,
        clock: Clock,
        name: str,
        state: NodeState,
        prober: Prober | None = None,
        offer: Offer = WHOLE,
        address: str = "",
        memories: Memories | None = None,
        replicas: Replicas | None = None,
        hints: Callable[[], str] = lambda: "",
        open_objects: OpenObjects = without_objects,
    ) -> None:
        """`address`: by which other hosts reach this one; empty where there are none. `memories`: where those of instances
        that are moved here come from; None: nowhere, so they begin anew. `replicas`: where what differs of other nodes'
        volumes comes from; None: none can be kept here. `hints`: by which road hints come.
        `open_objects`: how the store of backups is reached."""
        self._engine = engine
        self._offer = offer
        self._address = address
        self._road = hints
        self._uplink = uplink
        self._listener = listener
        self._bus = bus
        self._clock = clock
        self._name = name
        self._waits = _Waits(clock, engine)
        self._state = state
        self._peers = Peers(engine, self._state, clock)
        self._names = Names(engine, uplink, self._state)
        self._ports = Ports(engine, uplink, self._state)
        self._known = asyncio.Event()
        self._checker = Checker(clock, prober or HostProber(engine), self._waits.look.ring)
        secrets = SecretKeeper(uplink, self._identity)
        volumes = engine if isinstance(engine, VolumeEngine) else None
        backups = Backups(volumes, uplink, open_objects, clock, identity=self._identity, changed=self._waits.look.ring)
        fetch = None if memories is None else lambda instance_id: memories.memory(self._state.node_id, instance_id)
        pull = None if replicas is None else lambda *named: replicas.replica(self._state.node_id, *named)
        kept = KeptReplicas(volumes, clock, self._waits.look.ring, pull)
        self._keeps_replicas = volumes is not None and replicas is not None
        self._reconciler = Reconciler(
            engine, clock, self._checker, secrets, self._waits.look.ring, backups=backups, replicas=kept, fetch=fetch
        )
        self._reports = Reports()
        self._bare_until = 0.0
        """Until then nothing but that the node lives is told, since more would be too much."""
        self._traffic = Traffic(engine, self._reconciler.apps)
        self._troubles = Troubles()
        self._streams = StreamServer(
            engine, self._reconciler.vm_of, self._reconciler.successor, self._reconciler.volumes.send
        )

    def _identity(self) -> tuple[str, int]:
        return self._state.node_id, self._state.epoch

    @property
    def node_id(self) -> str:
        """Empty before the first registration of all."""
        return self._state.node_id

    async def registered(self) -> None:
        """Return when the control plane has taken this node in since `run` began."""
        await self._known.wait()

    async def run(self) -> None:
        """Adopt what runs, register, then serve; a node that the control plane forgot registers anew."""
        try:
            await self._peers.restore()
            await self._ports.restore()
            await self._names.restore()
            await self._engine.start()
            while True:
                await self._register()
                with _until_forgotten():
                    await self._serve()
                await self._clock.sleep(RETRY_S)
        finally:
            await self._checker.close()
            await self._reconciler.close()
            await self._state.close()
            await self._waits.aclose()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._listen())
            loops.create_task(self._for_ever(self._fetch))
            loops.create_task(self._for_ever(self._look))
            loops.create_task(self._for_ever(self._report))
            loops.create_task(self._for_ever(self._enforce))
            loops.create_task(self._for_ever(self._count))
            loops.create_task(self._listener.serve(self.node_id, self._streams.serve))

    async def _for_ever(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step. A failure is told and tried again; only a node that is not known must start over."""
        while True:
            try:
                await step()
            except ForbiddenError:
                raise
            except Exception as error:  # noqa: BLE001 - a defect in one step must not leave the node without an agent
                self._failed(step.__name__, error)
                await self._clock.sleep(RETRY_S)
            else:
                self._passed(step.__name__)

    def _failed(self, step: str, error: Exception) -> None:
        if trouble := self._troubles.failed(step, str(error), self._clock.monotonic()):
            said = {"step": step, "reason": str(error), **trouble.fields}
            if isinstance(error, ShellWeGoError):
                _log.warning("agent.step_failed", resolution=error.resolution, **said)
            else:
                _log.error("agent.step_failed", exc_info=error, **said)

    def _passed(self, step: str) -> None:
        if trouble := self._troubles.passed(step, self._clock.monotonic()):
            _log.info("agent.step_works_again", step=step, **trouble.fields)

    async def _register(self) -> None:
        """Become known, however long it takes; what runs is kept meanwhile."""
        while True:
            try:
                assignments = await self._uplink.register(await self._registration())
                accepted = await self._accept(assignments)
            except ShellWeGoError as error:
                self._failed("register", error)
                if error.code == SHUT_OUT:
                    await self._end_all()
            else:
                self._passed("register")
                if accepted:
                    self._known.set()
                    self._reports.start_over()
                    return
            await self._clock.sleep(RETRY_S)

    async def _end_all(self) -> None:
        """Stop what runs here, since an operator put this node out: it runs elsewhere by now. To be repeated until it is
        over."""
        self._reconciler.assign(())
        try:
            await self._reconciler.look()
        except Exception as error:  # noqa: BLE001 - a defect of one look must not leave it running
            self._failed("end_all", error)

    async def _registration(self) -> Registration:
        return Registration(
            name=self._name,
            facts=await self._facts(),
            known_node_id=self._state.node_id,
            known_epoch=self._state.epoch,
        )

    async def _facts(self) -> NodeFacts:
        facts = self._offer.of(await self._engine.facts())
        return replace(facts, address=self._address, hints=self._road(), replicas=self._keeps_replicas)

    async def _listen(self) -> None:
        async with self._bus.subscribe(subjects.assignments(self.node_id)) as hints:
            async for _ in hints:
                self._waits.fetch.ring()

    async def _fetch(self) -> None:
        await self._waits.fetch.wait(LOOK_AGAIN_S)
        self._waits.fetch.clear()
        assignments = await self._uplink.assignments(self.node_id)
        if await self._accept(assignments):
            await self._peers.follow(assignments.peers, assignments.key_step)
            await self._names.follow(assignments)
            await self._ports.follow(assignments)

    async def _accept(self, assignments: Assignments) -> bool:
        """Take assignments over, unless they are of an older epoch: then somebody speaks who was judged lost."""
        known = self._state.epoch
        if not await self._state.accept(assignments.node_id, assignments.epoch):
            _log.warning("agent.assignments_refused", epoch=assignments.epoch, known_epoch=known)
            return False
        if assignments.epoch > known:
            self._reports.start_over()
        if self._reconciler.leases.assign(assignments.volumes):
            self._waits.enforce.ring()
        if (
            self._reconciler.assign(assignments.items, assignments.volumes, assignments.backups, assignments.replicas)
            or assignments.epoch > known
        ):
            self._waits.look.ring()
        return True

    async def _look(self) -> None:
        self._waits.look.clear()
        wake_at = await self._reconciler.look()
        seen = self._sight()
        now = self._clock.monotonic()
        if self._reports.is_urgent(seen, now):
            self._waits.report.ring()
        elif self._reports.has_news(seen, now):
            self._waits.report.ring(DETAIL_S)
        pause = LOOK_AGAIN_S if wake_at is None else min(LOOK_AGAIN_S, wake_at - self._clock.monotonic())
        await self._waits.look.wait(pause)

    async def _report(self) -> None:
        """Where the server says that this is too much, the next ones say no more than that the node lives, for a while."""
        asked_at = self._clock.monotonic()  # before all of it that takes time: leases of volumes count from then
        self._waits.report.clear()
        bare = asked_at < self._bare_until
        sequence, facts = await self._state.next_sequence(), await self._facts()
        report = self._reports.build(
            node_id=self.node_id,
            epoch=self._state.epoch,
            sequence=sequence,
            facts=facts,
            seen=Sight() if bare else self._sight(),
            now=asked_at,
            traffic=None if bare else self._traffic.news,
        )
        try:
            current = await self._uplink.report(report)
        except ThrottledError as error:
            self._reports.unanswered(report)
            if not bare:
                self._bare_until = self._clock.monotonic() + 2 * RETRY_S + error.retry_after_s
            raise
        except Exception:
            self._reports.unanswered(report)
            raise
        if current > report.epoch:
            self._waits.fetch.ring()
        else:
            self._reports.confirm(report, self._sight())
            self._traffic.told(report.traffic)
            if self._reconciler.leases.renewed(asked_at):
                self._waits.enforce.ring()
        await self._clock.sleep(COALESCE_S)
        if bare:
            await self._clock.sleep(min(HEARTBEAT_S, self._bare_until - self._clock.monotonic()))
        else:
            await self._waits.report.wait(HEARTBEAT_S)

    async def _enforce(self) -> None:
        """Beside the reports, so that a host that is slow does not look like one that is silent."""
        await self._waits.enforce.wait()
        self._waits.enforce.clear()
        if await self._reconciler.leases.enforce():
            self._waits.look.ring()

    async def _count(self) -> None:
        """Beside the reports, which wait for no counter."""
        await self._traffic.count()
        await self._clock.sleep(COUNT_S)

    def _sight(self) -> Sight:
        """As of the last look; nothing before the first."""
        return Sight(
            instances=self._reconciler.observed or {},
            volumes=self._reconciler.volumes.observed or {},
            backups=self._reconciler.backups.observed,
            replicas=self._reconciler.replicas.observed,
        )


@contextmanager
def _until_forgotten() -> Iterator[None]:
    """Let a `ForbiddenError` of any loop end all of them, and pass."""
    try:
        yield
    except* ForbiddenError as errors:
        _log.error("agent.not_known", reason=str(errors.exceptions[0]))
