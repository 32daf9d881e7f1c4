"""How much may be wanted: what counts, by which limit, and when it is too much."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.apps import MIB, AppConfig, Mount, Process, Release, content_hash
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase
from shellwego.core.plans import FREE, PLANS, UNLIMITED, plan_named, rank
from shellwego.core.quota import (
    COUNTED,
    OF_PROJECTS,
    Quota,
    Standing,
    app_takes,
    binding,
    excess,
    growth,
    organization_limits,
    project_limits,
    settled,
)
from tests.core.app_builder import app

CONFIG = AppConfig(processes=(Process(memory_bytes=512 * MIB, cpu_milli=500), Process(name="worker", cpu_milli=2000)))
APP = app(config=CONFIG, counts={"web": 3}, last_release_number=1)
NOTHING = Standing()
amounts = st.dictionaries(st.sampled_from(sorted(COUNTED)), st.integers(-5, 20))
limits = st.dictionaries(st.sampled_from(sorted(COUNTED)), st.one_of(st.none(), st.integers(0, 20)))


def quota(**limits: int | None) -> Quota:
    return Quota(id="org", limits=limits, created_at=0.0)


def release(number: int, *processes: Process, mounts: tuple[Mount, ...] = ()) -> Release:
    config = AppConfig(processes=processes, mounts=mounts)
    return Release(
        id=f"rel{number}",
        app_id="app",
        number=number,
        config=config,
        image_digest="sha256:0",
        content_hash=content_hash(config, "sha256:0"),
        created_at=0.0,
        created_by="usr",
    )


def instance(of: Release, mib: int, **given: object) -> Instance:
    made = Instance(
        id="ins",
        app_id="app",
        process="web",
        slot=0,
        release_id=of.id,
        content_hash=of.content_hash,
        generation=0,
        memory_bytes=mib * MIB,
        cpu_milli=1000,
        disk_bytes=0,
        phase=Phase.HEALTHY,
        created_at=0.0,
        phase_since=0.0,
    )
    return replace(made, **given)  # type: ignore[arg-type]  # whichever fields they are


def test_an_app_takes_its_counts_times_its_sizes() -> None:
    assert app_takes(APP, NOTHING) == {"instances": 4, "memory": (3 * 512 + 256) * MIB, "cpu": 3500}


def test_a_config_that_was_made_small_gives_nothing_back_before_it_is_rolled_out() -> None:
    tiny = replace(APP, config=AppConfig(processes=(Process(memory_bytes=32 * MIB),)), counts={"web": 5})
    runs = release(1, Process(memory_bytes=2048 * MIB, cpu_milli=100))
    assert app_takes(tiny, Standing((runs,))) == {"instances": 5, "memory": 5 * 2048 * MIB, "cpu": 5000}


def test_a_process_that_the_config_has_not_any_more_takes_what_its_release_says() -> None:
    gone = replace(APP, config=AppConfig(processes=(Process(name="idle"),)), counts={"web": 5, "idle": 0})
    assert app_takes(gone, Standing((release(1, Process(cpu_milli=100)),)))["instances"] == 5


def test_releases_that_follow_one_another_count_as_the_largest_of_them_and_not_together() -> None:
    renamed = replace(APP, config=AppConfig(processes=(Process(name="app", memory_bytes=512 * MIB),)))
    before = release(1, Process(memory_bytes=128 * MIB))
    assert app_takes(renamed, Standing((before,))) == {"instances": 3, "memory": 512 * MIB, "cpu": 3000}


def test_a_release_that_mounts_a_volume_counts_one_of_its_process() -> None:
    mounts = (Mount(source="data", destination="/data"),)
    scaled = replace(APP, config=AppConfig(processes=(Process(memory_bytes=32 * MIB),)))
    taken = app_takes(scaled, Standing((release(1, Process(memory_bytes=64 * MIB), mounts=mounts),)))
    assert taken == {"instances": 3, "memory": 96 * MIB, "cpu": 3000}


def test_what_serves_on_of_a_release_that_nothing_names_any_more_is_the_least_that_counts() -> None:
    app = replace(APP, config=AppConfig(processes=(Process(memory_bytes=32 * MIB),)), counts={"web": 1})
    tiny, first, second = (release(number, Process(memory_bytes=number * MIB)) for number in (32, 100, 200))
    left = (instance(first, 1000), instance(second, 2000))
    assert app_takes(app, Standing((tiny,), left)) == {"instances": 2, "memory": 3000 * MIB, "cpu": 2000}


def test_what_serves_on_of_a_release_counts_also_where_its_counts_were_lowered() -> None:
    big = release(1, Process(memory_bytes=2048 * MIB))
    app = replace(APP, config=big.config, counts={"web": 0}, last_release_number=2)
    assert app_takes(app, Standing((big,), (instance(big, 2048),) * 5))["memory"] == 5 * 2048 * MIB


@pytest.mark.parametrize(
    "change",
    [{"desired": Desired.DRAIN}, {"desired": Desired.STOP}, {"phase": Phase.FAILED}, {"owner": OwnerKind.RUN}],
)
def test_what_leaves_or_has_ended_is_no_part_of_what_serves(change: dict[str, object]) -> None:
    app = replace(APP, config=AppConfig(processes=(Process(memory_bytes=32 * MIB),)), counts={"web": 1})
    left = instance(release(1, Process()), 2048, **change)
    assert app_takes(app, Standing((), (left,)))["memory"] == 32 * MIB


def test_the_surge_of_a_rollout_counts_for_nothing() -> None:
    old, new = release(1, Process(memory_bytes=100 * MIB)), release(2, Process(memory_bytes=101 * MIB))
    app = replace(APP, config=new.config, counts={"web": 2}, last_release_number=2)
    beside = (*(instance(old, 100),) * 2, *(instance(new, 101),) * 2)
    assert app_takes(app, Standing((old, new), beside)) == {"instances": 2, "memory": 202 * MIB, "cpu": 2000}


def test_nor_does_that_of_a_restart() -> None:
    only = release(1, Process(memory_bytes=100 * MIB))
    app = replace(APP, config=only.config, counts={"web": 2}, last_release_number=2)
    beside = (*(instance(only, 100),) * 2, *(instance(only, 100, generation=1),) * 2)
    assert app_takes(app, Standing((only,), beside))["memory"] == 200 * MIB


def test_an_app_is_settled_once_its_last_release_was_rolled_out_in_full() -> None:
    first, second = release(1, Process()), release(2, Process())
    app = replace(APP, stable_release_id=second.id, last_release_number=2)
    assert settled(app, (first, second))
    assert not settled(replace(app, stable_release_id=first.id), (first, second))
    assert not settled(app, ())


@pytest.mark.parametrize("change", [{"stopped": True}, {"deleting": True}, {"last_release_number": 0}])
def test_what_is_not_to_run_takes_nothing(change: dict[str, int]) -> None:
    serves = release(1, *CONFIG.processes)
    stopped = replace(APP, **change)  # type: ignore[arg-type]  # whichever field it is
    assert not any(app_takes(stopped, Standing((serves,), (instance(serves, 100),))).values())


def test_what_was_set_goes_before_the_plan() -> None:
    planned = organization_limits(FREE, None)
    given = organization_limits(FREE, quota(apps=7, memory=None))
    assert given == {**planned, "apps": 7, "memory": None}
    assert set(planned) == {*COUNTED, "priority"}


def test_a_project_has_the_limits_only_that_were_set() -> None:
    assert project_limits(None) == dict.fromkeys(OF_PROJECTS)
    assert project_limits(quota(apps=2))["apps"] == 2


def test_an_unlimited_plan_counts_nothing() -> None:
    assert binding(organization_limits(UNLIMITED, None), dict.fromkeys(COUNTED, 1)) == ()
    assert binding(organization_limits(UNLIMITED, quota(apps=1)), dict.fromkeys(COUNTED, 1)) == ("apps",)


def test_a_plan_that_is_not_known_is_the_smallest() -> None:
    assert plan_named("made-up") == PLANS[FREE]
    assert sorted(PLANS, key=rank) == [*PLANS]


def test_larger_plans_allow_more_of_everything() -> None:
    named = [plan.limits for plan in PLANS.values() if plan.limits]
    for smaller, larger in pairwise(named):
        assert all(smaller[name] < larger[name] for name in COUNTED)


@given(limits, amounts, amounts)
def test_nothing_goes_beyond_a_limit_and_what_shrinks_always_fits(
    allowed: dict[str, int | None], used: dict[str, int], more: dict[str, int]
) -> None:
    found = excess(allowed, used, more)
    beyond = {
        name
        for name, amount in more.items()
        if amount > 0 and (limit := allowed.get(name)) is not None and used.get(name, 0) + amount > limit
    }
    assert (found.name in beyond) if found else not beyond


@given(amounts, amounts)
def test_growth_is_what_is_wanted_more(before: dict[str, int], after: dict[str, int]) -> None:
    grown = growth(before, after)
    assert all(more == after[name] - before.get(name, 0) > 0 for name, more in grown.items())
    assert all(after[name] <= before.get(name, 0) for name in after.keys() - grown.keys())
