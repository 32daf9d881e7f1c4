"""The tree of commands: each has a help, takes what all take, and costs nothing before it is called."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from shellwego.cli.groups import AT_THE_ROOT
from shellwego.cli.root import COMMANDS, SECTIONS
from shellwego.main import HOST_COMMANDS
from tests.cli.cli_world import Machine, commands

ALL = dict(commands())
SHARED = {
    "--app",
    "--org",
    "--project",
    "--config",
    "--context",
    "--output",
    "--json",
    "--quiet",
    "--yes",
    "--no-color",
}
LOCAL = {
    *(("up",), ("server",), ("agent",), ("edge",), ("install",), ("nodes", "join"), ("bus", "init")),
    *(("backup", "create"), ("backup", "restore"), ("doctor",), ("completion",), ("manifest", "schema")),
}
"""Commands about this machine, which speak to no app."""
PROMISED = [
    "up",
    "login",
    "logout",
    "whoami",
    *(f"contexts.{name}" for name in ("ls", "use", "rm")),
    "launch",
    "manifest.check",
    "manifest.schema",
    "deploy",
    "plan",
    "status",
    "scale",
    "deployments.ls",
    "deployments.show",
    "deployments.cancel",
    "releases",
    "releases.ls",
    "releases.diff",
    "rollback",
    "logs",
    "exec",
    "console",
    "run",
    "events",
    "doctor",
    "completion",
    "apps.ls",
    "apps.create",
    "apps.show",
    "apps.destroy",
    "apps.start",
    "apps.stop",
    "apps.restart",
    "env.ls",
    "env.set",
    "env.unset",
    "env.import",
    "secrets.set",
    "secrets.ls",
    "secrets.show",
    "secrets.rotate",
    "secrets.retire",
    "secrets.rm",
    "keys.ls",
    "keys.rotate",
    "keys.retire",
    "images.ls",
    "images.pull",
    "images.load",
    "images.rm",
    "vms.ls",
    "vms.show",
    "vms.suspend",
    "vms.resume",
    "nodes.ls",
    "nodes.show",
    "nodes.cordon",
    "nodes.uncordon",
    "nodes.drain",
    "nodes.label",
    "nodes.rm",
    "nodes.rotate-keys",
    "nodes.rebalance",
    "nodes.join",
    "nodes.join-token",
    *(f"nodes.join-tokens.{name}" for name in ("ls", "revoke")),
    *(f"nodes.keys.{name}" for name in ("ls", "revoke")),
    *(f"nodes.authorities.{name}" for name in ("ls", "rotate", "retire")),
    *("server", "agent", "edge", "install"),
    *(f"orgs.{name}" for name in ("ls", "create", "show", "rename", "delete", "quotas", "usage")),
    *(f"projects.{name}" for name in ("ls", "create", "show", "rename", "delete", "quotas")),
    *(f"members.{name}" for name in ("ls", "role", "rm")),
    *(f"service-accounts.{name}" for name in ("ls", "create", "show", "change", "delete")),
    *(f"service-accounts.tokens.{name}" for name in ("ls", "create", "revoke")),
    *(f"roles.{name}" for name in ("ls", "create", "show", "change", "delete")),
    *(f"grants.{name}" for name in ("ls", "add", "show", "change", "rm")),
]


def test_every_promised_command_is_there() -> None:
    assert {tuple(name.split(".")) for name in PROMISED} <= ALL.keys()


def test_what_others_call_differently_is_told_by_a_command_that_is_there() -> None:
    assert AT_THE_ROOT.keys().isdisjoint(word for word, *_ in ALL)
    assert {tuple(meant.split()) for meant in AT_THE_ROOT.values()} - ALL.keys() == {("--version",)}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_helps(machine: Machine, words: tuple[str, ...]) -> None:
    for flag in ("-h", "--help"):
        ended = machine.swg(*words, flag)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"Usage: swg {' '.join(words)}")
    assert ALL[words].help


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_takes_the_shared_options(words: tuple[str, ...]) -> None:
    command = ALL[words]
    options = {text for parameter in command.params for text in parameter.opts}
    if not isinstance(command, click.Group) and words not in LOCAL:
        assert options >= SHARED


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_has_a_help(words: tuple[str, ...]) -> None:
    options = [parameter for parameter in ALL[words].params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_one_line_helps_name_what_exists(machine: Machine) -> None:
    listed = machine.swg("-h").out
    for name, (_target, text) in {**HOST_COMMANDS, **COMMANDS}.items():
        assert f"  {name} " in listed
        assert text in listed


def test_the_help_has_its_commands_in_sections_and_each_on_one_line(machine: Machine) -> None:
    listed = machine.swg("-h").out.splitlines()
    for first, heading in SECTIONS.items():
        assert listed[listed.index(f"{heading}:") + 1].startswith(f"  {first} ")
    assert max(map(len, listed)) <= 80
    assert not [line for line in listed if line.startswith(" " * 10)]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_calls_us(machine: Machine, shell: str) -> None:
    ended = machine.swg("completion", shell)
    assert ended.code == 0
    assert "_SWG_COMPLETE" in ended.out


def test_help_imports_the_root_alone() -> None:
    code = (
        "import sys\nfrom shellwego.main import main\nsys.argv = ['swg', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'shellwego'), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr.strip() == str(
        ["shellwego", "shellwego.cli", "shellwego.cli.failure", "shellwego.cli.root", "shellwego.main"]
    )
