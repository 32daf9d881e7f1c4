"""Security groups, as a client says and sees them, and as nodes are told of them."""

from __future__ import annotations

from typing import Any

import pytest

from shellwego.control.nodes import assignments
from shellwego.control.securitygroups import forget_app
from shellwego.control.unit import Unit
from shellwego.core.instances import Phase
from shellwego.core.openings import Opening
from shellwego.core.securitygroups import MAX_GROUPS, MAX_GROUPS_OF_APP, MAX_RULES
from shellwego.ports.bus import Hint
from shellwego.ports.store import eq
from shellwego.wire import subjects
from tests.api.api_world import ADMIN, FOREIGN, VIEWER, World, run_instance

GROUPS = "/v1/security-groups"
POSTGRES = {"source": "group:web", "protocol": "tcp", "ports": "5432"}
PING = {"source": "project", "protocol": "icmp", "ports": ""}


async def made(world: World, name: str, *rules: Any) -> Any:
    return await world.made(GROUPS, {"name": name, "allow": list(rules)})


async def move(world: World, what: str, group: str, app: str) -> Any:
    answer = await world.post(f"{GROUPS}/{group}/actions/{what}", {"app": app})
    assert answer.status == 200, answer.content
    return answer.json


async def change(world: World, group: str, body: Any, **options: Any) -> Any:
    return await world.call("PATCH", f"{GROUPS}/{group}", body, **options)


async def told(world: World, app: str) -> tuple[Opening, ...] | None:
    """What the node with the app's instance is told of it."""
    found = await world.control.read(lambda tx: assignments(tx, world.node.id))
    (ingress,) = {item.workload.ingress for item in found.items if item.workload.app_name == app}
    return ingress


async def test_a_group_is_made_shown_listed_changed_and_destroyed(world: World) -> None:
    await made(world, "web")
    group = await made(world, "db", POSTGRES)
    assert (group["name"], group["rules"], group["apps"], group["named_by"]) == ("db", [POSTGRES], [], [])
    assert (await world.get(f"{GROUPS}/{group['id']}")).json == group
    assert (await world.get(f"{GROUPS}/web")).json["named_by"] == ["db"]
    assert [each["name"] for each in (await world.get(GROUPS)).json["data"]] == ["db", "web"]
    assert [each["name"] for each in (await world.get(GROUPS, query={"filter[q]": "we"})).json["data"]] == ["web"]
    assert (await change(world, "db", {"allow": [PING, PING], "deny": [POSTGRES]})).json["rules"] == [PING]
    assert (await world.call("DELETE", f"{GROUPS}/db")).status == 204
    assert (await world.get(f"{GROUPS}/db")).status == 404


async def test_what_runs_is_told_of_each_change_without_a_release(world: World) -> None:
    for name in ("shop", "store"):
        await world.deployed(name)
        await world.commit(lambda unit, name=name: run_instance(unit, name, "web", Phase.HEALTHY, world.node.id))
    await made(world, "web")
    await made(world, "db", POSTGRES)
    assert await told(world, "store") is None
    assert (await move(world, "attach", "db", "store"))["apps"] == ["store"]
    assert await told(world, "store") == ()
    assert await told(world, "shop") is None
    await move(world, "attach", "web", "shop")
    shop = (await world.get("/v1/apps/shop")).json["id"]
    (opening,) = await told(world, "store") or ()
    assert (opening.identity, opening.first_port, opening.last_port) == (shop, 5432, 5432)
    await change(world, "db", {"deny": [POSTGRES], "allow": [PING]})
    assert [each.identity for each in await told(world, "store") or ()] == [""]
    await move(world, "detach", "db", "store")
    assert await told(world, "store") is None
    assert len((await world.get("/v1/apps/store/releases")).json["data"]) == 1


