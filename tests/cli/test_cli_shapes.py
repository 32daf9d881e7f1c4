"""How a command may be written: what people type who know other command lines is understood, or refused with a word."""

from __future__ import annotations

import json

import pytest

from shellwego.client.generated import Accepted, AppList, AppView, EnvView, Pagination, SecretDetail
from tests.cli.cli_world import HandMadeApi, Machine, view

APPS = AppList(data=[view(AppView, name="shop")], pagination=view(Pagination))


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "apps", "ls"),
        ("--output", "json", "apps", "ls"),
        ("--output=json", "-q", "apps", "list"),
        ("apps", "list", "--json"),
    ],
)
def test_shared_options_stand_before_or_behind_the_command(
    machine: Machine, api: HandMadeApi, words: tuple[str, ...]
) -> None:
    api.answer("GET", "/v1/apps", APPS)
    assert json.loads(machine.swg(*words).out)[0]["name"] == "shop"


def test_an_app_named_before_the_command_is_its_app(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop/env", view(EnvView, env={"A": "1"}))
    for words in (("env", "show"), ("env", "list"), ("env", "ls")):
        assert "A" in machine.swg("-a", "shop", *words, SHELLWEGO_APP="other").out


@pytest.mark.parametrize("words", [("-a", "shop", "frob"), ("--json", "apps", "frob")])
def test_a_wrong_name_behind_options_is_told(machine: Machine, api: HandMadeApi, words: tuple[str, ...]) -> None:
    ended = machine.swg(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "frob" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("apps ls --json --frobnicate", "No such option '--frobnicate'."),
        ("--json aps", "No such command 'aps'. Did you mean 'apps'?"),
        ("aps --json", "No such command 'aps'. Did you mean 'apps'?"),
        ("plan -a shop --port 0 --json", "Invalid value for '--port': 0 is not in the range 1<=x<=65535."),
        ("plan --output json -a shop --port=0", "Invalid value for '--port': 0 is not in the range 1<=x<=65535."),
        ("--output=json apps create", "Missing argument 'NAME'."),
        ("doctor --json --data-dir", "Option '--data-dir' requires an argument."),
    ],
)
def test_a_mistake_in_the_command_line_is_one_document_with_json(machine: Machine, words: str, message: str) -> None:
    ended = machine.swg(*words.split())
    assert (ended.code, ended.out) == (2, "")
    assert json.loads(ended.err) == {"code": "usage", "message": message, "exit_code": 2}
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-a", "Option '-a' requires an argument."),
        ("--json -a", "Option '-a' requires an argument."),
        ("-q", "Which command? See: swg --help"),
        ("env -a www", "-a stands behind the whole command: swg env COMMAND -a"),
        ("apps --json ls", "--json stands behind the whole command: swg apps COMMAND --json"),
    ],
)
def test_a_shared_option_in_a_wrong_place_is_not_said_to_be_none(machine: Machine, words: str, message: str) -> None:
    ended = machine.swg(*words.split())
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_json_is_asked_for_by_the_environment_too_and_not_by_words_of_the_command(machine: Machine) -> None:
    assert json.loads(machine.swg("aps", SHELLWEGO_OUTPUT="json").err)["code"] == "usage"
    for words in (("aps", "--", "--json"), ("run", "-a", "shop", "-i", "--detach", "x", "--json")):
        assert "Error: " in machine.swg(*words).err
    assert "Error: " in machine.swg("aps", "--output", "table", SHELLWEGO_OUTPUT="json").err


def test_help_is_a_command_too(machine: Machine) -> None:
    assert machine.swg("help").out == machine.swg("--help").out
    assert machine.swg("help", "apps", "ls").out == machine.swg("apps", "ls", "--help").out


def test_what_becomes_of_the_images_entrypoint_is_told(machine: Machine) -> None:
    assert "in place of the image's Entrypoint" in " ".join(machine.swg("run", "--help").out.split())


def test_the_exit_codes_are_told(machine: Machine) -> None:
    assert "8 unhealthy or rolled back" in machine.swg("--help").out


@pytest.mark.parametrize(
    "words",
    ["apps ls", "apps create x", "images ls", "images rm x", "images pull x", "nodes ls", "nodes show x", "whoami"],
)
def test_an_app_is_refused_where_it_would_say_nothing(machine: Machine, api: HandMadeApi, words: str) -> None:
    ended = machine.swg(*words.split(), "-a", "nope")
    assert (ended.code, ended.out, api.asked) == (2, "", [])
    assert "is about no app: leave out -a" in ended.err


@pytest.mark.parametrize("words", ["-a one apps destroy two -y", "apps stop two -a one", "status two -a one --json"])
def test_an_app_that_is_named_twice_is_refused(machine: Machine, api: HandMadeApi, words: str) -> None:
    ended = machine.swg(*words.split())
    assert (ended.code, ended.out, api.asked) == (2, "", [])
    assert "The app is named twice: two, and -a one." in ended.err


def test_an_app_that_is_named_counts_for_more_than_one_that_is_only_around(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/two", view(AppView, name="two"))
    assert machine.swg("apps", "show", "two", SHELLWEGO_APP="one").code == 0
    assert machine.swg("apps", "show", "two", "-a", "two").code == 0


def test_an_app_of_the_environment_disturbs_no_command(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps", APPS)
    assert machine.swg("apps", "ls", SHELLWEGO_APP="nope").code == 0


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("apps destroy shop --detach", "/v1/apps/app_1"),
        ("secrets rm A B", "/v1/secrets/A"),
        ("projects delete web", "/v1/projects/web"),
        ("orgs delete acme", "/v1/organizations/acme"),
        ("images rm img_1", "/v1/images/img_1"),
        ("webhooks rm whk_1", "/v1/webhooks/whk_1"),
        ("grants rm grt_1", "/v1/grants/grt_1"),
    ],
)
def test_what_is_removed_is_told_to_machines_by_the_names_that_were_given(
    machine: Machine, api: HandMadeApi, words: str, path: str
) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_1", name="shop"))
    gone: list[str] = [word for word in words.split()[2:] if not word.startswith("-")]
    for each in (path, "/v1/secrets/B"):
        api.answer("DELETE", each, view(Accepted))
        api.answer("GET", each, view(SecretDetail))
    ended = machine.swg(*words.split(), "--yes", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {"removed": gone}
    assert machine.swg(*words.split(), "--yes", "--output", "name").out.split() == gone
    told = machine.swg(*words.split(), "--yes")
    assert (told.out, bool(told.err)) == ("", True)
