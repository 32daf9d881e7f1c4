"""Instances put to sleep and woken: control plane, edge, and a real agent over an engine that outlives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control import sleep
from shellwego.control.unit import Unit
from shellwego.core.assignments import NodeReport
from shellwego.core.deployments import DeploymentState
from shellwego.core.errors import ConflictError, ShellWeGoError, UnavailableError
from shellwego.core.instances import Desired, Instance, Phase, Sleep
from shellwego.core.routing import RouteState
from shellwego.core.vms import VmPhase
from tests.agent.test_agent_in_rollout import Platform


class Sleeper(Platform):
    """An app with one instance, and orders to it."""

    async def open(self) -> None:
        await super().open()
        await self.world.finished(await self.world.deploy("hello:v1"))
        await self.until(lambda: len(self.edge.endpoints()) == 1)
        self.id = next(iter(self.edge.endpoints()))

    @property
    def instance(self) -> Instance:
        found = self.world.peek(lambda tx: tx.instances.get(self.id))
        assert found is not None
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.clock.until(condition, 60)

    def is_(self, phase: Phase) -> Callable[[], bool]:
        return lambda: self.instance.phase is phase

    async def ask(self, order: Callable[[Unit, Instance], Instance]) -> None:
        await self.world.control.commit(lambda unit: order(unit, self.instance))

    async def phases(self) -> list[VmPhase]:
        return [view.phase for view in await self.engine.observe()]

    def state(self) -> RouteState:
        (route,) = self.edge.table.routes
        return route.state

    def departed(self) -> list[str]:
        return [departed.instance_id for route in self.edge.table.routes for departed in route.departed]

    def events(self) -> list[str]:
        return self.world.peek(lambda tx: [event.type for event in tx.events.select() if event.resource == self.id])


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Sleeper]:
    platform = Sleeper(tmp_path / "agent")
    await platform.open()
    yield platform
    await platform.close()


async def test_an_instance_sleeps_out_of_the_routes_and_comes_back_as_it_was(platform: Sleeper) -> None:
    before = platform.instance
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    assert await platform.phases() == [VmPhase.ASLEEP]
    assert (platform.edge.endpoints(), platform.state()) == (set(), RouteState.ASLEEP)
    await platform.clock.advance(900)
    assert platform.instance.phase is Phase.ASLEEP, "nothing wakes, judges or replaces it"
    assert len(platform.world.live()) == 1
    await platform.ask(sleep.resume)
    await platform.until(lambda: platform.edge.endpoints() == {before.id})
    after = platform.instance
    assert (after.phase, after.observed.vm_id, after.observed.attempt) == (Phase.HEALTHY, before.observed.vm_id, 1)
    told = ["suspending", "emptied", "asleep", "resuming", "healthy"]
    assert [name.removeprefix("instance.") for name in platform.events()][-5:] == told


async def test_it_finishes_what_it_has_before_it_sleeps(platform: Sleeper) -> None:
    platform.edge.open_sessions = {platform.id: 1}
    await platform.ask(sleep.suspend)
    await platform.until(lambda: not platform.edge.endpoints())
    await platform.clock.advance(10)
    assert (platform.instance.sleep, await platform.phases()) == (Sleep.DOZING, [VmPhase.RUNNING])
    platform.edge.open_sessions = {}
    await platform.until(platform.is_(Phase.ASLEEP))


async def test_sessions_that_do_not_end_are_cut_at_the_apps_time_out_and_told(platform: Sleeper) -> None:
    platform.edge.open_sessions = {platform.id: 2}
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    events = platform.world.peek(lambda tx: [event for event in tx.events.select() if event.type == "instance.emptied"])
    assert events[0].data["cut_sessions"] == "2"
    await platform.until(lambda: platform.departed() == [platform.id])


async def test_it_can_be_woken_before_it_sleeps(platform: Sleeper) -> None:
    platform.edge.open_sessions = {platform.id: 1}
    await platform.ask(sleep.suspend)
    await platform.until(lambda: not platform.edge.endpoints())
    await platform.ask(sleep.resume)
    await platform.until(lambda: platform.edge.endpoints() == {platform.id})
    assert (platform.instance.sleep, await platform.phases()) == (Sleep.AWAKE, [VmPhase.RUNNING])


async def test_an_agent_that_begins_anew_leaves_it_asleep_and_can_wake_it(platform: Sleeper) -> None:
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    await platform.kill_agent()
    platform.start_agent()
    await platform.clock.advance(30)
    assert (platform.instance.phase, await platform.phases()) == (Phase.ASLEEP, [VmPhase.ASLEEP])
    await platform.ask(sleep.resume)
    await platform.until(lambda: platform.edge.endpoints() == {platform.id})
    assert platform.instance.observed.attempt == 1


async def test_a_deploy_replaces_what_sleeps(platform: Sleeper) -> None:
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    newer = await platform.world.deploy("hello:v2")
    await platform.world.finished(newer)
    assert platform.world.deployment(newer).state is DeploymentState.SUCCEEDED
    await platform.until(platform.is_(Phase.STOPPED))
    assert platform.edge.endpoints() == {instance.id for instance in platform.world.live()}


@pytest.mark.parametrize("change", ["stopped", "deleting"])
async def test_a_stopped_or_destroyed_app_takes_what_sleeps_along(platform: Sleeper, change: str) -> None:
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    await platform.world.change_app(**{change: True})
    await platform.until(lambda: not platform.world.live())


async def test_a_suspend_that_fails_is_told_and_the_instance_serves_on(platform: Sleeper) -> None:
    platform.engine.sleep_fails_with = ShellWeGoError("freeze-failed", "the guest cannot hold its workload")
    await platform.ask(sleep.suspend)
    await platform.until(lambda: "instance.suspend_failed" in platform.events())
    await platform.until(lambda: platform.edge.endpoints() == {platform.id})
    assert (platform.instance.sleep, platform.instance.phase) == (Sleep.AWAKE, Phase.HEALTHY)
    platform.engine.sleep_fails_with = None
    await platform.until(lambda: not platform.instance.observed.reason_code)
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))


async def test_one_that_leaves_when_it_is_told_that_its_suspend_failed_leaves_all_the_same(
    platform: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = platform.world.nodes.report
    platform.engine.sleep_fails_with = ShellWeGoError("freeze-failed", "the guest cannot hold its workload")
    monkeypatch.setattr(platform.world.nodes, "report", _unheard)
    await platform.ask(sleep.suspend)
    await platform.until(lambda: platform.instance.sleep is Sleep.ASLEEP)
    await platform.clock.advance(1)
    await platform.world.change_app(deleting=True)
    await platform.until(lambda: platform.instance.desired is Desired.DRAIN)
    monkeypatch.setattr(platform.world.nodes, "report", heard)
    await platform.until(lambda: "instance.suspend_failed" in platform.events())
    await platform.until(lambda: not platform.world.live())


async def test_a_resume_that_may_work_later_is_tried_again(platform: Sleeper) -> None:
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    platform.engine.sleep_fails_with = UnavailableError("host-busy", "no memory now")
    await platform.ask(sleep.resume)
    await platform.until(lambda: platform.instance.observed.reason == "no memory now")
    assert platform.instance.phase is Phase.ASLEEP
    platform.engine.sleep_fails_with = None
    await platform.until(lambda: platform.edge.endpoints() == {platform.id})
    assert platform.instance.observed.attempt == 1


async def test_a_memory_that_cannot_be_had_any_more_is_given_up_for_a_new_attempt(platform: Sleeper) -> None:
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    platform.engine.sleep_fails_with = ConflictError("snapshot-damaged", "piece 3 is not what was written")
    await platform.ask(sleep.resume)
    await platform.until(lambda: platform.edge.endpoints() == {platform.id})
    assert platform.instance.observed.attempt == 2
    lost = platform.world.peek(lambda tx: [e for e in tx.events.select() if e.type == "instance.memory_lost"])
    assert [event.data["reason"] for event in lost] == ["piece 3 is not what was written"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"phase": Phase.UNHEALTHY}, "not-healthy"),
        ({"desired": Desired.DRAIN}, "not-healthy"),
        ({"node_id": "node_none"}, "cannot-suspend"),
    ],
)
async def test_only_a_healthy_instance_on_a_backend_that_can_is_suspended(
    platform: Sleeper, changes: dict[str, object], code: str
) -> None:
    with pytest.raises(ConflictError) as refused:
        await platform.ask(lambda unit, row: sleep.suspend(unit, replace(row, **changes)))  # type: ignore[arg-type]
    assert refused.value.code == code
    assert platform.instance.sleep is Sleep.AWAKE


async def test_one_that_wakes_while_it_is_unknown_whether_its_sleep_was_heard_is_told_as_awake(
    platform: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = platform.world.nodes.report

    async def lost(report: NodeReport) -> int:
        await heard(report)
        raise UnavailableError("uplink-unavailable", "the answer was lost")

    await platform.clock.advance(10)
    monkeypatch.setattr(platform.world.nodes, "report", lost)
    await platform.ask(sleep.suspend)
    await platform.until(platform.is_(Phase.ASLEEP))
    monkeypatch.setattr(platform.world.nodes, "report", _unheard)
    await platform.ask(sleep.resume)
    while await platform.phases() != [VmPhase.RUNNING]:
        await platform.clock.advance(0.05)
    monkeypatch.setattr(platform.world.nodes, "report", heard)
    await platform.until(platform.is_(Phase.HEALTHY))
    await platform.until(lambda: platform.edge.endpoints() == {platform.id})


async def _unheard(report: NodeReport) -> int:
    raise UnavailableError("uplink-unavailable", f"the report {report.sequence} was lost")
