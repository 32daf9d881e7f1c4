"""What is destroyed: looked for first, asked about, and all of it or nothing."""

from __future__ import annotations

import pytest

from shellwego.client.generated import GroupView, OrganizationList, OrganizationView, Pagination, RoleList
from tests.api.running_api import Running
from tests.cli.cli_world import HandMadeApi, Machine, view

ONE = OrganizationList(data=[view(OrganizationView, id="org_1")], pagination=view(Pagination))


def names(machine: Machine, noun: str) -> list[str]:
    return machine.swg(noun, "ls", "--output", "name").out.split()


def test_nothing_of_several_is_destroyed_where_one_is_not_there(machine: Machine, running: Running) -> None:
    machine.swg("secrets", "set", "ONE", stdin="value")
    machine.swg("volumes", "create", "one", "--size", "1gb")
    for noun, there in (("secrets", "ONE"), ("volumes", "one")):
        ended = machine.swg(noun, "rm", there, "nope", "-y")
        assert (ended.code, names(machine, noun)) == (4, [there])
        assert "“nope”" in ended.err
        assert machine.swg(noun, "rm", "no", "nope", "-y").code == 4
        assert machine.swg(noun, "rm", there, "-y").code == 0


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("secrets rm nope", "/v1/secrets/nope"),
        ("secrets retire nope 1", "/v1/secrets/nope"),
        ("volumes rm nope", "/v1/volumes/nope"),
        ("volumes snapshots rm data nope", "/v1/volumes/data/snapshots/nope"),
        ("volumes backups rm data nope", "/v1/volumes/data/backups/nope"),
        ("groups destroy nope", "/v1/security-groups/nope"),
        ("service-accounts delete nope", "/v1/organizations/org_1/service-accounts/nope"),
        ("roles delete nope", "/v1/organizations/org_1/roles/nope"),
        ("grants rm nope", "/v1/grants/nope"),
        ("orgs delete nope", "/v1/organizations/nope"),
        ("projects delete nope", "/v1/projects/nope"),
        ("webhooks rm nope", "/v1/webhooks/nope"),
        ("keys retire nope", ""),
    ],
)
def test_nobody_is_asked_about_what_is_not_there(machine: Machine, api: HandMadeApi, words: str, path: str) -> None:
    api.answer("GET", "/v1/organizations", ONE)
    api.answer("GET", "/v1/organizations/org_1/roles", RoleList(data=[], everywhere={}, pagination=view(Pagination)))
    api.answer("GET", "/v1/system/master-keys", {"current": "k", "data": []})
    api.refuse("GET", path, 404, detail="there is no such thing")
    ended = machine.swg(*words.split())
    assert (ended.code, {each.method for each in api.asked}) == (4, {"GET"})
    assert "there is no" in ended.err
    assert "Nobody can be asked" not in ended.err


def test_a_token_that_sees_nothing_may_destroy(machine: Machine, api: HandMadeApi) -> None:
    for name in ("A", "B"):
        api.refuse("GET", f"/v1/secrets/{name}", 404)
        api.answer("DELETE", f"/v1/secrets/{name}", status=204)
    assert machine.swg("secrets", "rm", "A", "B", "-y").code == 0


def test_a_group_is_destroyed_with_a_yes(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/security-groups/db", view(GroupView, name="db"))
    api.answer("DELETE", "/v1/security-groups/db", status=204)
    refused = machine.swg("groups", "destroy", "db")
    assert (refused.code, [each.method for each in api.asked]) == (2, ["GET"])
    assert "Add --yes" in refused.err
    assert machine.swg("groups", "destroy", "db", "-y").code == 0
