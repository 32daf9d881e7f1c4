"""What every command shares: the options that mean the same everywhere, and the session they make.

Precedence of each value: flag, environment (`SHELLWEGO_…`), project file (`shellwego.toml` in the working directory),
context. The options are accepted by every command, after its name, where people type them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shellwego.cli.failure import AUTH, FAILED, NOT_FOUND, OUTPUT, USAGE, Failure, JsonFailure

if TYPE_CHECKING:
    from shellwego.client.context import Context, ContextFile
    from shellwego.client.generated import Client

F = TypeVar("F", bound=Callable[..., Any])
OUTPUTS = ("table", "json", "yaml", "name")


@dataclass(frozen=True)
class Session:
    """The shared options of one call, and what follows from them."""

    app_option: str | None
    organization: str | None
    """The organization that was named; None where the token sees one only."""
    project_option: str | None
    config: Path | None
    context_name: str | None
    output: str
    quiet: bool
    yes: bool
    color: bool

    @property
    def config_path(self) -> Path:
        """The file with the contexts."""
        from shellwego.client.context import default_path  # noqa: PLC0415

        return self.config or default_path()

    @property
    def known_contexts(self) -> ContextFile:
        """All contexts.

        Raises:
            Failure: their file makes no sense.
        """
        from shellwego.client.context import ContextFileError, load  # noqa: PLC0415

        try:
            return load(self.config_path)
        except ContextFileError as error:
            unread = isinstance(error.__cause__, OSError)
            remedy = "Make it readable, or name another: -c FILE" if unread else "Mend or remove it, then: swg login"
            raise Failure(str(error), code=USAGE, resolution=remedy) from error

    @cached_property
    def context(self) -> Context:
        """How to reach the platform: environment first, then the chosen context.

        Raises:
            Failure: neither says how.
        """
        from shellwego.client.context import under  # noqa: PLC0415

        known = self.known_contexts
        chosen = known.get(self.context_name or "")
        if self.context_name and chosen is None:
            raise Failure(
                f"there is no context {self.context_name!r} in {self.config_path}",
                code=USAGE,
                resolution="swg contexts ls shows those there are.",
            )
        found = under(os.environ, chosen)
        if found is not None and chosen is not None and not found.token and chosen.token:
            raise Failure(
                f"SHELLWEGO_API_URL is {found.api_url}, and the token of the context {chosen.name} is for {chosen.api_url}",
                code=AUTH,
                resolution="Give SHELLWEGO_TOKEN, too, or unset SHELLWEGO_API_URL.",
            )
        if found is not None:
            return found
        if known.contexts:
            raise Failure(
                f"no context is current in {self.config_path}",
                code=USAGE,
                resolution=choice(known),
            )
        if self.config is not None and not self.config.exists():
            raise Failure(f"there is no file {self.config} (--config)", code=USAGE)
        raise Failure(
            "not logged in: no context is set up",
            code=AUTH,
            resolution="On the platform's machine: swg up (it sets one up). Elsewhere: swg login --url URL",
        )

    @cached_property
    def project(self) -> str | None:
        """The project that names are resolved in; None where the token has one only. Where an organization was named it is
        one of its projects, by id: several organizations may have one of that name.

        Raises:
            Failure: the organization has no such project, or several.
        """
        if self.organization:
            return self._project_of(self.organization, self.project_option)
        return self.project_option or self.context.project or None

    def project_named(self, name: str) -> str:
        """The project that is called so, in the organization that was named with it.

        Raises:
            Failure: the organization has no such project.
        """
        return self._project_of(self.organization, name) if self.organization else name

    @property
    def place(self) -> str | None:
        """The project that something is looked for in; where an organization was named, only one that was named with it."""
        return None if self.organization and not self.project_option else self.project

    def _project_of(self, organization: str, name: str | None) -> str:
        from shellwego.client.pages import MOST, every  # noqa: PLC0415

        listed = self.client.list_projects
        found = every(lambda cursor: listed(limit=MOST, cursor=cursor, organization=organization))
        if name:
            found = [each for each in found if name in (each.name, each.id)]
        if len(found) == 1:
            return found[0].id
        if found:
            names = ", ".join(sorted(each.name for each in found)[:20])
            raise Failure(
                f"{organization} has several projects: {names}", code=USAGE, resolution="Say which: -p PROJECT"
            )
        named = f"project “{name}”" if name else "project"
        raise Failure(
            f"{organization} has no {named} that you can see", code=NOT_FOUND, resolution="swg projects ls shows those."
        )

    @cached_property
    def client(self) -> Client:
        """The client of the platform's API."""
        from shellwego.client.generated import Client  # noqa: PLC0415

        context = self.context
        if context.ca_file and not Path(context.ca_file).is_file():
            raise Failure(f"context {context.name}: there is no file {context.ca_file} (ca_file)", code=USAGE)
        if not (context.token.isascii() and context.token.isprintable()):
            raise Failure(f"context {context.name}: the token has characters that no token has", code=USAGE)
        try:
            return Client(context.api_url, context.token, ca_file=context.ca_file)
        except ValueError as error:
            raise Failure(f"context {context.name}: {error}", code=USAGE) from error

    def close(self) -> None:
        """Close the client's connection, if one was made."""
        if "client" in self.__dict__:
            self.client.close()

    @cached_property
    def app(self) -> str:
        """The app that the command is about.

        Raises:
            click.UsageError: none was named anywhere.
        """
        name = self.app_option or project_file_app(Path.cwd())
        if not name:
            raise click.UsageError("Which app? Give -a APP, set SHELLWEGO_APP, or run it beside a shellwego.toml.")
        return name

    def app_named(self, name: str | None) -> str:
        """The app of an argument that may be left out.

        Raises:
            click.UsageError: as `app`; or `-a` names another. What the environment or a project file names is only what is
                meant where nothing is said.
        """
        if name and self.app_option and self.app_option != name and was_typed("app_option"):
            raise click.UsageError(f"The app is named twice: {name}, and -a {self.app_option}.")
        return name or self.app

    def confirm(self, question: str) -> None:
        """Ask before something that cannot be undone; without a terminal `--yes` is needed.

        Raises:
            Failure: the answer was no, or nobody could be asked.
        """
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise Failure(f"{question} Nobody can be asked here.", code=USAGE, resolution="Add --yes.")
        if not click.confirm(_printable(question), err=True):
            raise Failure("stopped: nothing was changed")

    def say(self, text: str) -> None:
        """A remark for people, on stderr; silent with `--quiet`."""
        if not self.quiet:
            click.echo(_printable(text), err=True)


