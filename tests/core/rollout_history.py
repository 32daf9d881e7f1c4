"""Random histories of one app: what happens to it, and that it comes to be what is wanted once nothing happens any more."""

from __future__ import annotations

from dataclasses import replace

from shellwego.core.apps import AppConfig, Process, Release, Service, content_hash, wanted_counts
from shellwego.core.deployments import (
    CANARY,
    FINISHED,
    CanaryPlan,
    Deployment,
    DeploymentState,
    Share,
    Stage,
    Strategy,
)
from shellwego.core.images import ImageState
from shellwego.core.instances import Desired, Eviction, OwnerKind, Phase, Sleep
from tests.core import rollout_drains
from tests.core.rollout_parts import (
    ALL,
    NODES,
    PACES,
    PAUSES,
    SHAPES,
    SWIFT_ROUNDS,
    Event,
)
from tests.core.rollout_platform import Platform


class History(Platform):
    """One app, by what happens to it."""

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
                self.report(instance, Phase.UNHEALTHY)
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
        for instance in self.live():
            if instance.desired is Desired.SERVE and instance.sleep is not Sleep.AWAKE:
                woken = replace(
                    instance, sleep=Sleep.AWAKE, drain_since=None, routed_version=None, unrouted_version=None
                )
                self.instances[instance.id] = woken
                if instance.phase is Phase.ASLEEP and instance.node_id not in self.down:
                    self.report(woken, Phase.HEALTHY)

    def _strike(self, x: int, phase: Phase, among: set[Phase]) -> None:
        apart = () if phase is Phase.FAILED else self.runs()
        hit = [i for i in self.instances.values() if i.phase in among and i.node_id not in self.down and i not in apart]
        if hit:
            self.report(hit[x % len(hit)], phase)

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
        raise AssertionError(f"does not converge: {self.unfinished()} {self.live()}")

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
        live = self.live()
        counts = {name: sum(i.process == name for i in live) for name in {*wanted, *(i.process for i in live)}}
        return (
            not self.unfinished()
            and counts == wanted
            and all(i.serving and self.is_fresh(i, stable) and i.owner is OwnerKind.APP for i in live)
            and not any(i.node_id in self.draining for i in live)
            and self.app.release_id == self.app.stable_release_id
        )
