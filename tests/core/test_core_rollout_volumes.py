"""Random histories of an app with a volume: never two owners, and whatever heals ends with what is wanted.

The world is that of the other histories, but a volume lives where it was first, an instance that needs one that another has
is not placed, and who has what is needed gives way whatever the floor. Drains are left out: what cannot move is
never asked to (`core.drain`).
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from shellwego.core import course
from shellwego.core.apps import AppConfig, Mount, Process, Release, Service
from shellwego.core.changes import Drain, Start, Stop
from shellwego.core.images import ImageState
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.rollout import plan_rollout
from tests.core import rollout_rules as rules
from tests.core.app_builder import app, instance
from tests.core.planner_parts import V1, V2, V3, kinds, only, plan
from tests.core.rollout_history import History
from tests.core.rollout_parts import EVENTS, NODES, SHAPES, Event, Planner

HISTORIES, NIGHTLY_HISTORIES = 300, 50_000
WITHOUT_DRAINS = [event for event in EVENTS if event not in ("drain", "uncordon", "force-out")]


class VolumeHistory(History):
    """One app whose releases mostly mount the one volume, in their first process."""

    def __init__(self, plan: Planner, seed: int) -> None:
        super().__init__(plan, seed)
        self.app = replace(self.app, counts={"web": 1, "worker": 1, "api": 1})
        self.home = ""

    def _on_scale(self, x: int) -> None:
        process = ("web", "worker", "api")[x % 3]
        self.app = replace(self.app, counts={**self.app.counts, process: (x // 3) % 2})

    def _new_release(self, x: int, behaviour: str, image: ImageState = ImageState.READY) -> Release:
        names = SHAPES[x % len(SHAPES)]
        mount = Mount(source="data", destination="/data", process=names[0], volume_id="vol_1")
        config = AppConfig(
            image=f"c{len(self.releases)}",
            processes=tuple(Process(name=name) for name in names),
            services=(Service(process=names[0], port=8080),),
            mounts=(mount,) if x % 5 else (),
            drain_timeout_s=(5.0, 20.0)[x % 2],
        )
        digest = f"sha256:{config.image}"
        self.images[digest] = image
        self.behaviour[digest] = behaviour
        return self._freeze(config, digest)

    def place(self) -> None:
        for waiting in [i for i in self.own() if i.phase is Phase.PENDING and self.mounts(i)]:
            free = not self.owners() and self.home not in self.down
            if waiting.desired is not Desired.STOP and free and (self.calm or self.random.random() < 0.9):
                up = sorted(set(NODES) - self.down)
                self.home = self.home or (up[0] if up else "")
                if self.home:
                    placed = replace(waiting, node_id=self.home, phase=Phase.ASSIGNED, phase_since=self.now)
                    self.instances[waiting.id] = placed
        apart = {i.id: i for i in self.own() if i.phase is Phase.PENDING and self.mounts(i)}
        self.instances = {id_: i for id_, i in self.instances.items() if id_ not in apart}
        super().place()
        self.instances |= apart
        assert len(self.owners()) <= 1, "two owners"

    def step(self) -> None:
        plan = self.plan(self.facts(), self.now)
        rules.check_before(self, plan)
        before = dict(self.instances)
        self._make(plan)
        rules.check_floor_beside(self, before, plan, self._yields)
        self._check_rest(plan)

    def mounts(self, instance: Instance) -> bool:
        return bool(self.releases[instance.release_id].config.volumes_of(instance.process))

    def _yields(self, instance: Instance, target: Release) -> bool:
        return bool(target.config.mounts) and self.mounts(instance) and not self.is_fresh(instance, target)

    def owners(self) -> list[Instance]:
        """Those that a node has, or may have."""
        return [i for i in self.own() if i.live and i.node_id and self.mounts(i)]


def play(events: list[Event], seed: int) -> None:
    history = VolumeHistory(plan_rollout, seed)
    for event in events:
        history.happen(event)
        history.go_on()
    history.settle()


def events_of(seed: int) -> list[Event]:
    rng = random.Random(seed)
    return [(rng.choice(WITHOUT_DRAINS), rng.randrange(100)) for _ in range(rng.randrange(1, 30))]


def first_broken(count: int) -> str:
    """The first seed whose history breaks a rule, with what it breaks; empty: none."""
    for seed in range(count):
        try:
            play(events_of(seed), seed)
        except AssertionError as error:
            return f"seed {seed}: {error}\n{events_of(seed)}"
    return ""


def test_no_history_gives_a_volume_two_owners_or_sticks(request: pytest.FixtureRequest) -> None:
    assert not first_broken(NIGHTLY_HISTORIES if request.config.getoption("--nightly") else HISTORIES)


def test_without_the_planners_rule_the_new_one_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the old one has it never gives up, where the planner holds it until the new one is ready."""
    monkeypatch.setattr(course, "_with_what_is_needed", lambda *_: frozenset())
    assert first_broken(HISTORIES)


def test_what_serves_without_the_volume_serves_on_though_one_that_never_ran_was_to_have_it() -> None:
    mounts = (Mount(source="data", destination="/data", process="web", volume_id="vol_1"),)
    stable, cancelled = (replace(each, config=replace(each.config, mounts=mounts)) for each in (V1, V3))
    of = app(release_id=cancelled.id, stable_release_id=stable.id)
    waiting = instance(cancelled, phase=Phase.PENDING)
    made = plan(of, instance(V2), waiting, releases=(stable, V2, cancelled))
    assert kinds(made.changes) == ["Stop", "Start", "Aim"]
    assert only(made, Stop).instance_id == waiting.id
    assert only(made, Start).release_id == stable.id


def test_who_has_the_volume_goes_first_and_the_others_only_as_the_floor_allows() -> None:
    mounts = (Mount(source="data", destination="/data", process="web", volume_id="vol_1"),)
    stable, holder = (replace(each, config=replace(each.config, mounts=mounts)) for each in (V1, V3))
    of = app(release_id=stable.id, stable_release_id=stable.id)
    made = plan(of, instance(V2), instance(holder), releases=(stable, V2, holder))
    assert only(made, Drain).instance_id == "v3.0"
    assert only(made, Start).release_id == stable.id
