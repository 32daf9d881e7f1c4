"""Organizations, projects, members, service accounts, roles and grants on the command line."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shellwego.client.generated import (
    AppList,
    AppView,
    GrantList,
    LimitView,
    MemberList,
    MemberView,
    NewServiceTokenView,
    OrganizationList,
    OrganizationUsageView,
    OrganizationView,
    Pagination,
    ProjectList,
    ProjectUsageView,
    ProjectView,
    QuotasView,
    RoleList,
    RoleView,
    ScopedGrantView,
    ServiceAccountView,
)
from tests.api.running_api import Running
from tests.cli.cli_world import HandMadeApi, Machine, view

LAST = view(Pagination)
REMOVED = (OrganizationView, ProjectView, RoleView, ServiceAccountView, ScopedGrantView)
ACME = view(OrganizationView, id="org_1", name="acme", plan="free")
QUOTAS = view(
    QuotasView,
    plan="free",
    data=[
        view(LimitView, name="apps", limit=5, used=1),
        view(LimitView, name="memory", limit=2 << 30, used=512 << 20),
        view(LimitView, name="cpu", limit=None, used=1500),
    ],
    set=["memory"],
)


@pytest.fixture
def acme(api: HandMadeApi) -> HandMadeApi:
    """The token sees one organization."""
    api.answer("GET", "/v1/organizations", OrganizationList(data=[ACME], pagination=LAST))
    return api


def sent(api: HandMadeApi) -> Any:
    return json.loads(api.asked[-1].body)


def projects(*names: str) -> ProjectList:
    return ProjectList(data=[view(ProjectView, id=f"prj_{name}", name=name) for name in names], pagination=LAST)


def test_what_is_done_to_a_project_is_done_to_that_of_the_organization_that_was_named(
    machine: Machine, api: HandMadeApi
) -> None:
    api.answer("GET", "/v1/projects", projects("default", "web"))
    shown = view(ProjectView, id="prj_default", name="default")
    for method, path, answer in (
        ("GET", "", shown),
        ("PATCH", "", shown),
        ("GET", "/quotas", QUOTAS),
        ("PUT", "/quotas", QUOTAS),
        ("DELETE", "", b""),
    ):
        api.answer(method, f"/v1/projects/prj_default{path}", answer)
    of_acme = ("-o", "acme")
    assert machine.swg("projects", "show", "default", *of_acme).code == 0
    assert machine.swg("projects", "rename", "default", "main", *of_acme).code == 0
    assert machine.swg("projects", "quotas", "default", "--reset", *of_acme).code == 0
    assert machine.swg("projects", "delete", "default", "--yes", *of_acme).code == 0
    assert api.asked[-1].path == "/v1/projects/prj_default"
    lists = [asked for asked in api.asked if asked.path == "/v1/projects"]
    assert {"organization=acme" in asked.query for asked in lists} == {True}
    gone = machine.swg("projects", "delete", "other", "--yes", *of_acme)
    assert (gone.code, api.asked[-1].method) == (4, "GET")
    assert "acme has no project “other” that you can see" in gone.err


def test_who_is_a_member_of_one_project_alone_may_name_its_organization(machine: Machine, running: Running) -> None:
    assert machine.swg("apps", "ls", "-o", "default", "-p", "default").code == 0
    for words in (("show", "default"), ("quotas", "default"), ("rename", "default", "main"), ("delete", "main", "-y")):
        ended = machine.swg("projects", *words, SHELLWEGO_ORG="default")
        assert (ended.code, words) == (0, words), ended.err
    ended = machine.swg("projects", "show", "theirs", "-o", "other")
    assert (ended.code, "there is no organization “other”" in ended.err) == (4, True)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (["default", "web"], "-o acme -p default"),
        (["default", "web"], "-o acme -p prj_default"),
        (["default"], "-o acme"),
    ],
)
def test_a_project_is_looked_for_in_the_organization_that_was_named(
    machine: Machine, api: HandMadeApi, there: list[str], words: str
) -> None:
    api.answer("GET", "/v1/projects", projects(*there))
    api.answer("GET", "/v1/apps", AppList(data=[], pagination=LAST))
    assert machine.swg("apps", "ls", *words.split()).code == 0
    asked = {each.path: each.query for each in api.asked}
    assert "organization=acme" in asked["/v1/projects"]
    assert "project=prj_default" in asked["/v1/apps"], "by id: other organizations may have one of this name"


@pytest.mark.parametrize(
    ("there", "words", "ending"),
    [
        (["web", "shop"], "-o acme", (2, "acme has several projects: shop, web")),
        ([], "-o acme", (4, "acme has no project that you can see")),
        (["web"], "-o acme -p shop", (4, "acme has no project “shop”")),
    ],
)
def test_an_organization_that_does_not_tell_the_project_is_said_so_and_nothing_is_asked_of_another(
    machine: Machine, api: HandMadeApi, there: list[str], words: str, ending: tuple[int, str]
) -> None:
    api.answer("GET", "/v1/projects", projects(*there))
    ended = machine.swg("apps", "ls", *words.split())
    assert ended.code == ending[0]
    assert ending[1] in ended.err
    assert [each.path for each in api.asked] == ["/v1/projects"]


@pytest.mark.parametrize("code", ["project-needed", "project-ambiguous"])
def test_who_has_to_say_which_project_is_told_the_option_and_not_the_request(
    machine: Machine, api: HandMadeApi, code: str
) -> None:
    api.refuse("GET", "/v1/apps", 400, code, resolution="Add ?project= with the project's id or name.")
    ended = machine.swg("apps", "ls")
    assert ended.code == 2
    assert "-p PROJECT" in ended.err
    assert "?project=" not in ended.err


def test_the_only_organization_need_not_be_named(machine: Machine, acme: HandMadeApi) -> None:
    boss = view(MemberView, email="boss@x", role="owner")
    acme.answer("GET", "/v1/organizations/org_1/members", MemberList(data=[boss], pagination=LAST))
    shown = machine.swg("members", "ls").out.splitlines()
    assert [line.split()[:2] for line in shown] == [["EMAIL", "ROLE"], ["boss@x", "owner"]]


def test_of_several_organizations_one_must_be_named(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/organizations", OrganizationList(data=[ACME, ACME], pagination=LAST))
    ended = machine.swg("members", "ls")
    assert (ended.code, ended.out) == (2, "")
    assert "Say which: -o ORG" in ended.err
    api.answer("GET", "/v1/organizations/acme/members", MemberList(data=[], pagination=LAST))
    assert machine.swg("members", "ls", "-o", "acme").code == 0
    assert machine.swg("-o", "acme", "members", "ls").code == 0
    assert machine.swg("members", "ls", SHELLWEGO_ORG="acme").code == 0


def test_lists_go_over_all_pages(machine: Machine, acme: HandMadeApi) -> None:
    more = view(Pagination, has_more=True, next_cursor="next")
    pages = [
        MemberList(data=[view(MemberView, email="a@x")], pagination=more),
        MemberList(data=[view(MemberView, email="b@x")], pagination=LAST),
    ]
    acme.answer("GET", "/v1/organizations/org_1/members", *pages)
    assert machine.swg("members", "ls", "--output", "name").out == "a@x\nb@x\n"


def test_quotas_are_shown_in_the_units_of_people(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/organizations/acme/quotas", QUOTAS)
    lines = machine.swg("orgs", "quotas", "acme").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["NAME", "apps", "memory", "cpu"]
    assert "plan free" in lines[1]
    assert "512 MiB" in lines[2]
    assert "2.0 GiB" in lines[2]
    assert "no limit" in lines[3]


def test_setting_a_quota_keeps_those_that_were_set_before(machine: Machine, api: HandMadeApi) -> None:
    for method in ("GET", "PUT"):
        api.answer(method, "/v1/organizations/acme/quotas", QUOTAS)
    assert machine.swg("orgs", "quotas", "acme", "--plan", "growth", "--set", "cpu=4", "--set", "apps=none").code == 0
    assert sent(api) == {"plan": "growth", "limits": {"memory": 2 << 30, "cpu": 4000, "apps": None}}
    machine.swg("orgs", "quotas", "acme", "--reset", "--set", "memory=8gb")
    assert sent(api)["limits"] == {"memory": 8 << 30}


@pytest.mark.parametrize("text", ["apps", "apps=", "apps=5gb", "memory=5xb", "cpu=1gb", "memory=gb"])
def test_a_limit_that_is_none_is_refused(machine: Machine, api: HandMadeApi, text: str) -> None:
    api.answer("GET", "/v1/organizations/acme/quotas", QUOTAS)
    ended = machine.swg("orgs", "quotas", "acme", "--set", text)
    assert (ended.code, ended.out, len(api.asked)) == (2, "", 1)
    assert text in ended.err


def test_a_quota_that_is_used_up_ends_with_seven(machine: Machine, acme: HandMadeApi) -> None:
    acme.refuse("POST", "/v1/projects", 429, "quota-exceeded")
    ended = machine.swg("projects", "create", "more", "-o", "acme", "--json")
    assert (ended.code, json.loads(ended.err)["code"]) == (7, "quota-exceeded")


def test_usage_is_by_project_and_in_all(machine: Machine, api: HandMadeApi) -> None:
    used = {"apps": 1, "instances": 2, "memory": 1 << 30, "cpu": 500, "projects": 1, "tokens": 0}
    project = view(ProjectUsageView, name="web", used=used)
    api.answer("GET", "/v1/organizations/acme/usage", view(OrganizationUsageView, used=used, projects=[project]))
    lines = machine.swg("orgs", "usage", "acme").out.splitlines()
    assert [line.split() for line in lines[1:]] == [[name, "1", "2", "1.0", "GiB", "0.5"] for name in ("web", "all")]


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        ("orgs delete acme", "DELETE", "/v1/organizations/acme"),
        ("projects delete web", "DELETE", "/v1/projects/web"),
        ("members rm a@x", "DELETE", "/v1/organizations/org_1/members/a%40x"),
        ("service-accounts delete ci", "DELETE", "/v1/organizations/org_1/service-accounts/ci"),
        ("roles delete mine", "DELETE", "/v1/organizations/org_1/roles/mine"),
        ("grants rm grn_1", "DELETE", "/v1/grants/grn_1"),
    ],
)
def test_what_cannot_be_undone_is_asked_before(
    machine: Machine, acme: HandMadeApi, words: str, method: str, path: str
) -> None:
    acme.answer(method, path, status=204)
    acme.answer("GET", "/v1/organizations/org_1/roles", RoleList(data=[], everywhere={}, pagination=LAST))
    acme.answer("GET", path, {name: each for kind in REMOVED for name, each in msgspec.to_builtins(view(kind)).items()})
    ended = machine.swg(*words.split())
    assert (ended.code, [asked.method for asked in acme.asked if asked.method != "GET"]) == (2, [])
    assert machine.swg(*words.split(), "-y").code == 0
    assert (acme.asked[-1].method, acme.asked[-1].path) == (method, path)


@pytest.mark.parametrize(
    ("words", "method", "path", "kind", "body"),
    [
        ("orgs create new", "POST", "/v1/organizations", OrganizationView, {"name": "new"}),
        ("orgs rename acme new", "PATCH", "/v1/organizations/acme", OrganizationView, {"name": "new"}),
        ("projects create web -o acme", "POST", "/v1/projects", ProjectView, {"name": "web", "organization": "acme"}),
        ("projects rename web new", "PATCH", "/v1/projects/web", ProjectView, {"name": "new"}),
        ("members role a@x admin", "PATCH", "/v1/organizations/org_1/members/a%40x", MemberView, {"role": "admin"}),
        (
            "service-accounts create ci",
            "POST",
            "/v1/organizations/org_1/service-accounts",
            ServiceAccountView,
            {"name": "ci"},
        ),
        (
            "service-accounts change ci --description x",
            "PATCH",
            "/v1/organizations/org_1/service-accounts/ci",
            ServiceAccountView,
            {"name": None, "description": "x"},
        ),
        (
            "roles create mine apps:read apps:write",
            "POST",
            "/v1/organizations/org_1/roles",
            RoleView,
            {"name": "mine", "permissions": ["apps:read", "apps:write"]},
        ),
        ("grants change grn_1 viewer", "PATCH", "/v1/grants/grn_1", ScopedGrantView, {"role": "viewer"}),
    ],
)
def test_what_is_made_or_changed(
    machine: Machine, acme: HandMadeApi, *, words: str, method: str, path: str, kind: type[Any], body: dict[str, Any]
) -> None:
    acme.answer(method, path, view(kind))
    ended = machine.swg(*words.split(), "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)
    assert {name: sent(acme).get(name) for name in body} == body


def test_a_token_of_a_service_account_is_printed_alone(machine: Machine, acme: HandMadeApi) -> None:
    path = "/v1/organizations/org_1/service-accounts/ci/tokens"
    acme.answer("POST", path, view(NewServiceTokenView, secret="sat_x", id="tok_1"))
    ended = machine.swg("service-accounts", "tokens", "create", "ci", "one", "--scope", "apps:read", "--days", "7")
    assert (ended.code, ended.out) == (0, "sat_x\n")
    assert sent(acme) == {"name": "one", "scopes": ["apps:read"], "expires_in": 7 * 86400}


def test_roles_are_listed_with_those_that_are_everywhere(machine: Machine, acme: HandMadeApi) -> None:
    own = view(RoleView, name="mine", permissions=["apps:read"])
    listed = RoleList(data=[own], everywhere={"owner": ["*:*"]}, pagination=LAST)
    acme.answer("GET", "/v1/organizations/org_1/roles", listed)
    assert machine.swg("roles", "ls", "--output", "name").out == "owner\nmine\n"


def test_a_role_that_is_built_in_is_shown_and_neither_changed_nor_deleted(machine: Machine, acme: HandMadeApi) -> None:
    listed = RoleList(data=[], everywhere={"admin": ["apps:read", "apps:write"]}, pagination=LAST)
    acme.answer("GET", "/v1/organizations/org_1/roles", listed)
    shown = machine.swg("roles", "show", "admin")
    assert (shown.code, "apps:read, apps:write" in shown.out) == (0, True)
    document = json.loads(machine.swg("roles", "show", "admin", "--json").out)
    assert document == {"name": "admin", "permissions": ["apps:read", "apps:write"]}
    for words in (("delete", "admin"), ("delete", "admin", "-y"), ("change", "admin", "--name", "x")):
        refused = machine.swg("roles", *words)
        assert (refused.code, "admin is built in" in refused.err) == (5, True)
    assert {each.method for each in acme.asked} == {"GET"}


@pytest.mark.parametrize("words", ["roles change mine", "service-accounts change ci"])
def test_a_change_of_nothing_is_a_mistake_of_use(machine: Machine, acme: HandMadeApi, words: str) -> None:
    ended = machine.swg(*words.split())
    assert (ended.code, "Nothing to change: give --name or" in ended.err) == (2, True)
    assert acme.asked == []


@pytest.mark.parametrize(
    ("words", "scope"),
    [
        ((), "org_1"),
        (("--system",), "system"),
        (("-p", "web"), "prj_1"),
        (("-a", "shop"), "app_1"),
        (("-a", "shop", "-p", "web"), "app_1"),
    ],
)
def test_a_grant_is_where_the_command_line_says(
    machine: Machine, acme: HandMadeApi, words: tuple[str, ...], scope: str
) -> None:
    acme.answer("GET", "/v1/organizations/org_1", ACME)
    acme.answer("GET", "/v1/projects/web", view(ProjectView, id="prj_1"))
    acme.answer("GET", "/v1/apps/shop", view(AppView, id="app_1"))
    acme.answer("POST", "/v1/grants", view(ScopedGrantView, id="grn_1"))
    acme.answer("GET", "/v1/grants", GrantList(data=[], pagination=LAST))
    elsewhere = {"SHELLWEGO_APP": "other", "SHELLWEGO_PROJECT": "web"} if not words else {}
    assert machine.swg("grants", "add", "a@x", "viewer", *words, **elsewhere).code == 0
    assert sent(acme) == {"scope": scope, "principal": "a@x", "role": "viewer"}
    assert machine.swg("grants", "ls", *words, **elsewhere).code == 0
    assert f"scope={scope}" in acme.asked[-1].query


def test_the_platform_and_an_app_are_not_one_scope(machine: Machine, acme: HandMadeApi) -> None:
    ended = machine.swg("grants", "add", "a@x", "viewer", "--system", "-a", "shop")
    assert (ended.code, acme.asked) == (2, [])
