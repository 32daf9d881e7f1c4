"""`swg volumes` against the API on a real socket."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from shellwego.control.unit import Unit
from shellwego.core.moves import MoveStage
from shellwego.core.volumes import SnapshotState, restated
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN, OWNER, keep_volume, leave_copy
from tests.api.running_api import Running
from tests.cli.cli_world import Machine


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


def test_one_is_encrypted_unless_it_is_not_to_be(machine: Machine, running: Running) -> None:
    assert json.loads(machine.swg("volumes", "create", "data", "--size", "1gb", "--json").out)["encrypted"] is True
    plain = machine.swg("volumes", "create", "scratch", "--size", "1gb", "--no-encrypted", "--json")
    assert json.loads(plain.out)["encrypted"] is False
    assert shown(machine, "data")["encrypted"] is True
    copy = machine.swg("volumes", "create", "copy", "--snapshot", kept(running, "old"), "--encrypted")
    assert (copy.code, "the snapshot is not encrypted" in copy.err) == (2, True)


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


# Another node


@pytest.fixture
def two(running: Running, machine: Machine) -> str:
    """The name of another node, where there is room; an operator asks from now on."""
    node = running.world.node
    machine.context("operator", running.url, token=ADMIN, project=running.world.project.id)

    def add(unit: Unit) -> str:
        return unit.tx.nodes.insert(replace(node, id=unit.new_id("node"), name="two")).name

    return str(running.do(running.world.commit(add)))


def test_a_volume_is_sent_to_another_node_and_that_can_be_given_up(
    machine: Machine, running: Running, two: str
) -> None:
    kept(running)
    assert machine.swg("volumes", "move", "data").code == 2
    assert machine.swg("volumes", "move", "data", "--to", two, "--cancel").code == 2
    moving = machine.swg("volumes", "move", "data", "--to", two, "--detach", "--json")
    told = json.loads(moving.out)
    assert (told["state"], told["move"]["stage"], told["move"]["to_node"]) == ("moving", "copying", "two")
    assert "one to two: copies while the app runs, round 1" in machine.swg("volumes", "show", "data").out
    refused = machine.swg("volumes", "move", "data", "--to", two)
    assert (refused.code, "--cancel" in refused.err) == (5, True)
    assert machine.swg("volumes", "move", "data", "--cancel").code == 0
    assert shown(machine)["state"] == "available"
    assert machine.swg("volumes", "move", "data", "--cancel").code == 5


@pytest.mark.parametrize(
    ("stage", "ends"),
    [
        ("done", (0, "the app was stopped for 2.5 s")),
        ("failed", (1, "no such luck")),
        ("cancelled", (1, "was given up")),
    ],
)
def test_it_is_waited_for_and_the_end_is_told(
    machine: Machine, running: Running, two: str, stage: str, ends: tuple[int, str]
) -> None:
    kept(running)

    def end(unit: Unit) -> bool:
        (row,) = unit.tx.volumes.select(eq("name", "data"))
        if row.move is None:
            return False
        now, reason = unit.now(), "no such luck" if stage == "failed" else ""
        move = replace(row.move, stage=MoveStage(stage), reason=reason, stopped_at=now - 2.5, back_at=now, ended_at=now)
        unit.tx.volumes.update(restated(replace(row, move=move)))
        return True

    def end_soon() -> None:
        deadline = time.monotonic() + 30
        while not running.do(running.world.commit(end)) and time.monotonic() < deadline:
            time.sleep(0.02)

    ending = threading.Thread(target=end_soon)
    ending.start()
    ended = machine.swg("volumes", "move", "data", "--to", two)
    ending.join()
    assert (ended.code, ends[1] in ended.err) == (ends[0], True), ended.err


def test_who_does_not_see_nodes_names_none_and_an_operator_is_told_what_is_wrong(
    machine: Machine, running: Running, two: str
) -> None:
    kept(running)
    assert machine.swg("volumes", "move", "data", "--to", "three").code == 4
    assert machine.swg("volumes", "move", "data", "--to", "one").code == 5
    machine.context("owner", running.url, token=OWNER)
    told = [machine.swg("volumes", "move", "data", "--to", name) for name in (two, "none")]
    assert [ended.code for ended in told] == [4, 4]
    first, second = (ended.err.replace(name, "?") for ended, name in zip(told, (two, "none"), strict=True))
    assert first.splitlines()[0] == second.splitlines()[0]


def test_a_standby_copy_is_kept_shown_and_given_up(machine: Machine, running: Running, two: str) -> None:
    kept(running)
    assert machine.swg("volumes", "replicate", "data").code == 2
    assert machine.swg("volumes", "replicate", "data", "--every", "often").code == 2
    began = machine.swg("volumes", "replicate", "data", "--every", "2m", "--to", two, "--by-hand")
    assert began.code == 0
    assert f"a copy of data is kept on {two}, at most 120 s old" in began.err
    assert "standby on two: seeding (at most 120 s are asked for; by hand)" in began.out
    assert "two seeding" in machine.swg("volumes", "ls").out
    refused = machine.swg("volumes", "promote", "data")
    assert (refused.code, "its node is not down" in refused.err) == (5, True)
    assert machine.swg("volumes", "replicate", "data", "--off").code == 0
    assert machine.swg("volumes", "replicate", "data", "--off").code == 5


def test_the_snapshots_tell_whether_the_standby_has_them(machine: Machine, running: Running, two: str) -> None:
    snapshot = kept(running)

    def told() -> list[str]:
        (line,) = (
            line for line in machine.swg("volumes", "snapshots", "ls", "data").out.splitlines() if snapshot in line
        )
        return [words for words in ("has it", "not yet") if words in line]

    def arrived(unit: Unit) -> None:
        (standby,) = unit.tx.replicas.select()
        unit.tx.replicas.update(replace(standby, observed=replace(standby.observed, snapshots=(snapshot,))))

    assert told() == []
    assert machine.swg("volumes", "replicate", "data", "--every", "2m", "--to", two).code == 0
    assert told() == ["not yet"]
    running.do(running.world.commit(arrived))
    assert told() == ["has it"]


def test_what_was_left_behind_is_shown_and_dropped(machine: Machine, running: Running) -> None:
    world = running.world
    kept(running)
    (volume,) = running.do(world.control.read(lambda tx: tx.volumes.select(eq("name", "data"))))
    left = running.do(world.commit(lambda unit: leave_copy(unit, volume.id)))
    assert f"left on node_lost: left, {left.id}" in machine.swg("volumes", "show", "data").out
    assert machine.swg("volumes", "drop-copy", "data", left.id).code == 2, "nobody can be asked"
    assert machine.swg("volumes", "drop-copy", "data", left.id, "-y").code == 0
    assert [copy["state"] for copy in shown(machine)["copies"]] == ["deleting"]
    assert machine.swg("volumes", "drop-copy", "data", "rep_none", "-y").code == 4
