"""The audit record over the API: who may read which, what is exported, and what a verification tells."""

from __future__ import annotations

import json

import pytest

from shellwego.control.loops.outbox import relay_audit
from shellwego.core.audit import BEFORE_FIRST, digest
from shellwego.core.events import AuditRecord
from tests.api.api_world import ADMIN, FOREIGN, VIEWER, World, add_user


async def _some_acts(world: World) -> str:
    """An act allowed and one refused, in the first project; returns the app's id."""
    app = await world.made("/v1/apps", {"name": "shop"})
    await world.post(f"/v1/apps/{app['id']}/actions/stop", token=FOREIGN)
    await world.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    await relay_audit(world.control)
    return str(app["id"])


async def test_an_owner_reads_what_was_done_and_refused_in_his_scope_and_nothing_else(world: World) -> None:
    app_id = await _some_acts(world)
    mine = (await world.get("/v1/audit")).json["data"]
    assert {(record["action"], record["resource"], record["allowed"]) for record in mine} == {
        ("apps:write", world.project.id, True),
        ("apps:write", app_id, False),
    }
    theirs = (await world.get("/v1/audit", token=FOREIGN)).json["data"]
    assert {record["resource"] for record in theirs} == {world.foreign.id}
    everything = (await world.get("/v1/audit", token=ADMIN)).json["data"]
    assert len(everything) > len(mine) + len(theirs)


async def test_an_administrator_of_an_organization_reads_all_its_projects_and_no_other(world: World) -> None:
    await _some_acts(world)
    admin = "pat_" + "B" * 43
    organization = world.project.organization_id
    await world.commit(lambda unit: add_user(unit, "admin@x", "admin", organization, admin))
    answer = await world.get(f"/v1/audit?organization={organization}", token=admin)
    assert {record["organization_id"] for record in answer.json["data"]} == {organization}
    assert (await world.get(f"/v1/audit?organization={world.foreign.organization_id}", token=admin)).status == 404
    for path in ("audit", "audit/export", "audit/verify"):
        assert (await world.get(f"/v1/{path}?project={world.foreign.id}", token=admin)).status == 404
        assert (await world.get(f"/v1/{path}?project={world.project.id}", token=VIEWER)).status == 403


async def test_the_list_is_filtered_by_actor_action_resource_and_time(world: World) -> None:
    app_id = await _some_acts(world)
    refused = (await world.get(f"/v1/audit?filter[resource]={app_id}")).json["data"]
    assert [record["allowed"] for record in refused] == [False]
    actor = refused[0]["actor"]
    assert [r["id"] for r in (await world.get(f"/v1/audit?filter[actor]={actor}")).json["data"]] == [refused[0]["id"]]
    assert (await world.get("/v1/audit?filter[action]=nodes:write")).json["data"] == []
    assert (await world.get("/v1/audit?filter[time][lte]=1")).json["data"] == []


async def test_an_export_can_be_checked_without_the_platform(world: World) -> None:
    await _some_acts(world)
    organization = world.project.organization_id
    answer = await world.get(f"/v1/audit/export?organization={organization}", token=ADMIN)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    *lines, end = [json.loads(line) for line in answer.content.splitlines()]
    assert end == {"complete": True, "records": len(lines)}
    previous = BEFORE_FIRST
    for number, line in enumerate(lines, 1):
        assert line["position"] == f"{organization}/{number:012}"
        assert line["previous"] == previous
        fields = {name: value or "" for name, value in line.items() if name not in ("time", "timestamp", "allowed")}
        record = AuditRecord(time=line["timestamp"], allowed=line["allowed"], **fields)
        assert digest(record) == line["hash"]
        previous = line["hash"]


async def test_a_verification_tells_the_head_and_holds_against_it_later(world: World) -> None:
    await _some_acts(world)
    first = (await world.get("/v1/audit/verify")).json
    assert (first["sound"], first["checked"], first["pending"], first["broken"]) == (True, 2, 0, None)
    anchor = "{position}:{hash}".format(**first["heads"][0])
    await world.made("/v1/apps", {"name": "more"})
    await relay_audit(world.control)
    later = await world.get("/v1/audit/verify", query={"anchor": anchor})
    assert (later.json["sound"], later.json["checked"]) == (True, 3)
    forged = anchor[:-1] + ("0" if anchor[-1] != "0" else "1")
    broken = (await world.get("/v1/audit/verify", query={"anchor": forged})).json
    assert (broken["sound"], broken["broken"]["fault"]) == (False, "changed")


@pytest.mark.parametrize("anchor", ["x", f"{1:012}:{BEFORE_FIRST}"], ids=["nothing", "without its chain"])
async def test_a_bad_anchor_is_refused_with_a_name(world: World, anchor: str) -> None:
    """It is no sign that somebody removed records."""
    answer = await world.get("/v1/audit/verify", query={"anchor": anchor}, token=ADMIN)
    assert (answer.status, answer.code) == (422, "bad-anchor")
