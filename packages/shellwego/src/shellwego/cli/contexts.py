"""`swg contexts`: the platforms that this machine knows, and which of them commands speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import NOT_FOUND, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import show, show_one, show_removed
from shellwego.cli.session import Session, about_no_app, choice, shared, was_typed

if TYPE_CHECKING:
    from shellwego.client.context import Context, ContextFile


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def contexts() -> None:
    """List the platforms that this machine knows; choose or forget one."""


def _document(session: Session, known: ContextFile, context: Context) -> dict[str, object]:
    """Of a context; never its token."""
    return {
        "name": context.name,
        "current": context.name == (session.context_name or known.current),
        "api": context.api_url,
        "project": context.project or None,
        "ca_file": context.ca_file or None,
        "token": bool(context.token),
    }


def _row(document: dict[str, object]) -> dict[str, object]:
    return {
        "name": document["name"],
        "current": "*" if document["current"] else "",
        **{name: document[name] for name in ("api", "project", "token")},
    }


@contexts.command("ls")
@shared
@about_no_app
def list_contexts(session: Session) -> None:
    """List the contexts, and which is used where none is named."""
    known = session.known_contexts
    found = [_document(session, known, each) for _, each in sorted(known.contexts.items())]
    show(session, found, [_row(each) for each in found], empty="no contexts yet: swg login --url URL")


@contexts.command("use")
@click.argument("name")
@shared
@about_no_app
def use_context(session: Session, name: str) -> None:
    """Have commands use a context where none is named; with -p, and this project of it."""
    from dataclasses import replace  # noqa: PLC0415

    from shellwego.client.context import save  # noqa: PLC0415

    known, context = _named(session, name)
    if was_typed("organization"):
        raise click.UsageError("A context keeps no organization: leave out -o. It keeps a project: -p PROJECT.")
    if was_typed("project_option"):  # what the environment says is not meant to be kept
        context = replace(context, project=session.project_option or "")
    changed = known.put(context, make_current=True)
    save(session.config_path, changed)
    document = _document(session, changed, context)
    show_one(session, document, _row(document), name=name)
    if session.context_name not in (None, name):
        session.say(f"SHELLWEGO_CONTEXT or --context names {session.context_name}, which goes before it")


@contexts.command("rm")
@click.argument("name")
@shared
@about_no_app
def remove_context(session: Session, name: str) -> None:
    """Forget a context. Its token stays valid: to end that, too, there is swg logout."""
    from shellwego.client.context import save  # noqa: PLC0415

    known, context = _named(session, name)
    left = known.without(name)
    save(session.config_path, left)
    session.say(f"{name} is forgotten here" + ("; its token stays valid" if context.token else ""))
    if left.contexts and not left.current:
        session.say(f"no context is current now: {choice(left)}")
    show_removed(session, name)


def _named(session: Session, name: str) -> tuple[ContextFile, Context]:
    """All contexts, and the one of this name.

    Raises:
        Failure: there is none.
    """
    known = session.known_contexts
    if name not in known.contexts:
        raise Failure(
            f"there is no context {name!r} in {session.config_path}", code=NOT_FOUND, resolution="See: swg contexts ls"
        )
    return known, known.contexts[name]
