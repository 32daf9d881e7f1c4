"""Wishes merged into an app's config."""

from __future__ import annotations

import pytest

from shellwego.control.config import ConfigWish, PlacementWish, ProcessWish, merge, merge_env
from shellwego.control.plans import Content, differences
from shellwego.core.apps import MIB, AppConfig, Check, CheckKind, Process, RestartMode, RestartPolicy, Service
from shellwego.core.errors import InvalidError
from shellwego.core.nodes import MAX_LABELS
from shellwego.core.placement_rules import PlacementRules, Spread


def test_an_empty_wish_changes_nothing() -> None:
    config = AppConfig(image="hello:v1", env={"A": "1"}, services=(Service(port=8080),))
    assert merge(config, ConfigWish()) == config


def test_what_is_wished_replaces_and_the_rest_stays() -> None:
    config = AppConfig(env={"A": "1", "B": "2"}, processes=(Process(), Process(name="worker", memory_bytes=512 * MIB)))
    wish = ConfigWish(
        env={"A": None, "C": "3"},
        processes={"worker": ProcessWish(cpu_milli=2500, restart=RestartPolicy(mode=RestartMode.NEVER))},
        drain_timeout_s=5,
    )
    merged = merge(config, wish)
    assert merged.env == {"B": "2", "C": "3"}
    worker = merged.processes[1]
    assert (worker.memory_bytes, worker.cpu_milli, worker.vcpus) == (512 * MIB, 2500, 3)
    assert worker.restart.mode is RestartMode.NEVER
    assert merged.processes[0] == config.processes[0]
    assert merged.drain_timeout_s == 5


def test_an_empty_command_goes_back_to_the_images_own() -> None:
    config = merge(AppConfig(), ConfigWish(processes={"web": ProcessWish(command=("a",), stop_signal="SIGINT")}))
    assert config.processes[0].command == ("a",)
    config = merge(config, ConfigWish(processes={"web": ProcessWish(command=(), stop_signal="")}))
    assert config.processes[0].command is None
    assert config.processes[0].stop_signal is None


def test_processes_are_added_and_removed() -> None:
    config = merge(AppConfig(), ConfigWish(processes={"worker": ProcessWish()}))
    assert [process.name for process in config.processes] == ["web", "worker"]
    config = merge(config, ConfigWish(remove_processes=("web",)))
    assert [process.name for process in config.processes] == ["worker"]


def test_a_process_in_use_by_a_service_cannot_go() -> None:
    config = merge(AppConfig(), ConfigWish(processes={"worker": ProcessWish()}, services=(Service(port=80),)))
    with pytest.raises(InvalidError) as error:
        merge(config, ConfigWish(remove_processes=("web",)))
    assert error.value.errors[0].field == "services"


def test_every_fault_is_named() -> None:
    wish = ConfigWish(
        processes={"Web": ProcessWish(memory_bytes=1), "web": ProcessWish(command=("x\0",))},
        services=(Service(process="nope", port=0),),
        checks=(Check(kind=CheckKind.EXEC), Check(kind=CheckKind.HTTP, path="x", port=1)),
        env={"1": "x"},
        drain_timeout_s=-1,
    )
    with pytest.raises(InvalidError) as error:
        merge(AppConfig(), wish)
    assert {fault.field for fault in error.value.errors} == {
        "processes.Web",
        "processes.Web.memory",
        "processes.web.command",
        "services",
        "services.port",
        "checks[0].command",
        "checks[1].path",
        "env.1",
        "drain_timeout",
    }


def test_the_environment_is_bounded_as_a_whole() -> None:
    with pytest.raises(InvalidError):
        merge(AppConfig(), ConfigWish(env={f"V{n}": "x" * 30_000 for n in range(5)}))
    assert merge_env({"B": "1"}, {"A": "2", "B": None}) == {"A": "2"}


def test_differences_never_show_a_variables_value() -> None:
    before = Content(AppConfig(env={"SECRET": "hunter2"}), "sha256:a")
    after = Content(AppConfig(env={"SECRET": "hunter3", "NEW": "x"}), "sha256:b")
    changes = differences(before, after)
    assert {change.field for change in changes} == {"env.SECRET", "env.NEW", "image"}
    assert "hunter" not in repr(changes)
    assert differences(before, before) == ()


def test_where_instances_may_go_is_changed_part_by_part() -> None:
    wish = PlacementWish(region="eu", require={"disk": "ssd", "cpu": "amd"})
    config = merge(AppConfig(), ConfigWish(placement=wish))
    assert config.placement == PlacementRules(region="eu", require={"cpu": "amd", "disk": "ssd"})
    config = merge(config, ConfigWish(placement=PlacementWish(region="", zone="one", spread=Spread.NONE)))
    assert (config.placement.region, config.placement.zone, config.placement.spread) == ("", "one", Spread.NONE)
    assert config.placement.require == {"cpu": "amd", "disk": "ssd"}
    assert merge(config, ConfigWish(placement=PlacementWish(require={}))).placement.require == {}


def test_names_that_no_node_can_have_are_refused_by_their_field() -> None:
    labels = {f"l{number}": "" for number in range(MAX_LABELS)} | {"a b": "x"}
    with pytest.raises(InvalidError) as error:
        merge(AppConfig(), ConfigWish(placement=PlacementWish(region="e u", zone="x" * 64, require=labels)))
    told = ["placement.region", "placement.zone", "placement.require", "placement.require.a b"]
    assert [fault.field for fault in error.value.errors] == told


def test_where_instances_may_go_is_told_field_by_field() -> None:
    old = Content(AppConfig(placement=PlacementRules(region="eu", require={"disk": "ssd"})), "sha256:1")
    new = Content(AppConfig(placement=PlacementRules(region="us", spread=Spread.NODE)), "sha256:1")
    assert [(change.field, change.before, change.after) for change in differences(old, new)] == [
        ("placement.region", "eu", "us"),
        ("placement.require.disk", "ssd", None),
        ("placement.spread", None, "node"),
    ]
