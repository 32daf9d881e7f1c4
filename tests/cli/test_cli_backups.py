"""`swg volumes backup`, `backups`, `policy` and `restore --backup` against the API on a real socket."""

from __future__ import annotations

import json
from dataclasses import replace

from shellwego.control.unit import Unit
from tests.api.api_world import keep_backup, keep_volume
from tests.api.running_api import Running
from tests.cli.cli_world import Machine


def kept(running: Running, **changes: object) -> str:
    """A backup in the repository, of the volume `data`; returns its id."""
    world = running.world

    def work(unit: Unit) -> str:
        volume_id = keep_volume(unit, world.project.id, "data", world.node.id).volume_id
        row = keep_backup(unit, volume_id)
        return unit.tx.backups.update(replace(row, **changes)).id  # type: ignore[arg-type]

    return str(running.do(world.commit(work)))


def test_one_is_taken_listed_shown_and_removed(machine: Machine, running: Running) -> None:
    first = kept(running)
    taken = json.loads(machine.swg("volumes", "backup", "data", "--freeze", "--detach", "--json").out)
    assert (taken["state"], taken["freeze"]) == ("pending", True)
    assert machine.swg("volumes", "backup", "data", "--detach").code == 5
    listed = machine.swg("volumes", "backups", "ls", "data", "--output", "name").out.split()
    assert sorted(listed) == sorted([first, taken["id"]])
    assert "full" in machine.swg("volumes", "backups", "show", "data", first).out
    assert machine.swg("volumes", "backups", "rm", "data", first).code == 2, "nobody can be asked"
    assert machine.swg("volumes", "backups", "rm", "data", first, taken["id"], "-y").code == 0


def test_a_new_volume_is_made_of_one(machine: Machine, running: Running) -> None:
    first = kept(running)
    assert machine.swg("volumes", "restore", "data", "--backup", first).code == 2
    assert machine.swg("volumes", "restore", "data", "snap_x", "--backup", first, "--to", "again").code == 2
    made = machine.swg("volumes", "restore", "data", "--backup", first, "--to", "again", "--json")
    assert json.loads(made.out)["source_backup_id"] == first
    assert "swg volumes attach again" in made.err
    damaged = kept_damaged(running, first)
    refused = machine.swg("volumes", "restore", "data", "--backup", damaged, "--to", "more")
    assert refused.code == 5
    assert "bytes 0 to 9" in refused.err


def kept_damaged(running: Running, id_: str) -> str:
    def work(unit: Unit) -> str:
        row = unit.tx.backups.get(id_)
        assert row is not None
        return unit.tx.backups.update(replace(row, damage="bytes 0 to 9 are missing")).id

    return str(running.do(running.world.commit(work)))


def test_a_policy_is_set_shown_and_taken_back(machine: Machine, running: Running) -> None:
    kept(running)
    shown = machine.swg("volumes", "policy", "data", "--every", "12", "--daily", "3")
    assert "12 hours" in shown.out
    assert "3 days, 4 weeks, 12 months" in machine.swg("volumes", "policy", "data").out
    assert machine.swg("volumes", "policy", "data", "--off", "--daily", "3").code == 2
    removed = machine.swg("volumes", "policy", "data", "--off", "--json").out
    assert json.loads(removed) == {"removed": ["data/backup-policy"]}, "not the volume itself"
    assert machine.swg("volumes", "policy", "data").code == 4


def test_a_check_is_asked_for(machine: Machine, running: Running) -> None:
    first = kept(running)
    seen = machine.swg("volumes", "backups", "verify", "data", first, "--detach", "--json")
    assert json.loads(seen.out)["verifying"]
