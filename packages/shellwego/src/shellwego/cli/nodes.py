"""`swg nodes`: the servers that VMs run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, cores, show, show_one, size
from shellwego.cli.session import Session, about_no_app, shared

if TYPE_CHECKING:
    from shellwego.client.generated import BackendView, NodeView


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def nodes() -> None:
    """List and show nodes, and say what may be placed on them."""


def _backend(backend: BackendView) -> str:
    if backend.status != "ready":
        return f"{backend.name} {backend.status}"
    return f"{backend.name} ({'emulated' if backend.acceleration == 'tcg' else backend.acceleration})"


def _row(node: NodeView) -> dict[str, object]:
    return {
        "name": node.name,
        "health": node.health,
        "scheduling": node.scheduling,
        "instances": node.instances,
        "cpu": cores(node.cpu_milli),
        "memory": size(node.memory_bytes),
        "backends": ", ".join(_backend(backend) for backend in node.backends),
        "heard": age(node.last_heard_at.isoformat()),
    }


@nodes.command("ls")
@shared
@about_no_app
def list_nodes(session: Session) -> None:
    """List the nodes."""
    import msgspec  # noqa: PLC0415

    found = session.client.list_nodes(limit=100).data
    show(session, msgspec.to_builtins(found), [_row(node) for node in found])


@nodes.command("show")
@click.argument("node")
@shared
@about_no_app
def show_node(session: Session, node: str) -> None:
    """Show one node: what it has, what bounds its VMs, and what is weaker than it should be."""
    _show(session, session.client.get_node(node))


@nodes.command("cordon")
@click.argument("node")
@shared
@about_no_app
def cordon_node(session: Session, node: str) -> None:
    """Place nothing new on a node; what is there stays."""
    _show(session, session.client.cordon_node(node))


@nodes.command("uncordon")
@click.argument("node")
@shared
@about_no_app
def uncordon_node(session: Session, node: str) -> None:
    """Let a node have microVMs again."""
    _show(session, session.client.uncordon_node(node))


def _show(session: Session, found: NodeView) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        **_row(found),
        "id": found.id,
        "hostname": found.hostname,
        "region": f"{found.region}/{found.zone}",
        "disk": size(found.disk_bytes),
        "promised": f"CPU {found.cpu_overcommit} times over, disk {found.disk_overcommit} times",
        "confinement": found.confinement,
        "version": found.version,
        "epoch": found.epoch,
    }
    show_one(session, msgspec.to_builtins(found), pairs, name=found.name)
    if session.output == "table":
        for backend in found.backends:
            isolation = f"{backend.acceleration}, {backend.isolation}" if backend.status == "ready" else backend.status
            click.echo(f"backend {backend.name}: {isolation}" + (f" — {backend.reason}" if backend.reason else ""))
        for warning in found.warnings:
            click.echo(f"warning: {warning}")
