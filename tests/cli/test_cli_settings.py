"""Where a command takes its values from, which is decided before anything is sent; and each wrong source has its message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shellwego.client.generated import AppList, AppView, Pagination, UserView
from tests.cli.cli_world import HandMadeApi, Machine, view

EMPTY = AppList(data=[], pagination=view(Pagination))


def project_file(text: str) -> None:
    Path("shellwego.toml").write_text(text)


def test_an_app_is_named_by_flag_then_environment_then_project_file(machine: Machine, api: HandMadeApi) -> None:
    for name in ("flag", "variable", "file"):
        api.answer("GET", f"/v1/apps/{name}", view(AppView, name=name))
    project_file('app = "file"')
    sources = (("-a", "flag"), {"SHELLWEGO_APP": "variable"})
    assert machine.swg("apps", "show", *sources[0], "--output", "name", **sources[1]).out == "flag\n"
    assert machine.swg("apps", "show", "--output", "name", **sources[1]).out == "variable\n"
    assert machine.swg("apps", "show", "--output", "name").out == "file\n"
    Path("shellwego.toml").unlink()
    ended = machine.swg("apps", "show")
    assert ended.code == 2
    assert "Which app? Give -a APP" in ended.err


def test_a_project_is_named_by_flag_then_environment_then_context(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps", EMPTY)
    machine.context("here", api.url, project="of-context")
    machine.swg("apps", "ls", "-p", "flag", SHELLWEGO_PROJECT="variable")
    machine.swg("apps", "ls", SHELLWEGO_PROJECT="variable")
    machine.swg("apps", "ls")
    found = [asked.query.split("project=")[1].split("&")[0] for asked in api.asked]
    assert found == ["flag", "variable", "of-context"]


def test_a_context_is_named_by_flag_then_environment_then_the_current_one(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/user", view(UserView))
    for name in ("first", "second", "third"):
        machine.context(name, api.url, token=f"pat_{name}")
    machine.swg("whoami", "--context", "first", SHELLWEGO_CONTEXT="second")
    machine.swg("whoami", SHELLWEGO_CONTEXT="second")
    machine.swg("whoami")
    machine.swg("whoami", SHELLWEGO_TOKEN="pat_variable")
    tokens = [asked.headers["Authorization"].removeprefix("Bearer pat_") for asked in api.asked]
    assert tokens == ["first", "second", "third", "variable"]


def test_the_environment_alone_is_enough(machine: Machine) -> None:
    with HandMadeApi().running() as api:
        api.answer("GET", "/v1/apps", EMPTY)
        assert machine.swg("apps", "ls", SHELLWEGO_API_URL=api.url, SHELLWEGO_TOKEN="pat_x\n").code == 0
        assert api.asked[0].headers["Authorization"] == "Bearer pat_x"


def test_a_token_is_shown_to_its_own_platform_only(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps", EMPTY)
    machine.context("here", "http://127.0.0.1:1", token="pat_here", project="of-context")
    refused = machine.swg("apps", "ls", SHELLWEGO_API_URL=api.url, SHELLWEGO_TOKEN="")
    assert (refused.code, api.asked) == (3, [])
    assert "the context here is for http://127.0.0.1:1" in refused.err
    assert "SHELLWEGO_TOKEN" in refused.err
    assert machine.swg("apps", "ls", SHELLWEGO_API_URL=api.url, SHELLWEGO_TOKEN="pat_there").code == 0
    assert "of-context" not in api.asked[0].query
    machine.context("there", api.url, token="pat_of_context")
    machine.swg("apps", "ls", SHELLWEGO_API_URL=f"{api.url}/")
    assert [asked.headers["Authorization"] for asked in api.asked] == ["Bearer pat_there", "Bearer pat_of_context"]


def test_a_form_of_output_given_as_an_organization_is_told(machine: Machine, api: HandMadeApi) -> None:
    api.refuse("GET", "/v1/projects", 404, "organization-not-found")
    assert "--output json" in machine.swg("apps", "ls", "-o", "json").err
    assert "--output" not in machine.swg("apps", "ls", "-o", "acme").err


@pytest.mark.parametrize(
    ("typed", "usage"),
    [
        (("apps", "rm"), "apps destroy"),
        (("apps", "delete"), "apps destroy"),
        (("volumes", "destroy"), "volumes rm"),
        (("roles", "remove"), "roles delete"),
        (("tokens", "rm"), "tokens revoke"),
        (("env", "rm"), "env unset"),
        (("apps", "info"), "apps show"),
        (("nodes", "describe"), "nodes show"),
        (("volumes", "change"), "volumes update"),
        (("apps", "list"), "apps ls"),
    ],
)
def test_a_command_answers_to_what_it_is_called_elsewhere(machine: Machine, typed: tuple[str, ...], usage: str) -> None:
    ended, meant = (machine.swg(*words, "--help") for words in (typed, usage.split()))
    assert (ended.code, meant.code) == (0, 0)
    assert ended.out.splitlines()[1:] == meant.out.splitlines()[1:]  # all but the name as it was typed


def test_the_form_of_output_is_named_by_flag_then_environment(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps", EMPTY)
    assert machine.swg("apps", "ls", "--json", SHELLWEGO_OUTPUT="yaml").out == "[]\n"
    assert machine.swg("apps", "ls", SHELLWEGO_OUTPUT="json").out == "[]\n"
    ended = machine.swg("apps", "ls")
    assert (ended.out, ended.err) == ("", "no apps yet: swg apps create NAME\n")


def test_contexts_are_listed_chosen_and_forgotten(machine: Machine) -> None:
    assert machine.swg("contexts", "ls").err == "no contexts yet: swg login --url URL\n"
    machine.context("mine", "http://x", token="pat_secret", project="web")
    machine.context("theirs", "http://y", current=False)
    listed = machine.swg("contexts", "ls").out.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [["mine", "*", "http://x"], ["theirs", "-", "http://y"]]
    used = machine.swg("contexts", "use", "theirs", "--json")
    assert (json.loads(used.out)["current"], used.err) == (True, "")
    found = {each["name"]: each["current"] for each in json.loads(machine.swg("contexts", "list", "--json").out)}
    assert found == {"mine": False, "theirs": True}
    assert json.loads(machine.swg("contexts", "ls", "--json", "--context", "mine").out)[0]["current"]
    assert "pat_secret" not in machine.swg("contexts", "ls", "--json").out
    assert machine.config.stat().st_mode & 0o777 == 0o600
    gone = machine.swg("contexts", "remove", "theirs")
    assert (gone.code, gone.err.splitlines()[0]) == (0, "theirs is forgotten here")
    assert "swg contexts use NAME" in gone.err
    assert "its token stays valid" in machine.swg("contexts", "rm", "mine").err
    assert machine.swg("contexts", "ls", "--output", "name").out == ""


def test_a_context_keeps_the_project_that_it_is_chosen_with_and_no_organization(machine: Machine) -> None:
    machine.context("mine", "http://x", project="old")
    before = machine.config.read_bytes()
    refused = machine.swg("contexts", "use", "mine", "-o", "acme", "-p", "web")
    assert (refused.code, machine.config.read_bytes()) == (2, before)
    assert "leave out -o" in refused.err
    machine.swg("contexts", "use", "mine", SHELLWEGO_PROJECT="other", SHELLWEGO_ORG="acme")
    assert json.loads(machine.swg("contexts", "ls", "--json").out)[0]["project"] == "old"
    assert json.loads(machine.swg("contexts", "use", "mine", "-p", "web", "--json").out)["project"] == "web"
    assert json.loads(machine.swg("contexts", "ls", "--json").out)[0]["project"] == "web"


@pytest.mark.parametrize("action", ["use", "rm"])
def test_a_context_that_is_not_there_is_neither_used_nor_forgotten(machine: Machine, action: str) -> None:
    machine.context("mine", "http://x")
    before = machine.config.read_bytes()
    ended = machine.swg("contexts", action, "nobody")
    assert (ended.code, machine.config.read_bytes()) == (4, before)
    assert "there is no context 'nobody'" in ended.err


def test_a_context_that_the_environment_overrides_is_told_as_such(machine: Machine) -> None:
    machine.context("mine", "http://x")
    machine.context("theirs", "http://y")
    assert "names theirs" in machine.swg("contexts", "use", "mine", SHELLWEGO_CONTEXT="theirs").err


def test_without_a_context_the_way_to_one_is_told(machine: Machine) -> None:
    ended = machine.swg("apps", "ls")
    assert ended.code == 3
    assert "swg up" in ended.err
    assert "swg login --url URL" in ended.err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("a = [", 2, "config.toml: "),
        ("\xff", 2, "config.toml: it is not UTF-8\n"),
        ("contexts = 1", 2, "[contexts] is not a table"),
        ("[contexts.x]\ntoken = 'a'", 2, "context 'x' has no api_url"),
        ("[contexts.x]\napi_url = 'http://x'", 2, "no context is current"),
        ("current = 'x'\n[contexts.x]\napi_url = 'frob'", 2, "not the URL of an API: 'frob'"),
        ("current = 'x'\n[contexts.x]\napi_url = 'http://x:abc'", 2, "not the URL of an API"),
        ("current = 'x'\n[contexts.x]\napi_url = 'http://[::1'", 2, "not the URL of an API"),
        ("current = 'x'\n[contexts.x]\napi_url = 'https://x'\nca_file = '/nothing'", 2, "there is no file /nothing"),
        ("current = 'x'\n[contexts.x]\napi_url = 'http://x'\ntoken = \"a\\nb\"", 2, "characters that no token has"),
    ],
)
def test_a_broken_context_file_is_named_with_its_fault(machine: Machine, text: str, code: int, message: str) -> None:
    machine.config.parent.mkdir(parents=True)
    machine.config.write_bytes(text.encode("latin-1"))
    ended = machine.swg("apps", "ls")
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err


def test_a_context_file_that_is_not_there_or_cannot_be_read_is_told_as_such(machine: Machine) -> None:
    ended = machine.swg("apps", "ls", "-c", "/nothing/config.toml")
    assert (ended.code, ended.out) == (2, "")
    assert "there is no file /nothing/config.toml" in ended.err
    machine.config.mkdir(parents=True)
    ended = machine.swg("apps", "ls")
    assert ended.code == 2
    assert f"{machine.config}: it cannot be read: Is a directory\n" in ended.err
    assert "Make it readable" in ended.err


@pytest.mark.parametrize(
    ("text", "message"),
    [("app = [", "shellwego.toml: "), ("app = 3", "app is not a text"), ("\xff", "shellwego.toml: it is not UTF-8\n")],
)
def test_a_broken_project_file_is_named(machine: Machine, api: HandMadeApi, text: str, message: str) -> None:
    Path("shellwego.toml").write_bytes(text.encode("latin-1"))
    ended = machine.swg("status")
    assert ended.code == 2
    assert message in ended.err
    assert api.asked == []


def test_a_login_is_saved_readable_by_its_owner_alone_and_only_when_the_token_is_good(machine: Machine) -> None:
    with HandMadeApi().running() as api:
        api.refuse("GET", "/v1/user", 401)
        assert machine.swg("login", "--url", api.url, stdin="pat_bad").code == 3
        assert not machine.config.exists()
        api.answer("GET", "/v1/user", view(UserView, email="me@x"))
        ended = machine.swg("login", "--url", api.url, "--name", "mine", stdin="pat_good\n")
        assert (ended.code, ended.out, ended.err) == (0, "", "logged in as me@x; context mine is current\n")
        assert machine.config.stat().st_mode & 0o777 == 0o600
        assert machine.swg("whoami", "--output", "name").out == "me@x\n"
        assert api.asked[-1].headers["Authorization"] == "Bearer pat_good"
        assert machine.swg("logout").code == 0
        assert machine.swg("whoami").code == 3


def test_a_logout_promises_nothing_that_is_not_there_and_tells_the_contexts_that_are_left(machine: Machine) -> None:
    machine.context("other", "http://x", current=False)
    machine.context("mine", "http://y")
    ended = machine.swg("logout")
    assert (ended.code, ended.out) == (0, "")
    assert "revoked" not in ended.err
    assert "SHELLWEGO_CONTEXT, of: other" in ended.err
    assert "SHELLWEGO_CONTEXT, of: other" in machine.swg("apps", "ls").err


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("--url", "frob"), "pat_x"),
        (("--url", "http://x:abc"), "pat_x"),
        (("--url", "http://127.0.0.1:1"), ""),
        (("--url", "http://127.0.0.1:1"), "a\nb"),
        (("--url", "https://x", "--ca-file", "/nothing"), "pat_x"),
        ((), "pat_x"),
    ],
)
def test_a_login_that_makes_no_sense_is_a_mistake_of_use(
    machine: Machine, arguments: tuple[str, ...], stdin: str
) -> None:
    assert machine.swg("login", *arguments, stdin=stdin).code == 2
    assert not machine.config.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frob",), "No such command 'frob'."),
        (("aps",), "Did you mean 'apps'?"),
        (("ps",), "No such command 'ps'. Did you mean 'status'?"),
        (("start", "shop"), "No such command 'start'. Did you mean 'apps start'?"),
        (("apps", "crate"), "No such command 'crate'. Did you mean 'create'?"),
        (("apps", "xyzzy"), "See: swg apps --help"),
        (("vms", "show", "web.0"), "web.0 is a place in an app: say in which one, with -a APP."),
        (("apps", "create"), "Missing argument 'NAME'"),
        (("deploy", "-a", "x", "--port", "99999"), "not in the range"),
        (("deploy", "-a", "x", "--port", "abc"), "'abc' is not"),
        (("deploy", "-a", "x", "--wait-timeout", "-1"), "not in the range"),
        (("deploy", "-a", "x", "-e", "A"), "Variable 1 of 1 is not NAME=VALUE"),
        (("deploy", "-a", "x", "--strategy", "hope"), "'hope' is not one of"),
        (("scale", "-a", "x"), "Nothing to change"),
        (("scale", "-a", "x", "web=many"), "'web=many' is not PROCESS=COUNT"),
        (("scale", "-a", "x", "web=-1"), "'web=-1' is not PROCESS=COUNT, with a COUNT from 0 to 1000"),
        (("scale", "-a", "x", "web=1001"), "with a COUNT from 0 to 1000"),
        (("ports", "publish", "-a", "x", "0"), "'0': ports are from 1 to 65535"),
        (("ports", "publish", "-a", "x", "80:99999"), "'80:99999': ports are from 1 to 65535"),
        (("volumes", "replicate", "v", "--every", "1s"), "--every: 1s is not from 5s to 7d"),
        (("volumes", "attach", "v", "-a", "x", "--path", "data"), "--path: 'data' is no absolute path"),
        (("tokens", "create", "ci", "--expires-in", "9999d"), "--expires-in: 9999d is not from 60s to 365d"),
        (("scale", "-a", "x", "web=3", "web=2"), "A process is named twice."),
        (("xyzzy",), "See: swg --help"),
        (("scale", "-a", "x", "=1"), "'=1' is not PROCESS=COUNT"),
        (("nodes", "label", "one", "=ssd"), "'=ssd' is not NAME=VALUE or NAME-"),
        (("nodes", "join-token", "--label", "=ssd"), "'=ssd' is not NAME=VALUE"),
        (("deploy", "-a", "x", "-i", "y", "--require", "disk=a", "--require", "disk=b"), "disk is named twice"),
        (("logs", "-a", "x", "--since", "yesterday"), "is no time such as"),
        (("env", "import", "-a", "x"), "no variables to import"),
        (("console", "-a", "x"), "the console needs a terminal"),
        (("images", "load", "x", "/nothing"), "No such file"),
        (("completion", "ksh"), "'ksh' is not one of"),
        (("apps", "ls", "--output", "xml"), "'xml' is not one of"),
        (("apps", "ls", "--context", "nobody"), "there is no context 'nobody'"),
    ],
)
def test_a_mistake_of_use_ends_with_2_before_anything_is_sent(
    machine: Machine, api: HandMadeApi, arguments: tuple[str, ...], message: str
) -> None:
    ended = machine.swg(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert api.asked == []
