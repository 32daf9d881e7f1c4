"""`swg releases` and `swg rollback`."""

from __future__ import annotations

from dataclasses import asdict

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one
from shellwego.cli.rollout import Choice, finish, rollout_options
from shellwego.cli.session import Session, shared

_LIMIT = click.option("-n", "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many.")


@click.group(cls=NounGroup, invoke_without_command=True)
@_LIMIT
@shared
def releases(session: Session, limit: int) -> None:
    """List an app's releases, the newest first; or show how two of them differ."""
    if click.get_current_context().invoked_subcommand is None:
        _list(session, limit)


@releases.command("ls")
@_LIMIT
@shared
def list_releases(session: Session, limit: int) -> None:
    """List an app's releases, the newest first."""
    _list(session, limit)


def _list(session: Session, limit: int) -> None:
    import msgspec  # noqa: PLC0415

    found = session.client.list_releases(session.app, project=session.project, limit=limit).data
    rows = [
        {
            "release": f"v{release.number}",
            "current": "*" if release.current else "",
            "state": release.state,
            "image": release.config.image,
            "digest": release.image_digest[7:19],
            "age": age(release.created_at),
            "by": release.created_by_email or release.created_by,
            "description": release.description,
        }
        for release in found
    ]
    show(session, msgspec.to_builtins(found), rows, name="release", empty="no releases yet: swg deploy")


@releases.command("show")
@click.argument("release")
@shared
def show_release(session: Session, release: str) -> None:
    """Show one release, such as v3. Of its variables only the names are told."""
    import msgspec  # noqa: PLC0415

    found = session.client.get_release(session.app, release, project=session.project)
    pairs = {
        "release": f"v{found.number}",
        "current": found.current,
        "state": found.state,
        "image": found.config.image,
        "digest": found.image_digest,
        "processes": ", ".join(process.name for process in found.config.processes),
        "variables": ", ".join(found.config.env_names),
        "age": age(found.created_at),
        "by": found.created_by_email or found.created_by,
        "description": found.description,
        "id": found.id,
    }
    show_one(session, msgspec.to_builtins(found), pairs, name=f"v{found.number}")


@releases.command("diff")
@click.argument("before")
@click.argument("after")
@shared
def diff(session: Session, before: str, after: str) -> None:
    """Show what changed from one release to another, such as v3 v4. Values of variables are not shown."""
    import msgspec  # noqa: PLC0415

    found = session.client.diff_releases(session.app, after, against=before, project=session.project)
    rows = [{"what": each.field, "before": each.before, "after": each.after} for each in found.changes]
    show(session, msgspec.to_builtins(found), rows, name="what", empty="they do not differ")


@click.command()
@click.argument("release", required=False)
@rollout_options
@shared
def rollback(session: Session, release: str | None, choice: Choice, detach: bool) -> None:
    """Go back to an earlier release (v3), or to the one before.

    It makes a new release with the old content; what runs with the same content already is kept.
    """
    from shellwego.client.generated import RollbackBody  # noqa: PLC0415

    body = RollbackBody(release=release, **asdict(choice))
    deployment = session.client.rollback_app(session.app, body, project=session.project)
    finish(session, session.app, deployment, detach=detach)
