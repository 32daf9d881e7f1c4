"""Signing in and out, tokens and the account, on the command line: passwords from prompts or stdin, never from arguments."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import click
import pytest
from pyotp import TOTP

from shellwego.cli import prompts
from shellwego.client.context import load
from tests.api.api_world import ADMIN, FOREIGN
from tests.api.running_api import Running
from tests.cli.cli_world import Ended, Machine, commands

PASSWORD, NEW = "correct horse battery", "staple battery correct"
EMAIL = "admin@localhost"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("spool")) as running:
        yield running


@pytest.fixture
def host(machine: Machine, platform: Running) -> Machine:
    """The platform's own machine, whose administrator has a password and no codes."""
    machine.context("host", platform.url, token=ADMIN)
    machine.swg("user", "totp", "disable", stdin="\n\n")
    assert machine.swg("user", "password", stdin=f"\n{PASSWORD}\n{PASSWORD}\n").code == 0
    return machine


def sign_in(machine: Machine, *lines: str, url: str, name: str = "mine") -> Ended:
    return machine.swg("login", "--url", url, "--name", name, "--email", EMAIL, stdin="\n".join(lines) + "\n")


def whoami(machine: Machine, platform: Running, token: str) -> Ended:
    return machine.swg("whoami", SHELLWEGO_API_URL=platform.url, SHELLWEGO_TOKEN=token)


def token_of(machine: Machine, name: str = "mine") -> str:
    context = load(machine.config).get(name)
    assert context is not None
    return context.token


def test_a_login_by_password_is_kept_for_its_owner_alone_and_a_logout_ends_it(host: Machine, platform: Running) -> None:
    ended = sign_in(host, PASSWORD, url=platform.url)
    assert (ended.code, ended.out, ended.err) == (0, "", f"logged in as {EMAIL}; context mine is current\n")
    token = token_of(host)
    assert token.startswith("pat_")
    assert host.config.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in host.config.read_text()
    assert "its token is revoked" in host.swg("logout").err
    deadline = time.monotonic() + 30
    while (ended := whoami(host, platform, token)).code == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.code == 3
    assert "swg login" in ended.err


def test_a_wrong_password_saves_nothing(host: Machine, platform: Running) -> None:
    ended = sign_in(host, "wrong", url=platform.url)
    assert (ended.code, ended.out) == (3, "")
    assert "email, the password or the code is wrong" in ended.err
    assert load(host.config).get("mine") is None


def test_at_a_terminal_everything_is_asked_for_and_the_code_only_when_it_is_needed(
    host: Machine, platform: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    answers = iter([EMAIL, PASSWORD])

    def prompt(question: str, hide_input: bool, **_: object) -> str:
        asked.append((question, hide_input))
        return next(answers)

    monkeypatch.setattr(prompts, "at_terminal", lambda: True)
    monkeypatch.setattr(click, "prompt", prompt)
    assert host.swg("login", "--url", platform.url, "--name", "mine").code == 0
    assert asked == [("Email", False), ("Password", True)]


def test_codes_are_enrolled_asked_for_and_disabled(host: Machine, platform: Running) -> None:
    secret = json.loads(host.swg("user", "totp", "enrol", "--json", stdin="\n").out)["secret"]
    code = TOTP(secret)
    confirmed = host.swg("user", "totp", "confirm", stdin=code.now() + "\n")
    recovery = confirmed.out.split()
    assert len(recovery) == 10
    assert sign_in(host, PASSWORD, url=platform.url).code == 3
    assert sign_in(host, PASSWORD, recovery[0], url=platform.url).code == 0
    assert "one-time codes  yes" in host.swg("user", "show").out
    assert host.swg("user", "totp", "disable", stdin=f"{PASSWORD}\n{recovery[0]}\n").code == 2, "it is used up"
    assert host.swg("user", "totp", "disable", stdin=f"{PASSWORD}\n{recovery[1]}\n").code == 0
    assert sign_in(host, PASSWORD, url=platform.url).code == 0


def test_a_password_is_changed_with_the_old_one(host: Machine, platform: Running) -> None:
    sign_in(host, PASSWORD, url=platform.url)
    assert host.swg("user", "password", stdin=f"wrong\n{NEW}\n").code == 2
    ended = host.swg("user", "password", stdin=f"{PASSWORD}\nshort\n")
    assert ended.code == 2
    assert "at least 12 characters" in ended.err
    assert host.swg("user", "password", stdin=f"{PASSWORD}\n{NEW}\n").code == 0
    assert sign_in(host, NEW, url=platform.url, name="again").code == 0


def test_a_token_is_made_narrowed_listed_and_revoked(host: Machine, platform: Running) -> None:
    project = platform.world.project.id
    made = host.swg("tokens", "create", "ci", "--scope", "apps:read", "--resource", project, "--expires-in", "30d")
    assert made.out.startswith("pat_")
    assert made.out not in made.err
    listed = json.loads(host.swg("tokens", "ls", "--json").out)
    found = next(token for token in listed if token["name"] == "ci")
    assert (found["scopes"], found["resources"]) == (["apps:read"], [project])
    assert "secret" not in found
    ended = host.swg("whoami", SHELLWEGO_TOKEN=made.out.strip())
    assert (ended.code, f"narrowed to  {project}" in ended.out) == (3, False), "user:read is not among its scopes"
    assert "revoked" in host.swg("tokens", "revoke", found["id"]).out
    assert "ci" not in host.swg("tokens", "ls").out
    assert "ci" in host.swg("tokens", "ls", "--all").out
    assert host.swg("tokens", "create", "x", "--temporary").out.startswith("tmp_")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tokens", "create", "x", "--expires-in", "soon"), "'soon' is no time"),
        (("tokens", "create", "x", "--temporary", "--expires-in", "1h"), "at most 900 seconds"),
        (("tokens", "create", "x", "--resource", "prj_x"), "there is no organization, project or app"),
        (("tokens", "create", "x", "--scope", "apps"), "not of the form resource:action"),
        (("user", "totp", "confirm"), "Code: nobody can be asked"),
        (("login",), "Which platform?"),
    ],
)
def test_what_makes_no_sense_is_told(machine: Machine, platform: Running, words: tuple[str, ...], message: str) -> None:
    if words != ("login",):
        machine.context("host", platform.url, token=ADMIN)
    ended = machine.swg(*words)
    assert ended.code == 2
    assert message in ended.err


