"""Backups over the API: asked for, listed, checked, made volumes of, let go, by policy; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shellwego.control.unit import Unit
from shellwego.core.backups import BackupState
from tests.api.api_world import ADMIN, FOREIGN, VIEWER, World, keep_backup, keep_volume

PATH = "/v1/volumes/data/backups"


async def volume(world: World, name: str = "data") -> str:
    snapshot = await world.commit(lambda unit: keep_volume(unit, world.project.id, name, world.node.id))
    return snapshot.volume_id


async def kept(world: World, **changes: object) -> str:
    """A backup of a volume, in the repository."""
    volume_id = await volume(world)

    def work(unit: Unit) -> str:
        row = keep_backup(unit, volume_id)
        return unit.tx.backups.update(replace(row, **changes)).id  # type: ignore[arg-type]

    return await world.commit(work)


async def test_one_that_is_asked_for_waits_for_its_turn_and_is_listed(world: World) -> None:
    await volume(world)
    taken = await world.made(PATH, {"description": "before the move", "freeze": True})
    assert (taken["state"], taken["scheduled"], taken["freeze"]) == ("pending", False, True)
    assert (await world.get(PATH)).json["data"] == [taken]
    assert (await world.get(f"{PATH}/{taken['id']}")).json == taken
    assert (await world.post(PATH, {})).code == "backup-under-way"
    assert (await world.call("DELETE", f"{PATH}/{taken['id']}")).status == 202
    assert (await world.get(f"{PATH}/{taken['id']}")).status == 404


async def test_of_a_volume_that_was_never_made_there_is_nothing_to_back_up(world: World) -> None:
    await world.made("/v1/volumes", {"name": "data", "size": "1gb"})
    assert (await world.post(PATH, {})).code == "volume-not-made"


async def test_a_volume_is_made_of_one_and_counts_as_one(world: World) -> None:
    id_ = await kept(world)
    made = await world.made(f"{PATH}/{id_}/actions/restore", {"to": "again"})
    assert (made["name"], made["node"], made["source_backup_id"]) == ("again", None, id_)
    assert (await world.post(f"{PATH}/{id_}/actions/restore", {"to": "again"})).code == "volume-exists"
    assert (await world.post(f"{PATH}/{id_}/actions/restore", {"to": "A b"})).json["errors"][0]["field"] == "to"
    assert (await world.call("DELETE", f"{PATH}/{id_}")).code == "backup-in-use"


async def test_nothing_is_made_of_what_is_not_there_or_damaged(world: World) -> None:
    id_ = await kept(world, damage="bytes 0 to 1048575 are missing")
    answer = await world.post(f"{PATH}/{id_}/actions/restore", {"to": "again"})
    assert (answer.code, "bytes 0 to 1048575" in answer.json["detail"]) == ("backup-damaged", True)
    taken = await world.made(PATH, {})
    assert (await world.post(f"{PATH}/{taken['id']}/actions/restore", {"to": "x"})).code == "backup-not-available"
    assert (await world.post(f"{PATH}/{taken['id']}/actions/verify")).code == "backup-not-available"


async def test_one_is_checked_on_a_node(world: World) -> None:
    id_ = await kept(world)
    assert (await world.made(f"{PATH}/{id_}/actions/verify"))["verifying"]


async def test_a_volume_with_backups_stays(world: World) -> None:
    id_ = await kept(world)
    for snapshot in (await world.get("/v1/volumes/data/snapshots")).json["data"]:
        await world.call("DELETE", f"/v1/volumes/data/snapshots/{snapshot['id']}")
    assert (await world.call("DELETE", "/v1/volumes/data")).code == "volume-has-backups"
    assert (await world.call("DELETE", f"{PATH}/{id_}")).status == 202
    assert (await world.get(f"{PATH}/{id_}")).json["state"] == "deleting"


async def test_a_policy_is_set_told_and_taken_back(world: World) -> None:
    await volume(world)
    path = "/v1/volumes/data/policy"
    assert (await world.get(path)).status == 404
    policy = (await world.call("PUT", path, {})).json
    assert [policy[name] for name in ("every_s", "daily", "weekly", "monthly")] == [86_400, 7, 4, 12]
    changed = (await world.call("PUT", path, {"every_s": 3600, "daily": 0, "weekly": 1})).json
    assert changed["version"] > policy["version"]
    assert (await world.get(path)).json == changed
    for _ in range(2):
        assert (await world.call("DELETE", path)).status == 204
    assert (await world.get(path)).status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"every_s": 60}, "every_s"),
        ({"every_s": True}, "every_s"),
        ({"daily": -1}, "daily"),
        ({"monthly": 10**9}, "monthly"),
        ({"daily": 0, "weekly": 0, "monthly": 0}, "daily"),
        ({"yearly": 1}, "yearly"),
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused_by_its_field(
    world: World, body: dict[str, Any], field: str
) -> None:
    await volume(world)
    answer = await world.call("PUT", "/v1/volumes/data/policy", body)
    assert 400 <= answer.status < 500
    assert answer.json["errors"][0]["field"].endswith(field)
    assert (await world.get("/v1/volumes/data/policy")).status == 404


async def test_they_count_against_the_quota(world: World) -> None:
    await volume(world)
    path = f"/v1/projects/{world.project.id}/quotas"
    assert (await world.call("PUT", path, {"limits": {"backups": 1}}, token=ADMIN)).status == 200
    taken = await world.made(PATH, {})
    await volume(world, "more")
    answer = await world.post("/v1/volumes/more/backups", {})
    assert (answer.status, answer.json["errors"][0]["field"]) == (429, "backups")

    def fail(unit: Unit) -> None:
        row = unit.tx.backups.get(taken["id"])
        assert row is not None
        unit.tx.backups.update(replace(row, state=BackupState.FAILED))

    await world.commit(fail)
    assert (await world.post("/v1/volumes/more/backups", {})).status == 202


async def test_a_foreign_one_looks_absent_and_a_viewer_only_looks(world: World) -> None:
    id_ = await kept(world)
    (row,) = (await world.get("/v1/volumes?filter[q]=data")).json["data"]
    assert (await world.get(f"/v1/volumes/{row['id']}/backups/{id_}", token=FOREIGN)).status == 404
    other = await volume(world, "other")
    assert (await world.get(f"/v1/volumes/{other}/backups/{id_}")).status == 404
    assert (await world.get(f"{PATH}/{id_}", token=VIEWER)).status == 200
    assert (await world.post(PATH, {}, token=VIEWER)).status == 403


async def test_without_a_repository_it_is_said_who_has_to_do_what(world: World) -> None:
    await volume(world)
    world.app.state.context.backups = False
    for answer in (await world.post(PATH, {}), await world.call("PUT", "/v1/volumes/data/policy", {})):
        assert answer.code == "no-repository"
        assert "[backups]" in answer.json["resolution"]