async def test_nodes_are_hinted_where_a_change_means_something_for_what_runs_there(world: World) -> None:
    for name in ("shop", "store"):
        await world.deployed(name)
    instance = await world.commit(lambda unit: run_instance(unit, "store", "web", Phase.HEALTHY, world.node.id))
    await made(world, "web")
    await made(world, "db", POSTGRES)
    subject = subjects.assignments(instance.node_id)
    async with world.control.bus.subscribe(subject) as hints:
        await move(world, "attach", "db", "store")
        assert await anext(hints) == Hint(subject)
        await move(world, "attach", "web", "shop")
        assert await anext(hints) == Hint(subject), "by the group that a rule of its own names"


@pytest.mark.parametrize(
    ("rule", "field", "code"),
    [
        ({"source": "web"}, "allow.1.source", "bad-source"),
        ({"source": "group:mail"}, "allow.1.source", "no-such-group"),
        ({"source": "app:nobodys"}, "allow.1.source", "no-such-app"),
        ({**POSTGRES, "ports": "70000"}, "allow.1.ports", "out-of-range"),
        ({**PING, "ports": "1"}, "allow.1.ports", "no-ports"),
    ],
)
async def test_rules_that_make_no_sense_are_refused_whole(world: World, rule: Any, field: str, code: str) -> None:
    await made(world, "web")
    for answer in (
        await world.post(GROUPS, {"name": "db", "allow": [POSTGRES, rule]}),
        await change(world, "web", {"allow": [POSTGRES, rule]}),
    ):
        assert (answer.status, answer.code) == (422, "group-refused")
        assert [(each["field"], each["code"]) for each in answer.json["errors"]] == [(field, code)]
    assert (await world.get(f"{GROUPS}/db")).status == 404
    assert (await world.get(f"{GROUPS}/web")).json["rules"] == []
    (fault,) = (await change(world, "web", {"deny": [PING]})).json["errors"]
    assert (fault["field"], fault["code"]) == ("deny.0", "no-such-rule")


async def test_names_are_of_a_pattern_and_of_one_group_of_the_project(world: World) -> None:
    await made(world, "web")
    again = await world.post(GROUPS, {"name": "web"})
    assert (again.status, again.json["errors"][0]["field"]) == (409, "name")
    for wrong in ("Web", "1st", "a b", "x" * 64, "$(reboot)", ""):
        assert (await world.post(GROUPS, {"name": wrong})).status in (400, 422)
    await world.made(GROUPS, {"name": "web"}, token=FOREIGN)