def test_the_hosts_own_token_stays_when_its_context_is_forgotten(host: Machine, platform: Running) -> None:
    assert "stays valid" in host.swg("logout").err
    host.context("host", platform.url, token=ADMIN)
    assert host.swg("whoami").code == 0


def test_the_operator_lists_disables_and_enables_users(host: Machine) -> None:
    assert "viewer@x" in host.swg("users", "ls", "--output", "name").out.split()
    assert host.swg("users", "disable", "viewer@x").code == 2, "it asks first"
    assert "disabled" in host.swg("users", "disable", "viewer@x", "--yes").out
    assert "enabled" in host.swg("users", "enable", "viewer@x").out
    assert host.swg("users", "show", "nobody@x").code == 4


def test_no_command_takes_a_secret_as_an_argument() -> None:
    words = ("password", "totp", "code", "secret")
    for path, command in commands():
        for parameter in command.params:
            if path[0] in ("login", "user", "users", "tokens", "invitations"):
                assert parameter.name not in words, path


def test_a_rename_is_seen_by_others(host: Machine) -> None:
    assert host.swg("user", "rename", "Ann").code == 0
    assert "Ann" in host.swg("users", "show", EMAIL).out


def test_somebody_is_invited_registers_and_is_in(host: Machine, platform: Running) -> None:
    made = host.swg("invitations", "create", "ann@x", "--role", "viewer", "-o", "default")
    assert made.out.startswith("inv_")
    assert made.out.strip() not in made.err
    assert "pending" in host.swg("invitations", "ls", "-o", "default").out
    ended = host.swg(
        "register", "--url", platform.url, "--context-name", "ann", "--name", "Ann", stdin=f"{made.out}{NEW}\n"
    )
    assert ended.err == "logged in as ann@x; context ann is current\n"
    assert "viewer on org_" in host.swg("whoami").out
    assert host.swg("register", "--url", platform.url, stdin=f"{made.out}{NEW}\n").code == 4, "it is used"


def test_an_invitation_is_accepted_or_revoked(host: Machine, platform: Running) -> None:
    made = host.swg("invitations", "create", "foreign@x", "--role", "viewer", "-o", "default", "--json").out
    invitation = json.loads(made)
    host.context("foreign", platform.url, token=FOREIGN)
    assert "viewer" in host.swg("invitations", "accept", stdin=invitation["secret"] + "\n").out
    assert host.swg("invitations", "accept", stdin=invitation["secret"] + "\n").code == 4
    host.context("host", platform.url, token=ADMIN)
    other = json.loads(host.swg("invitations", "create", "bob@x", "-o", "default", "--json").out)
    assert "revoked" in host.swg("invitations", "revoke", other["id"], "-o", "default").out
    assert host.swg("invitations", "ls").code == 2, "of which organization is not clear"
