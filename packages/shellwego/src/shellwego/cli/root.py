"""The root of the command line: names and one-line helps of all commands, which are imported only when called."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import pairwise, takewhile
from typing import Any, NoReturn

import click

from shellwego.cli.failure import INTERRUPTED, OUTPUT, Failure, JsonFailure

COMMANDS: Mapping[str, tuple[str, str]] = {
    "login": ("shellwego.cli.login:login", "Sign in to a platform; saved as a context."),
    "logout": ("shellwego.cli.login:logout", "End a context's token, and forget it."),
    "whoami": ("shellwego.cli.login:whoami", "Show who the token belongs to, and where."),
    "contexts": ("shellwego.cli.contexts:contexts", "List the platforms known here; choose or forget one."),
    "register": ("shellwego.cli.login:register", "Make your account from an invitation, and sign in."),
    "user": ("shellwego.cli.user:user", "Show your account; its name, password and one-time codes."),
    "tokens": ("shellwego.cli.tokens:tokens", "List, create and revoke your tokens."),
    "apps": ("shellwego.cli.apps:apps", "Create, list, show, destroy, start, stop and restart apps."),
    "launch": ("shellwego.cli.launch:launch", "Make an app of an image or a manifest, and deploy it."),
    "manifest": ("shellwego.cli.manifest:manifest", "Check a shellwego.toml; print its JSON schema."),
    "deploy": ("shellwego.cli.deploy:deploy", "Deploy what a shellwego.toml says, or an image."),
    "plan": ("shellwego.cli.deploy:plan", "Show what a deploy would change; change nothing."),
    "status": ("shellwego.cli.status:status", "Show an app: its release, instances and last deployment."),
    "scale": ("shellwego.cli.scale:scale", "Change how many instances run, and how large they are."),
    "deployments": ("shellwego.cli.deployments:deployments", "List and show deployments; cancel one."),
    "releases": ("shellwego.cli.releases:releases", "List and show an app's releases; diff two of them."),
    "rollback": ("shellwego.cli.releases:rollback", "Go back to an earlier release."),
    "env": ("shellwego.cli.env:env", "Show, set, unset and import environment variables."),
    "egress": ("shellwego.cli.egress:egress", "Show and change what an app may open connections to."),
    "groups": ("shellwego.cli.securitygroups:groups", "What apps of a project may open to each other."),
    "secrets": ("shellwego.cli.secrets:secrets", "Set, list, rotate, retire and remove secrets."),
    "volumes": ("shellwego.cli.volumes:volumes", "Create, attach, snapshot, back up, move and copy volumes."),
    "images": ("shellwego.cli.images:images", "List, pull, load and remove images."),
    "ports": ("shellwego.cli.ports:ports", "Publish an app's ports on the nodes' addresses."),
    "logs": ("shellwego.cli.logs:logs", "Show an app's output; -f follows."),
    "exec": ("shellwego.cli.remote:exec_", "Run a command in a running instance."),
    "console": ("shellwego.cli.remote:console", "Open a shell in a running instance."),
    "run": ("shellwego.cli.runs:run", "Run a one-off command in a microVM of its own."),
    "vms": ("shellwego.cli.vms:vms", "List, show, suspend and resume microVMs."),
    "orgs": ("shellwego.cli.tenancy:orgs", "List and make organizations; their quotas and their use."),
    "projects": ("shellwego.cli.tenancy:projects", "List and make projects of an organization; their quotas."),
    "members": ("shellwego.cli.tenancy:members", "List and remove members of an organization; their roles."),
    "invitations": ("shellwego.cli.invitations:invitations", "Invite people to an organization; list, revoke, accept."),
    "users": ("shellwego.cli.users:users", "List, show, disable and enable the platform's users."),
    "service-accounts": (
        "shellwego.cli.access:service_accounts",
        "List and make accounts for pipelines, and their tokens.",
    ),
    "roles": ("shellwego.cli.access:roles", "List, make and change roles of the organization's own."),
    "grants": ("shellwego.cli.access:grants", "Show and change who has which role where."),
    "nodes": ("shellwego.cli.nodes:nodes", "List nodes; let hosts join, empty and remove them."),
    "capabilities": ("shellwego.cli.capabilities:capabilities", "Show what the platform can do."),
    "keys": ("shellwego.cli.keys:keys", "List, rotate and retire the platform's master key."),
    "events": ("shellwego.cli.events:events", "Show what happened; -f follows."),
    "audit": ("shellwego.cli.audit:audit", "Show, export and verify who did what."),
    "webhooks": ("shellwego.cli.webhooks:webhooks", "Have receivers told of events over HTTP."),
    "completion": ("shellwego.cli.completion:completion", "Print a completion script for bash, zsh or fish."),
}


SECTIONS = {
    "up": "This machine",
    "login": "Your account",
    "apps": "Apps",
    "env": "What an app has",
    "logs": "Inside an app",
    "orgs": "People and tenants",
    "nodes": "The platform",
    "completion": "Your shell",
}
"""Headings of the help, each before the command with which its section begins."""

_FLAGS = {"--json", "-q", "--quiet", "-y", "--yes", "--no-color"}
_WITH_VALUE = {"-a", "--app", "-o", "--org", "-p", "--project", "-c", "--config", "--context", "--output"}
_AS_JSON = "shellwego.as-json"
_EPILOG = """\b
Every command that asks the platform takes, also before its name:
  -a APP  -o ORG  -p PROJECT  -c FILE  --context NAME
  --output table|json|yaml|name  --json  -q  -y  --no-color

