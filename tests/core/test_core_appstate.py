"""What people read as the state of an app."""

from __future__ import annotations

import pytest

from shellwego.core.apps import AppState
from shellwego.core.appstate import app_state
from shellwego.core.instances import Instance, Observed, OwnerKind, Phase
from tests.core.app_builder import app, instance, release

V1 = release(1)


def state(*instances: Instance, deploying: bool = False, failed: bool = False, **changes: object) -> AppState:
    config = None if changes.pop("never_deployed", False) else V1.config
    return app_state(app(**changes), config, instances, deploying=deploying, failed=failed)


def test_an_app_that_was_never_deployed_is_stopped() -> None:
    assert state(never_deployed=True) is AppState.STOPPED


def test_a_first_deployment_that_failed_leaves_a_failed_app() -> None:
    assert state(never_deployed=True, failed=True) is AppState.FAILED


@pytest.mark.parametrize("changes", [{"stopped": True}, {"deleting": True}, {"counts": {"web": 0}}])
def test_stopped(changes: dict[str, object]) -> None:
    assert state(instance(V1), **changes) is AppState.STOPPED  # type: ignore[arg-type]


def test_deploying_while_a_deployment_is_under_way() -> None:
    assert state(instance(V1), deploying=True) is AppState.DEPLOYING


def test_running_when_all_wanted_serve() -> None:
    assert state(instance(V1), instance(V1, 1), counts={"web": 2}) is AppState.RUNNING


def test_degraded_when_some_serve() -> None:
    assert state(instance(V1), instance(V1, 1, Phase.UNHEALTHY), counts={"web": 2}) is AppState.DEGRADED


def test_sleeping_when_all_sleep() -> None:
    assert state(instance(V1, phase=Phase.ASLEEP)) is AppState.SLEEPING
    assert state(instance(V1, phase=Phase.ASLEEP), instance(V1, 1), counts={"web": 2}) is AppState.RUNNING


def test_starting_anew_is_deploying_and_starting_again_is_failed() -> None:
    assert state(instance(V1, phase=Phase.STARTING)) is AppState.DEPLOYING
    again = instance(V1, phase=Phase.STARTING, observed=Observed(ends=1))
    assert state(again) is AppState.FAILED


def test_nothing_alive_is_failed() -> None:
    assert state(instance(V1, phase=Phase.FAILED)) is AppState.FAILED


def test_one_off_runs_do_not_count() -> None:
    assert state(instance(V1, owner=OwnerKind.RUN)) is AppState.FAILED
