"""`swg volumes` against the API on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shellwego.control.unit import Unit
from shellwego.core.volumes import SnapshotState, restated
from shellwego.ports.store import eq
from tests.api.api_world import OWNER, keep_volume
from tests.api.running_api import Running
from tests.cli.cli_world import Machine


@pytest.fixture
def running(tmp_path: Path, machine: Machine) -> Iterator[Running]:
    with Running(tmp_path / "spool") as running:
        machine.context("here", running.url, token=OWNER)
        yield running


def kept(running: Running, name: str = "data") -> str:
    """A volume that its node has; returns the id of its snapshot."""
    world = running.world
    snapshot = running.do(world.commit(lambda unit: keep_volume(unit, world.project.id, name, world.node.id)))
    return str(snapshot.id)


def shown(machine: Machine, name: str = "data") -> Any:
    return json.loads(machine.swg("volumes", "show", name, "--json").out)


def test_one_is_made_listed_grown_protected_and_removed(machine: Machine, running: Running) -> None:
    assert machine.swg("volumes", "create", "data").code == 2
    made = machine.swg("volumes", "create", "data", "--size", "1gb", "--protect")
    assert made.code == 0
    assert "swg volumes attach data" in made.err
    assert machine.swg("volumes", "ls", "--output", "name").out == "data\n"
    grown = machine.swg("volumes", "resize", "data", "2gb", "--json")
    assert json.loads(grown.out)["size_bytes"] == 2 << 30
    refused = machine.swg("volumes", "rm", "data", "-y")
    assert refused.code == 5
    assert "--no-protect" in refused.err
    assert machine.swg("volumes", "update", "data", "--no-protect").code == 0
    assert machine.swg("volumes", "rm", "data").code == 2, "nobody can be asked"
    assert machine.swg("volumes", "rm", "data", "-y").code == 0
    assert machine.swg("volumes", "show", "data").code == 4


def test_an_app_gets_it_and_goes_on_without_it(machine: Machine, running: Running) -> None:
    machine.swg("volumes", "create", "data", "--size", "1gb")
    machine.swg("apps", "create", "shop")
    attached = machine.swg("volumes", "attach", "data", "-a", "shop", "--path", "/data", "--json")
    assert json.loads(attached.out)["deployment_id"] is None
    assert "with the next deploy" in attached.err
    assert shown(machine)["mounted_by"] == ["shop"]
    assert machine.swg("volumes", "rm", "data", "-y").code == 5
    assert machine.swg("volumes", "detach", "data").code == 0
    assert shown(machine)["mounted_by"] == []
    assert machine.swg("volumes", "detach", "data").code == 5


def test_snapshots_are_taken_listed_copied_and_removed(machine: Machine, running: Running) -> None:
    first = kept(running)
    taken = machine.swg("volumes", "snapshot", "data", "--description", "before", "--detach", "--json")
    assert json.loads(taken.out)["state"] == "creating"

    def done(unit: Unit) -> None:
        (row,) = unit.tx.volumes.select(eq("name", "data"))
        snapshot = unit.tx.snapshots.get(row.snapshot_id)
        assert snapshot is not None
        unit.tx.snapshots.update(replace(snapshot, state=SnapshotState.AVAILABLE))
        unit.tx.volumes.update(restated(replace(row, snapshot_id="")))

    running.do(running.world.commit(done))
    listed = machine.swg("volumes", "snapshots", "ls", "data", "--output", "name").out.split()
    assert listed == [json.loads(taken.out)["id"], first]
    copy = machine.swg("volumes", "restore", "data", first, "--to", "copy", "--detach", "--json")
    assert json.loads(copy.out)["source_snapshot_id"] == first
    assert machine.swg("volumes", "restore", "data", first).code == 2, "nobody can be asked"
    assert machine.swg("volumes", "snapshots", "rm", "data", first, "-y").code == 5
    assert machine.swg("volumes", "snapshots", "rm", "data", listed[0], "-y").code == 0


def test_one_that_its_node_cannot_make_ends_with_the_reason(machine: Machine, running: Running) -> None:
    snapshot = kept(running)
    machine.swg("volumes", "create", "copy", "--snapshot", snapshot, "--detach")

    def fail(unit: Unit) -> None:
        (row,) = unit.tx.volumes.select(eq("name", "copy"))
        seen = replace(row.observed, reason="the disk is full", reason_code="no-room")
        unit.tx.volumes.update(restated(replace(row, observed=seen)))

    running.do(running.world.commit(fail))
    ended = machine.swg("volumes", "show", "copy")
    assert "the disk is full" in ended.out
