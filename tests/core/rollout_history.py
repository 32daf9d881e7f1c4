"""Random histories of one app: a small world of nodes, edges and time around the planner, and what must always hold in it.

The world applies plans by the same `core.changes` as the loop, and everything else by its own simple means: it keeps its own
route tables and its own account of what each edge serves, so the planner's view is checked against a second one.
"""

from __future__ import annotations

import random
from dataclasses import replace

from shellwego.core.apps import App, AppConfig, Process, Release, Service, content_hash, wanted_counts
from shellwego.core.changes import (
    Aim,
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
from shellwego.core.deployments import (
    CANARY,
    DEPLOYMENT_MOVES,
    FINISHED,
    CanaryPlan,
    Deployment,
    DeploymentState,
    Share,
    Stage,
    Strategy,
)
from shellwego.core.images import ImageState
from shellwego.core.instances import PHASE_MOVES, Desired, Eviction, Instance, Observed, OwnerKind, Phase, Sleep
from shellwego.core.rollout import RolloutPlan
from shellwego.core.rollout_facts import ImageFacts, RolloutFacts
from tests.core import rollout_drains
from tests.core import rollout_rules as rules
from tests.core.rollout_parts import (
    ALL,
    LEASE_S,
    NODES,
    PACES,
    PAUSES,
    SHAPES,
    SWIFT_ROUNDS,
    EdgeSide,
    Event,
    Planner,
)


class History:
    """One app with all that surrounds it."""

    def __init__(self, plan: Planner, seed: int) -> None:
        self.plan = plan
        self.random = random.Random(seed)
        self.now = 1000.0
        self.eager = self.random.random() < 0.5
        """The use case supersedes and aims by itself, as ours does; the planner must do with both."""
        self.app = App(
            id="app",
            project_id="prj",
            name="shop",
            hostname="shop.localhost",
            config=AppConfig(),
            counts={"web": 1 + self.random.randrange(4), "worker": 1, "api": 2},
            created_at=0.0,
            updated_at=0.0,
        )
        self.releases: dict[str, Release] = {}
        self.deployments: dict[str, Deployment] = {}
        self.instances: dict[str, Instance] = {}
        self.images: dict[str, ImageState] = {}
        self.behaviour: dict[str, str] = {}
        self.commands: dict[str, str] = {}
        """What the release command of a deployment does."""
        self.held: dict[str, tuple[int, float | None]] = {}
        """By canary: its step, and since when that held, by our own account."""
        self.down: set[str] = set()
        self.draining: set[str] = set()
        self.edges = [EdgeSide("e1"), EdgeSide("e2")]
        self.tables: list[frozenset[str]] = [frozenset()]
        self.strategies = ALL
        self.calm = False
        self.changes_made = 0
        self._made = 0

    # --- what happens ---

    def happen(self, event: Event) -> None:
        name, x = event
        handler = getattr(self, "_on_" + name.replace("-", "_"))
        handler(x)

    def _on_tick(self, x: int) -> None:
        self.now += PAUSES[x % len(PAUSES)]

    def _on_wait(self, x: int) -> None:
        self.now += 1.0 + x

    def _on_deploy(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "good"))

    def _on_deploy_bad(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "fails"))

    def _on_deploy_hanging(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "hangs"))

    def _on_deploy_unfetched(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "good", ImageState.FETCHING))

    def _on_deploy_migrating(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "good"), command="good")

    def _on_deploy_migration_fails(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "good"), command="fails")

    def _on_deploy_migration_hangs(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "good"), command="hangs")

    def _on_deploy_canary(self, x: int) -> None:
        self._deploy(x, self._new_release(x, "good"), strategy=CANARY)

    def _on_sicken_new(self, x: int) -> None:
        """One of the newest release, which may be a canary."""
        newest = max(self.releases, default="")
        for instance in self.own():
            if instance.release_id == newest and instance.phase is Phase.HEALTHY and instance.node_id not in self.down:
                self._report(instance, Phase.UNHEALTHY)
                return

    def _on_stop_run(self, x: int) -> None:
        for run in self.runs():
            if run.live and x % 3 == 0:
                self.instances[run.id] = replace(run, desired=Desired.STOP)

    def _on_rollback(self, x: int) -> None:
        if self.releases:
            old = sorted(self.releases.values(), key=lambda r: r.number)[x % len(self.releases)]
            self._deploy(x, self._freeze(old.config, old.image_digest))

    def _on_restart(self, x: int) -> None:
        release = self.releases.get(self.app.stable_release_id)
        if release is not None and not self.app.stopped:
            self.app = replace(self.app, generation=self.app.generation + 1)
            self._deploy(x, release)

    def _on_fetched(self, x: int) -> None:
        self.images = {digest: ImageState.READY for digest in self.images}

    def _on_image_failed(self, x: int) -> None:
        broken = {digest for digest, state in self.images.items() if state is ImageState.FETCHING}
        self.images.update(dict.fromkeys(broken, ImageState.FAILED))

    def _on_cancel(self, x: int) -> None:
        for deployment in self.unfinished():
            over = replace(deployment, state=DeploymentState.CANCELLED, finished_at=self.now)
            self.deployments[over.id] = over
            self.app = replace(self.app, release_id=self.app.stable_release_id)

    def _on_scale(self, x: int) -> None:
        process = ("web", "worker", "api")[x % 3]
        self.app = replace(self.app, counts={**self.app.counts, process: (x // 3) % 6})

    def _on_stop(self, x: int) -> None:
        self.app = replace(self.app, stopped=True)

    def _on_start(self, x: int) -> None:
        self.app = replace(self.app, stopped=False)

    def _on_kill(self, x: int) -> None:
        if len(self.down) < 2:
            self.down.add(NODES[x % 3])

    def _on_revive(self, x: int) -> None:
        """The node knows its new epoch; what it had was judged lost before."""
        node = NODES[x % 3]
        if not any(i.live and i.node_id == node for i in self.instances.values()):
            self.down.discard(node)

    def _on_drain(self, x: int) -> None:
        rollout_drains.begin(self, NODES[x % 3])

    def _on_uncordon(self, x: int) -> None:
        rollout_drains.end(self, NODES[x % 3])

    def _on_force_out(self, x: int) -> None:
        """The deadline of a drain."""
        rollout_drains.evict(self, Eviction.FORCED)

    def _on_fail(self, x: int) -> None:
        self._strike(x, Phase.FAILED, {Phase.ASSIGNED, Phase.STARTING, Phase.HEALTHY, Phase.UNHEALTHY})

    def _on_sicken(self, x: int) -> None:
        self._strike(x, Phase.UNHEALTHY, {Phase.HEALTHY})

    def _on_sleep(self, x: int) -> None:
        """By itself; or somebody has one sleep, or wakes all."""
        match x % 3:
            case 0:
                self._strike(x, Phase.ASLEEP, {Phase.HEALTHY})
            case 1:
                self._doze(x)
            case _:
                self._wake()

    def _doze(self, x: int) -> None:
        """As the use case: it is to leave the routes, and then to sleep."""
        fit = [
            i for i in self.own() if i.phase is Phase.HEALTHY and i.desired is Desired.SERVE and i.sleep is Sleep.AWAKE
        ]
        if fit:
            hit = fit[x % len(fit)]
            self.instances[hit.id] = replace(
                hit, sleep=Sleep.DOZING, drain_since=self.now, routed_version=None, unrouted_version=None
            )

    def _wake(self) -> None:
        for instance in self._live():
            if instance.desired is Desired.SERVE and instance.sleep is not Sleep.AWAKE:
                woken = replace(
                    instance, sleep=Sleep.AWAKE, drain_since=None, routed_version=None, unrouted_version=None
                )
                self.instances[instance.id] = woken
                if instance.phase is Phase.ASLEEP and instance.node_id not in self.down:
                    self._report(woken, Phase.HEALTHY)

    def _strike(self, x: int, phase: Phase, among: set[Phase]) -> None:
        apart = () if phase is Phase.FAILED else self.runs()
        hit = [i for i in self.instances.values() if i.phase in among and i.node_id not in self.down and i not in apart]
        if hit:
            self._report(hit[x % len(hit)], phase)

    def _on_edge_silent(self, x: int) -> None:
        self.edges[x % 2].silent = True

    def _on_edge_back(self, x: int) -> None:
        self.edges[x % 2].silent = False

    def _on_stuck_session(self, x: int) -> None:
        edge = self.edges[x % 2]
        routed = sorted(self.tables[edge.applied])
        if routed:
            edge.sessions[routed[x % len(routed)]] = 1000

    def _new_release(self, x: int, behaviour: str, image: ImageState = ImageState.READY) -> Release:
        names = SHAPES[x % len(SHAPES)]
        config = AppConfig(
            image=f"c{len(self.releases)}",
            processes=tuple(Process(name=name) for name in names),
            services=(Service(process=names[0], port=8080),),
            drain_timeout_s=(30.0, 90.0)[x % 2],
        )
        digest = f"sha256:{config.image}"
        self.images[digest] = image
        self.behaviour[digest] = behaviour
        return self._freeze(config, digest)

    def _freeze(self, config: AppConfig, digest: str) -> Release:
        release = Release(
            id=f"rel{len(self.releases):03d}",
            app_id="app",
            number=len(self.releases) + 1,
            config=config,
            image_digest=digest,
            content_hash=content_hash(config, digest),
            created_at=self.now,
            created_by="me",
        )
        self.releases[release.id] = release
        return release

    def _deploy(self, x: int, release: Release, *, command: str = "", strategy: Strategy | None = None) -> None:
        if self.eager:
            for older in self.unfinished():
                over = replace(older, state=DeploymentState.SUPERSEDED, finished_at=self.now)
                self.deployments[older.id] = over
            self.app = replace(self.app, release_id=release.id)
        strategy = strategy or ALL[sorted(ALL)[x // 7 % len(ALL)]]
        most, beyond = PACES[x % len(PACES)], PACES[x // 2 % len(PACES)]
        own = strategy.paceable and not most == beyond == Share()
        deployment = Deployment(
            id=f"dep{len(self.deployments):03d}",
            app_id="app",
            release_id=release.id,
            state=DeploymentState.PENDING,
            stage=Stage.ADMISSION,
            strategy=strategy.name,
            max_unavailable=most if own else None,
            surge=beyond if own else None,
            canary=CanaryPlan(weights=(10, 50), pause_s=(0.0, 5.0, 5.0)[x % 3]) if strategy is CANARY else None,
            release_command=("migrate",) if command else None,
            rollback_on_failure=x % 5 != 0,
            wait_timeout_s=(20.0, 120.0)[x % 2],
            created_at=self.now,
            created_by="me",
        )
        self.deployments[deployment.id] = deployment
        self.commands[deployment.id] = command

    # --- the rest of the platform ---

    def agents(self) -> None:
        """Each node moves some of its instances one step on."""
        for instance in list(self.instances.values()):
            reachable = instance.live and instance.node_id and instance.node_id not in self.down
            if reachable and (self.calm or self.random.random() < 0.7):
                self._work(instance)

    def _work(self, instance: Instance) -> None:
        if instance.desired is Desired.STOP:
            self._report(instance, Phase.STOPPED)
            return
        if instance.owner is OwnerKind.RUN:
            self._run(instance)
            return
        behaviour = "good" if self.calm else self.behaviour[self.releases[instance.release_id].image_digest]
        match instance.phase:
            case Phase.ASSIGNED:
                self._report(instance, Phase.STARTING, detail="boot")
            case Phase.STARTING if behaviour == "fails":
                self._report(instance, Phase.FAILED)
            case Phase.STARTING if behaviour == "hangs":
                self._report(instance, Phase.STARTING, detail="checks", reason="connection refused")
            case Phase.HEALTHY if instance.sleep is Sleep.ASLEEP:
                self._report(instance, Phase.ASLEEP)
            case Phase.STARTING | Phase.UNHEALTHY:
                self._report(instance, Phase.HEALTHY)
            case _:
                pass

    def _run(self, run: Instance) -> None:
        """The VM of a release command goes on."""
        does = "good" if self.calm else self.commands[run.deployment_id]
        match run.phase:
            case Phase.ASSIGNED:
                self._report(run, Phase.STARTING)
            case Phase.STARTING:
                self._report(run, Phase.HEALTHY)
            case Phase.HEALTHY if does != "hangs":
                self._report(run, Phase.STOPPED if does == "good" else Phase.FAILED)
            case _:
                pass

    def _report(self, instance: Instance, phase: Phase, *, detail: str = "", reason: str = "") -> None:
        assert phase is instance.phase or phase in PHASE_MOVES[instance.phase], (instance.phase, phase)
        failed = phase is Phase.FAILED
        self.instances[instance.id] = replace(
            instance,
            phase=phase,
            phase_since=instance.phase_since if phase is instance.phase else self.now,
            observed=Observed(
                phase=phase,
                detail=detail,
                reason="exit code 1" if failed else reason,
                ends=3 if failed else 0,
                exit_code={Phase.STOPPED: 0, Phase.FAILED: 1}.get(phase),
                log_tail=("boom",) if failed else (),
            ),
        )

    def place(self) -> None:
        up = [node for node in NODES if node not in self.down | self.draining]
        for instance in list(self.instances.values()):
            if instance.phase is not Phase.PENDING or instance.desired is Desired.STOP:
                continue
            if not up or (not self.calm and self.random.random() < 0.1):
                self.instances[instance.id] = replace(instance, placement_reason="no node fits")
                continue
            load = {node: sum(i.live and i.node_id == node for i in self.instances.values()) for node in up}
            node = min(up, key=lambda node: (load[node], node))
            self.instances[instance.id] = replace(
                instance, node_id=node, phase=Phase.ASSIGNED, phase_since=self.now, placement_reason=""
            )

    def number_routes(self) -> None:
        """As the routes loop: a new table where it changed, or where a draining instance has no number."""
        routed = frozenset(
            i.id
            for i in self.own()
            if i.desired is Desired.SERVE and i.sleep is Sleep.AWAKE and i.phase is Phase.HEALTHY and self.has_port(i)
        )
        fresh = [i for i in self.instances.values() if drains(i) and i.unrouted_version is None]
        if routed == self.tables[-1] and not fresh:
            return
        self.tables.append(routed)
        for instance in fresh:
            self.instances[instance.id] = replace(instance, unrouted_version=len(self.tables) - 1)
        for id_ in routed:
            if self.instances[id_].routed_version is None:
                self.instances[id_] = replace(self.instances[id_], routed_version=len(self.tables) - 1)

    def poll_edges(self) -> None:
        for edge in self.edges:
            if edge.silent:
                continue
            if self.calm or self.random.random() < 0.7:
                self._apply_table(edge)
            edge.sessions = {id_: left for id_, n in edge.sessions.items() if (left := self._fewer(n)) > 0}
            gone = {id_: n for id_, n in edge.sessions.items() if id_ not in self.tables[edge.applied]}
            edge.told = replace(
                edge.row(self.now), applied_version=edge.applied, open_sessions=gone, lease_until=self.now + LEASE_S
            )

    def _apply_table(self, edge: EdgeSide) -> None:
        left = self.tables[edge.applied] - self.tables[-1]
        for instance_id in sorted(left):
            edge.sessions.setdefault(instance_id, self.random.randrange(3))
        edge.applied = len(self.tables) - 1

    def _fewer(self, sessions: int) -> int:
        if self.calm:
            return 0
        return sessions if sessions > 100 else sessions - self.random.randrange(2)

    # --- the planner's step ---

    def step(self) -> None:
        """Plan, check, apply, check."""
        facts = self.facts()
        plan = self.plan(facts, self.now)
        rules.check_before(self, plan)
        before = dict(self.instances)
        self._make(plan)
        rules.check_after(self, facts, before, plan)
        self._check_rest(plan)

    def _check_rest(self, plan: RolloutPlan) -> None:
        """The plan is complete: again at the same time, or any time before it asks for, it is empty."""
        again = self.plan(self.facts(), self.now) if plan.changes else plan
        assert again.changes == (), f"not idempotent: {again.changes}"
        assert again.next_at is None or again.next_at > self.now, "asks for the past"
        later = 1e7 if again.next_at is None else again.next_at - 1e-3
        if later > self.now and (self.calm or self.random.random() < 0.5):
            early = self.plan(self.facts(), min(later, self.now + 20 * 3600.0))
            assert early.changes == (), f"time alone changed the plan before {again.next_at}: {early.changes}"

    def facts(self) -> RolloutFacts:
        return RolloutFacts(
            app=self.app,
            releases=self.releases,
            deployments=tuple(self.unfinished()),
            instances=tuple(self.instances.values()),
            images={
                d.release_id: ImageFacts(state=self.images[self.releases[d.release_id].image_digest])
                for d in self.unfinished()
            },
            edges=tuple(edge.row(self.now) for edge in self.edges),
            dead_nodes=frozenset(self.down),
            strategies=ALL,
        )

    def _make(self, plan: RolloutPlan) -> None:
        self.changes_made += len(plan.changes)
        touched: set[str] = set()
        for change in plan.changes:
            match change:
                case Start():
                    self._made += 1
                    id_ = f"ins{self._made:05d}"
                    release = self.releases[change.release_id]
                    self.instances[id_] = new_instance(change, "app", release, id_=id_, now=self.now)
                case StartCommand():
                    self._made += 1
                    id_ = f"ins{self._made:05d}"
                    release = self.releases[change.release_id]
                    self.instances[id_] = new_command(change, "app", release, id_=id_, now=self.now)
                case Drain() | Stop() | Suspend() | Lose():
                    assert change.instance_id not in touched, "one change an instance"
                    touched.add(change.instance_id)
                    changed = change_instance(self.instances[change.instance_id], change, self.now)
                    self.instances[changed.id] = changed
                case MoveDeployment():
                    deployment = self.deployments[change.deployment_id]
                    allowed = {deployment.state, *DEPLOYMENT_MOVES[deployment.state]}
                    assert change.state in allowed, (deployment.state, change.state)
                    assert deployment.state not in FINISHED, "a finished deployment is history"
                    self.deployments[deployment.id] = move_deployment(deployment, change, self.now)
                case Aim():
                    self.app = replace(
                        self.app,
                        release_id=change.release_id,
                        stable_release_id=change.stable_release_id,
                        stable_generation=change.stable_generation,
                    )
                case Forget():
                    raise AssertionError("nobody asked for that")

    def own(self) -> list[Instance]:
        """The app's instances, without one-off runs."""
        return [i for i in self.instances.values() if i.owner is OwnerKind.APP]

    def runs(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.owner is OwnerKind.RUN]

    def unfinished(self) -> list[Deployment]:
        return [d for d in self.deployments.values() if d.state not in FINISHED]

    def is_fresh(self, instance: Instance, target: Release | None) -> bool:
        """It is what it should be if this release is the target."""
        running = any(d.state is DeploymentState.IN_PROGRESS for d in self.deployments.values())
        generation = self.app.generation if running else self.app.stable_generation
        return target is not None and instance.content_hash == target.content_hash and instance.generation == generation

    def has_port(self, instance: Instance) -> bool:
        services = self.releases[instance.release_id].config.services
        return instance.owner is OwnerKind.APP and any(service.process == instance.process for service in services)

    def drain_timeout_of(self, instance: Instance) -> float:
        return self.releases[instance.release_id].config.drain_timeout_s

    # --- the end ---

    def settle(self) -> None:
        """Everything heals and nothing more happens: the app must come to be what is wanted."""
        self._heal()
        self._check_success(self._hopeful())
        for _ in range(100):
            made = self.changes_made
            self.go_on()
            if made == self.changes_made and self._is_settled():
                return
            self.now += 7.0
        raise AssertionError(f"does not converge: {self.unfinished()} {self._live()}")

    def _heal(self) -> None:
        self.calm = True
        self.step()  # what is on dead nodes is judged lost before they return
        self.down.clear()
        self._on_fetched(0)
        for edge in self.edges:
            edge.silent = False

    def _check_success(self, hopeful: list[Deployment]) -> None:
        """A deployment with nothing against it succeeds, and does so while little time passes."""
        for deployment in hopeful:
            pace = 0.1 if deployment.canary is None else 1.0
            for _ in range(SWIFT_ROUNDS):
                if self.deployments[deployment.id].state in FINISHED:
                    break
                self.go_on()
                self.now += pace
            state = self.deployments[deployment.id].state
            assert state is DeploymentState.SUCCEEDED, f"{deployment.id} should have succeeded, but {state.value}"

    def _hopeful(self) -> list[Deployment]:
        """The newest deployment, if it is under way, nothing of it failed yet, and its time is not over soon."""
        newest = max(self.deployments.values(), key=lambda d: (d.created_at, d.id), default=None)
        if newest is None or newest.state in FINISHED or self.now + 30.0 > newest.created_at + newest.wait_timeout_s:
            return []
        content = self.releases[newest.release_id].content_hash
        bad = {Phase.FAILED} if newest.canary is None else {Phase.FAILED, Phase.UNHEALTHY}
        failed = any(i.content_hash == content and i.phase in bad for i in self.instances.values())
        stopped = any(i.deployment_id == newest.id and i.desired is Desired.STOP for i in self.runs())
        return [] if failed or stopped else [newest]

    def _is_settled(self) -> bool:
        stable = self.releases.get(self.app.stable_release_id)
        wanted = wanted_counts(self.app, stable.config) if stable else {}
        live = self._live()
        counts = {name: sum(i.process == name for i in live) for name in {*wanted, *(i.process for i in live)}}
        return (
            not self.unfinished()
            and counts == wanted
            and all(i.serving and self.is_fresh(i, stable) and i.owner is OwnerKind.APP for i in live)
            and not any(i.node_id in self.draining for i in live)
            and self.app.release_id == self.app.stable_release_id
        )

    def _live(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.live]

    def go_on(self) -> None:
        """One round of everybody."""
        rollout_drains.evict(self, Eviction.GENTLE, 1.0 if self.calm else 0.3)
        self.step()
        self.place()
        self.number_routes()
        self.agents()
        self.poll_edges()


def drains(instance: Instance) -> bool:
    dozes = instance.desired is Desired.SERVE and instance.sleep is Sleep.DOZING
    return instance.live and (instance.desired is Desired.DRAIN or dozes)
