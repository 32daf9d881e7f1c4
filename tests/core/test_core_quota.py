"""How much may be wanted: what counts, by which limit, and when it is too much."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.apps import MIB, App, AppConfig, Process
from shellwego.core.plans import FREE, PLANS, UNLIMITED, plan_named, rank
from shellwego.core.quota import (
    COUNTED,
    OF_PROJECTS,
    Quota,
    app_takes,
    binding,
    excess,
    growth,
    organization_limits,
    project_limits,
)

CONFIG = AppConfig(processes=(Process(memory_bytes=512 * MIB, cpu_milli=500), Process(name="worker", cpu_milli=2000)))
APP = App(
    id="app",
    project_id="prj",
    name="shop",
    hostname="shop",
    config=CONFIG,
    counts={"web": 3},
    last_release_number=1,
    created_at=0.0,
    updated_at=0.0,
)
amounts = st.dictionaries(st.sampled_from(sorted(COUNTED)), st.integers(-5, 20))
limits = st.dictionaries(st.sampled_from(sorted(COUNTED)), st.one_of(st.none(), st.integers(0, 20)))


def quota(**limits: int | None) -> Quota:
    return Quota(id="org", limits=limits, created_at=0.0)


def test_an_app_takes_its_counts_times_its_sizes() -> None:
    assert app_takes(APP) == {"instances": 4, "memory": (3 * 512 + 256) * MIB, "cpu": 3500}


@pytest.mark.parametrize("change", [{"stopped": True}, {"deleting": True}, {"last_release_number": 0}])
def test_what_is_not_to_run_takes_nothing(change: dict[str, int]) -> None:
    assert not any(app_takes(replace(APP, **change)).values())  # type: ignore[arg-type]  # whichever field it is


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
