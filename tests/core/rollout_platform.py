"""One app with all that surrounds it: a small world of nodes, edges and time around the planner.

It applies plans by the same `core.changes` as the loop, and everything else by its own simple means: it keeps its own route
tables and its own account of what each edge serves, so the planner's view is checked against a second one.
"""

from __future__ import annotations

import random
from dataclasses import replace

from shellwego.core.apps import Release
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
    DEPLOYMENT_MOVES,
    FINISHED,
    Deployment,
    DeploymentState,
)
from shellwego.core.images import ImageState
from shellwego.core.instances import PHASE_MOVES, Desired, Eviction, Instance, Observed, OwnerKind, Phase, Sleep
from shellwego.core.rollout import RolloutPlan
from shellwego.core.rollout_facts import ImageFacts, RolloutFacts
from tests.core import rollout_drains
from tests.core import rollout_rules as rules
from tests.core.app_builder import app
from tests.core.rollout_parts import (
    ALL,
    LEASE_S,
    NODES,
    EdgeSide,
    Planner,
)


class Platform:
    """One app with all that surrounds it."""

    def __init__(self, plan: Planner, seed: int) -> None:
        self.plan = plan
        self.random = random.Random(seed)
        self.now = 1000.0
        self.eager = self.random.random() < 0.5
        """The use case supersedes and aims by itself, as ours does; the planner must do with both."""
        self.app = app(counts={"web": 1 + self.random.randrange(4), "worker": 1, "api": 2})
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

    # --- the rest of the platform ---

    def agents(self) -> None:
        """Each node moves some of its instances one step on."""
        for instance in list(self.instances.values()):
            reachable = instance.live and instance.node_id and instance.node_id not in self.down
            if reachable and (self.calm or self.random.random() < 0.7):
                self._work(instance)

    def _work(self, instance: Instance) -> None:
        if instance.desired is Desired.STOP:
            self.report(instance, Phase.STOPPED)
            return
        if instance.owner is OwnerKind.RUN:
            self._run(instance)
            return
        behaviour = "good" if self.calm else self.behaviour[self.releases[instance.release_id].image_digest]
        match instance.phase:
            case Phase.ASSIGNED:
                self.report(instance, Phase.STARTING, detail="boot")
            case Phase.STARTING if behaviour == "fails":
                self.report(instance, Phase.FAILED)
            case Phase.STARTING if behaviour == "hangs":
                self.report(instance, Phase.STARTING, detail="checks", reason="connection refused")
            case Phase.HEALTHY if instance.sleep is Sleep.ASLEEP:
                self.report(instance, Phase.ASLEEP)
            case Phase.STARTING | Phase.UNHEALTHY:
                self.report(instance, Phase.HEALTHY)
            case _:
                pass

    def _run(self, run: Instance) -> None:
        """The VM of a release command goes on."""
        does = "good" if self.calm else self.commands[run.deployment_id]
        match run.phase:
            case Phase.ASSIGNED:
                self.report(run, Phase.STARTING)
            case Phase.STARTING:
                self.report(run, Phase.HEALTHY)
            case Phase.HEALTHY if does != "hangs":
                self.report(run, Phase.STOPPED if does == "good" else Phase.FAILED)
            case _:
                pass

    def report(self, instance: Instance, phase: Phase, *, detail: str = "", reason: str = "") -> None:
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

    def live(self) -> list[Instance]:
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