def was_typed(option: str) -> bool:
    """Whether an option stands on the command line, and not in the environment alone."""
    from click.core import ParameterSource  # noqa: PLC0415

    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _printable(text: str) -> str:
    from shellwego.client.text import printable  # noqa: PLC0415 - most commands say nothing

    return printable(text)


def choice(known: ContextFile) -> str:
    """How to say which context is meant."""
    names = ", ".join(sorted(known.contexts))
    return f"Choose one with swg contexts use NAME, or by --context or SHELLWEGO_CONTEXT, of: {names}"


def project_file_app(directory: Path) -> str:
    """The app named in `shellwego.toml`, or nothing."""
    import tomllib  # noqa: PLC0415

    path = directory / "shellwego.toml"
    if not path.is_file():
        return ""
    try:
        name = tomllib.loads(path.read_text()).get("app", "")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        from shellwego.client.text import why_not_read  # noqa: PLC0415 - only after a failure

        raise Failure(f"{path}: {why_not_read(error)}", code=USAGE) from error
    if not isinstance(name, str):
        raise Failure(f"{path}: app is not a text", code=USAGE)
    return name


_OPTIONS = (
    click.option("-a", "--app", "app_option", envvar="SHELLWEGO_APP", metavar="APP", help="The app."),
    click.option("-o", "--org", "organization", envvar="SHELLWEGO_ORG", metavar="ORG", help="The organization."),
    click.option(
        "-p", "--project", "project_option", envvar="SHELLWEGO_PROJECT", metavar="PROJECT", help="The project."
    ),
    click.option(
        "-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="The file with contexts and tokens."
    ),
    click.option("--context", "context_name", envvar="SHELLWEGO_CONTEXT", metavar="NAME", help="The context to use."),
    click.option(
        "--output", type=click.Choice(OUTPUTS), envvar="SHELLWEGO_OUTPUT", default="table", help="How to print results."
    ),
    click.option("--json", "as_json", is_flag=True, help="Same as --output json."),
    click.option("-q", "--quiet", is_flag=True, help="No remarks and no progress."),
    click.option("-y", "--yes", is_flag=True, help="Do not ask before what cannot be undone."),
    click.option("--no-color", is_flag=True, envvar="NO_COLOR", help="No colours."),
)


