"""`swg capabilities`: what the platform can do."""

from __future__ import annotations

import click

from shellwego.cli.output import show_one
from shellwego.cli.session import Session, about_no_app, shared


@click.command()
@shared
@about_no_app
def capabilities(session: Session) -> None:
    """Show what the platform can do now: strategies, what VMs can run on, the domain of its apps."""
    import msgspec  # noqa: PLC0415

    found = session.client.capabilities()
    backends = (f"{name} ({status})" for name, status in found.backends.items())
    pairs = {
        "strategies": ", ".join(found.strategies),
        "backends": ", ".join(backends),
        "domain": found.domain,
        "http port": found.http_port,
    }
    show_one(session, msgspec.to_builtins(found), pairs, name=found.domain)