async def test_there_is_an_end_to_rules_groups_and_memberships(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    full = [{"source": "project", "protocol": "tcp", "ports": f"{1 + n}"} for n in range(MAX_RULES)]
    for number in range(3):
        await made(world, f"group-{number}", *({**each, "ports": f"{number + 1}{each['ports']}"} for each in full))
    assert (await change(world, "group-0", {"allow": [PING]})).json["errors"][0]["code"] == "too-many"
    for number in range(2):
        await move(world, "attach", f"group-{number}", "shop")
    beyond = await world.post(f"{GROUPS}/group-2/actions/attach", {"app": "shop"})
    assert (beyond.status, beyond.json["errors"][0]["field"]) == (422, "app")
    assert "shop" in beyond.json["detail"]
    assert (await world.get(f"{GROUPS}/group-2")).json["apps"] == []
    for number in range(3, MAX_GROUPS):
        await made(world, f"group-{number}")
    assert (await world.post(GROUPS, {"name": "one-more"})).status == 429
    for number in range(3, MAX_GROUPS_OF_APP + 1):
        await move(world, "attach", f"group-{number}", "shop")
    assert (await world.post(f"{GROUPS}/group-50/actions/attach", {"app": "shop"})).json["errors"][0]["field"] == "app"


async def test_a_group_goes_when_no_app_is_in_it_and_no_rule_names_it(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    await made(world, "web", {**POSTGRES, "source": "project"})
    await made(world, "db", POSTGRES)
    await change(world, "web", {"allow": [{"source": "group:web"}]})
    await move(world, "attach", "web", "shop")
    attached = await world.call("DELETE", f"{GROUPS}/web")
    assert (attached.status, attached.code) == (409, "group-attached")
    assert "shop" in attached.json["detail"]
    assert (await move(world, "detach", "web", "shop"))["apps"] == []
    named = await world.call("DELETE", f"{GROUPS}/web")
    assert (named.status, named.code) == (409, "group-named")
    assert "db" in named.json["detail"]
    await change(world, "db", {"deny": [POSTGRES]})
    assert (await world.call("DELETE", f"{GROUPS}/web")).status == 204, "its own rule does not hold it"


async def test_an_app_that_goes_takes_along_the_rules_that_name_it(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    await made(world, "db", {"source": "app:shop"}, PING)
    await world.call("DELETE", "/v1/apps/shop")

    def forget(unit: Unit) -> None:
        for app in unit.tx.apps.select(eq("name", "shop")):
            forget_app(unit, app)
            unit.tx.apps.delete(app.id)

    await world.commit(forget)
    assert (await world.get(f"{GROUPS}/db")).json["rules"] == [PING]


async def test_an_app_that_is_being_destroyed_joins_nothing(world: World) -> None:
    await world.deployed()
    await world.running()
    await made(world, "web")
    await world.call("DELETE", "/v1/apps/shop")
    assert (await world.post(f"{GROUPS}/web/actions/attach", {"app": "shop"})).code == "app-deleting"


async def test_who_may_read_sees_them_and_foreign_ones_look_absent(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    group = await made(world, "web")
    theirs = await world.made("/v1/apps", {"name": "theirs"}, token=FOREIGN)
    assert (await world.get(f"{GROUPS}/web", token=VIEWER)).status == 200
    assert (await change(world, "web", {"allow": [PING]}, token=VIEWER)).status == 403
    assert (await world.post(GROUPS, {"name": "db"}, token=VIEWER)).status == 403
    assert (await world.get(f"{GROUPS}/{group['id']}", token=FOREIGN)).status == 404
    assert (await world.post(f"{GROUPS}/web/actions/attach", {"app": theirs["id"]})).status == 404
    assert (await change(world, "web", {"allow": [{"source": f"app:{theirs['id']}"}]})).status == 422
    assert (await world.get(f"{GROUPS}/web")).json["rules"] == []


async def test_a_change_is_guarded_told_and_on_record(world: World) -> None:
    await world.made("/v1/apps", {"name": "shop"})
    await made(world, "web")
    seen = (await world.get(f"{GROUPS}/web")).headers["etag"]
    assert (await change(world, "web", {"allow": [PING]}, headers={"If-Match": seen})).status == 200
    assert (await change(world, "web", {"deny": [PING]}, headers={"If-Match": seen})).status == 412
    await change(world, "web", {"allow": [PING]})
    for _ in range(2):
        await move(world, "attach", "web", "shop")
    for _ in range(2):
        await move(world, "detach", "web", "shop")
    await world.call("DELETE", f"{GROUPS}/web")
    events = await world.control.read(lambda tx: tx.events.select())
    types = [event.type for event in events if event.type.startswith("group.")]
    assert sorted(types) == ["group.attached", "group.changed", "group.created", "group.deleted", "group.detached"]
    records = await world.control.read(lambda tx: tx.audit.select())
    assert "network:write" in {record.action for record in records if record.allowed}


async def test_the_groups_of_a_project_go_with_it(world: World) -> None:
    project = await world.made("/v1/projects", {"name": "short", "organization": "default"}, token=ADMIN)
    await world.made(GROUPS, {"name": "web"}, query={"project": project["id"]}, token=ADMIN)
    assert (await world.call("DELETE", f"/v1/projects/{project['id']}", token=ADMIN)).status == 204
    assert await world.control.read(lambda tx: tx.security_groups.select(eq("project_id", project["id"]))) == []