def shared(command: F) -> F:
    """Give a command the shared options; it gets a `Session` as its first argument."""

    @wraps(command)
    def call(
        *arguments: Any,
        app_option: str | None,
        organization: str | None,
        project_option: str | None,
        config: Path | None,
        context_name: str | None,
        output: str,
        as_json: bool,
        quiet: bool,
        yes: bool,
        no_color: bool,
        **options: Any,
    ) -> Any:
        session = Session(
            app_option=app_option,
            organization=organization,
            project_option=project_option,
            config=config,
            context_name=context_name,
            output="json" if as_json else output,
            quiet=quiet,
            yes=yes,
            color=not no_color and sys.stderr.isatty(),
        )
        click.get_current_context().meta[OUTPUT] = session.output
        try:
            with told():
                return command(session, *arguments, **options)
        except click.ClickException as error:
            if isinstance(error, Failure) and error.exit_code == NOT_FOUND and organization in OUTPUTS:
                error.resolution = f"-o names an organization. For the form of output: --output {organization}"
            if session.output != "json":
                raise
            raise JsonFailure(error) from error
        finally:
            session.close()

    for option in reversed(_OPTIONS):
        call = option(call)
    return call  # type: ignore[return-value]  # click decorates the wrapper; callers use it as a command only


def about_no_app(command: F) -> F:
    """Have a command refuse `-a`, which would say nothing to it. The environment may name an app nevertheless."""

    @wraps(command)
    def call(session: Session, *arguments: Any, **options: Any) -> Any:
        if was_typed("app_option"):
            raise click.UsageError(f"{click.get_current_context().command_path} is about no app: leave out -a.")
        return command(session, *arguments, **options)

    return call  # type: ignore[return-value]  # used as a command only


class told:
    """Within it, problems of the API and of the way to it end the command with a message and an exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, (click.ClickException, click.exceptions.Exit, click.Abort)):
            return
        failure = _failure(error)
        if failure is not None:
            raise failure from error


def _failure(error: BaseException | None) -> Failure | None:
    from shellwego.cli.failure import exit_code  # noqa: PLC0415
    from shellwego.cli.remedies import remedy  # noqa: PLC0415
    from shellwego.client.transport import ApiProblem, Unreachable, UnusableName  # noqa: PLC0415

    match error:
        case ApiProblem():
            fields = "".join(
                f"\n  {field.field}: {field.message}" for field in error.errors if field.message not in error.detail
            )
            return Failure(
                error.detail + fields,
                code=exit_code(error.status, error.code),
                resolution=remedy(error.status, error.code, error.resolution),
                trace_id=error.trace_id,
                kind=error.code,
            )
        case UnusableName():
            return Failure(str(error), code=USAGE, resolution="Names and ids are not empty and have no slash.")
        case Unreachable():
            return Failure(str(error), code=FAILED, resolution="Is the platform up? On its machine: swg doctor")
        case UnicodeError():  # what it was is not told: it may be secret
            return Failure("what was given holds bytes that are no text in UTF-8", code=USAGE)
        case _:
            return None