\b
It ends with: 0 done, 1 failed, 2 wrong use, 3 not allowed, 4 not found,
5 conflict, 6 no capacity, 7 quota, 8 unhealthy or rolled back,
10 changes (plan --detailed-exitcode), 124 timed out, 130 interrupted.
exec, console and run end with the command's own code; where they
fail themselves, they say “Error:” on stderr."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and help, and imports one when it is called."""

    def __init__(
        self,
        commands: Mapping[str, tuple[str, str]],
        further: Mapping[str, Mapping[str, str]] | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(**attributes)
        self._lazy = commands
        self._further = further or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, self._options_after_the_command(ctx, args))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = asks_for_json(args)  # parsing takes them away
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            raise _in_form(error, as_json=as_json) from error
        context.meta[_AS_JSON] = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            # Once a command runs it knows by itself, better than we: not each of its words is an option.
            raise _in_form(error, as_json=OUTPUT not in ctx.meta and ctx.meta[_AS_JSON]) from error

    def _options_after_the_command(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Shared options that stand before the command's name are moved behind it, where they are understood."""
        count = 0
        while count < len(args) and args[count].partition("=")[0] in _FLAGS | _WITH_VALUE:
            count += 2 if args[count] in _WITH_VALUE else 1
        leading, words = args[:count], args[count:]
        if count > len(args):
            raise click.BadOptionUsage(args[-1], f"Option {args[-1]!r} requires an argument.", ctx)
        if leading and not words:
            raise click.UsageError(f"Which command? See: {ctx.command_path} --help", ctx)
        if not leading:
            return args
        names, command = 0, self.get_command(ctx, words[0])
        while command is not None and names < len(words):
            names += 1
            if not isinstance(command, click.Group) or names == len(words) or words[names].startswith("-"):
                break
            command = command.get_command(ctx, words[names])
        if command is None:
            return words  # its name is what is wrong, and what is told
        return [*words[:names], *leading, *words[names:]]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        command = _load(self._lazy[cmd_name][0])
        for name, target in self._further.get(cmd_name, {}).items():
            assert isinstance(command, click.Group)  # noqa: S101 - the table is ours
            command.add_command(_load(target), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from shellwego.cli.groups import AT_THE_ROOT, unknown_command  # noqa: PLC0415 - only after a mistake

            raise unknown_command(ctx, args[0], list(self._lazy), AT_THE_ROOT) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        heading = "Commands"
        for name, (_target, text) in self._lazy.items():
            heading = SECTIONS.get(name, heading)
            sections.setdefault(heading, []).append((name, text))
        width = max(map(len, self._lazy))
        for heading, commands in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands])


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line that may not be understood asks for JSON, as well as can be said."""
    own = list(takewhile(lambda word: word != "--", words))
    forms = [word.partition("=")[2] for word in own if word.startswith("--output=")]
    forms += [form for word, form in pairwise(own) if word == "--output"]
    return "--json" in own or (forms or [os.environ.get("SHELLWEGO_OUTPUT", "")])[-1] == "json"


def _in_form(error: click.ClickException, *, as_json: bool) -> click.ClickException:
    help_only = isinstance(error, click.exceptions.NoArgsIsHelpError)
    return JsonFailure(error) if as_json and not help_only and not isinstance(error, JsonFailure) else error


def _load(target: str) -> click.Command:
    module, attribute = target.split(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)  # noqa: S101 - the tables are ours
    return command


def root_group(
    commands: Mapping[str, tuple[str, str]], further: Mapping[str, Mapping[str, str]] | None = None
) -> click.Group:
    """The command `swg` itself; `further` are commands of groups among them that come from elsewhere."""
    group = LazyGroup(
        commands,
        further,
        name="swg",
        help="ShellWeGo: your own cloud. Apps run in microVMs on your servers.",
        epilog=_EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(None, "--version", "-V", package_name="shellwego", prog_name="swg")(group)


def _have_standard_streams() -> None:
    """Open what our caller closed (`<&-`, `2>&-`). Its number would be given to the next connection, which then had written
    on it what is meant for people; and Python has None in the stream's place."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            setattr(sys, name, os.fdopen(descriptor, mode))


def _drop_output() -> None:
    """What could not be written would be tried again when Python ends, which then says so in many lines."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(root: click.Group) -> NoReturn:
    """Run the command that this process was called with, and end with its exit code.

    Click alone would end an interrupted command with 1.
    """
    _have_standard_streams()
    try:
        code = root.main(prog_name="swg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except OSError as error:
        _drop_output()
        failure = Failure(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        with suppress(OSError):
            _in_form(failure, as_json=asks_for_json(sys.argv[1:])).show()
        sys.exit(failure.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
