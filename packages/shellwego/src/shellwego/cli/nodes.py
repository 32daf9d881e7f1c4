"""`swg nodes`: the servers that VMs run on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shellwego.cli import joining
from shellwego.cli.durations import seconds
from shellwego.cli.failure import TIMED_OUT, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.labels import labels_of
from shellwego.cli.output import age, cores, show, show_one, show_removed, size, table
from shellwego.cli.progress import StageProgress
from shellwego.cli.prompts import at_terminal
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every
from shellwego.client.text import one_line

if TYPE_CHECKING:
    from shellwego.client.generated import BackendView, MoveView, NodeView, RebalanceView, TunnelKeyView

_POLL_S = 1.0
_SHOWN_OF_A_KEY = 8


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def nodes() -> None:
    """List, show, join and label nodes, say what may be placed on them, empty and remove them."""


for each in (joining.join_token, joining.join_tokens, joining.keys, joining.authorities):
    nodes.add_command(each)


def _backend(backend: BackendView) -> str:
    if backend.status != "ready":
        return f"{backend.name} {backend.status}"
    return f"{backend.name} ({'emulated' if backend.acceleration == 'tcg' else backend.acceleration})"


def _row(node: NodeView) -> dict[str, object]:
    return {
        "name": node.name,
        "health": f"{node.health}, flapping" if node.flapping else node.health,
        "scheduling": node.scheduling,
        "instances": node.instances,
        "cpu": cores(node.cpu_milli),
        "memory": size(node.memory_bytes),
        "backends": ", ".join(_backend(backend) for backend in node.backends),
        "heard": age(node.last_heard_at),
    }


@nodes.command("ls")
@shared
@about_no_app
def list_nodes(session: Session) -> None:
    """List the nodes."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_nodes(limit=MOST, cursor=cursor))
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


@nodes.command("label")
@click.argument("node")
@click.argument("labels", nargs=-1, metavar="[NAME=VALUE | NAME-]...")
@click.option("--region", metavar="NAME", help="The region that it is in.")
@click.option("--zone", metavar="NAME", help="The zone of that region that it is in.")
@shared
@about_no_app
def label_node(session: Session, node: str, labels: tuple[str, ...], region: str | None, zone: str | None) -> None:
    """Set labels of a node (`disk=ssd`), or remove them (`disk-`); and say where it is."""
    from shellwego.client.generated import NodePatch  # noqa: PLC0415

    removed = [text for text in labels if text.endswith("-") and "=" not in text]
    kept = labels_of((text for text in labels if text not in removed), "NAME=VALUE or NAME-")
    wanted = {**kept, **{text[:-1]: None for text in removed}}
    if len(wanted) < len(labels):
        raise click.UsageError("A label is named twice.")
    if not wanted and region is None and zone is None:
        raise click.UsageError("Nothing to change: give NAME=VALUE, NAME-, --region or --zone.")
    _show(session, session.client.update_node(node, NodePatch(labels=wanted, region=region, zone=zone)))


@nodes.command("rotate-keys")
@shared
@about_no_app
def rotate_node_keys(session: Session) -> None:
    """Let all nodes that encrypt (--underlay wireguard) replace their keys now; no packet is lost.

    `swg nodes show` tells how old a node's keys are.
    """
    import msgspec  # noqa: PLC0415

    found = session.client.rotate_node_keys()
    over = f"{found.over_at:%Y-%m-%dT%H:%M:%SZ}"
    row = {"nodes": found.nodes, "began": age(found.began_at), "over": over}
    show_one(session, msgspec.to_builtins(found), row, name=over)


@nodes.command("rm")
@click.argument("node")
@click.option("--force", is_flag=True, help="Also one that is neither drained nor down: all that runs there is lost.")
@shared
@about_no_app
def remove_node(session: Session, node: str, force: bool) -> None:
    """Forget a node that is drained or down. Its agent is told so, and stops what still runs there."""
    found = session.client.get_node(node)
    lost = f" {found.instances} instances that live there are lost." if found.instances else ""
    session.confirm(f"Remove the node {found.name}?{lost}")
    session.client.remove_node(found.id, force=force)
    session.say(f"{found.name} is removed")
    show_removed(session, found.name)


@nodes.command("drain")
@click.argument("node")
@click.option("--deadline", metavar="AGE", help="After so long tell what is left, such as 10m; with --force, stop it.")
@click.option("--force", is_flag=True, help="Stop what is left at the deadline, replaced or not.")
@click.option(
    "--parallel", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many move at a time."
)
@click.option("--with-volumes", "volumes", is_flag=True, help="Move the volumes there, too, and their apps with them.")
@click.option("--detach", is_flag=True, help="Return at once; swg nodes show tells how far it came.")
@shared
@about_no_app
def drain_node(
    session: Session, node: str, deadline: str | None, force: bool, parallel: int, volumes: bool, detach: bool
) -> None:
    """Empty a node: all that runs there is replaced elsewhere, none of it before another one serves.

    It ends when the node is drained. `swg nodes uncordon` ends it before: what has begun to move still moves.
    """
    from shellwego.client.generated import DrainBody  # noqa: PLC0415

    after = None if deadline is None else seconds(deadline, "--deadline")
    found = session.client.drain_node(node, DrainBody(deadline=after, force=force, parallel=parallel, volumes=volumes))
    _show(session, found if detach else _emptied(session, found))


@nodes.command("rebalance")
@click.option("--cancel", is_flag=True, help="Let stay what is queued; what has begun to move still moves.")
@click.option("--detach", is_flag=True, help="Return once it is queued.")
@shared
@about_no_app
def rebalance_nodes(session: Session, cancel: bool, detach: bool) -> None:
    """Show which instances would better run on an emptier node, and why; and move them, ten at a time.

    It asks before it moves any; without a terminal it moves them with --yes only.
    """
    if cancel:
        session.client.cancel_rebalance()
        session.say("what was queued stays")
        return
    found = session.client.get_rebalance()
    if not found.moves or not (session.yes or at_terminal()):
        _show_moves(session, found)
        if found.moves:
            session.say("nothing was moved: add --yes")
        return
    if not session.yes:
        click.echo(table([_move_row(move) for move in found.moves]), err=True)
        session.confirm(f"Move {len(found.moves)} instances?")
    found = session.client.begin_rebalance()
    if not detach:
        _balanced(session)
    _show_moves(session, found)


def _show_moves(session: Session, found: RebalanceView) -> None:
    import msgspec  # noqa: PLC0415

    busy = found.queued or found.moving
    empty = f"{found.moving} move, {found.queued} wait" if busy else "nothing would better run elsewhere"
    show(session, msgspec.to_builtins(found), [_move_row(move) for move in found.moves], empty=empty)


def _move_row(move: MoveView) -> dict[str, object]:
    return {
        "name": move.instance_id,
        "instance": f"{move.app}/{move.process}.{move.slot}",
        "from": move.from_node,
        "to": move.to_node,
        "reason": move.reason,
    }


def _balanced(session: Session) -> None:
    """Follow what moves to its end."""
    progress = StageProgress(session)
    while (state := session.client.get_rebalance()).queued or state.moving:
        progress.update("moving", f"{state.moving} move, {state.queued} wait")
        time.sleep(_POLL_S)
    progress.done("all have moved", good=True)


def _emptied(session: Session, node: NodeView) -> NodeView:
    """The node once it is drained.

    Raises:
        Failure: somebody ended the drain; or its deadline has passed, and what is left is not to be stopped.
    """
    progress = StageProgress(session)
    while node.drain is not None and not (node.drain.overdue and not node.drain.force):
        waits = [f"{each.app}/{each.process}.{each.slot} {each.reason}" for each in node.drain.waiting[:1]]
        waits = waits or [f"{each.volume} {each.reason}" for each in node.drain.volumes_left[:1]]
        progress.update("draining", f"{node.drain.instances_left} left; {'; '.join(waits)}" if waits else "")
        time.sleep(_POLL_S)
        node = session.client.get_node(node.id)
    if node.scheduling == "drained":
        progress.done(f"{node.name} is drained", good=True)
        return node
    if node.drain is None:
        raise Failure(f"{node.name} is {node.scheduling}: somebody ended the drain")
    raise Failure(
        f"{node.name} is not empty at the deadline: {node.drain.instances_left} left",
        code=TIMED_OUT,
        resolution=f"See swg nodes show {node.name}. It goes on; --deadline 0 --force stops what is left.",
    )


def _key_age(key: TunnelKeyView) -> str:
    return f"{key.public_key[:_SHOWN_OF_A_KEY]} ({age(key.since) if key.since else 'age unknown'})"


def _show(session: Session, found: NodeView) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        **_row(found),
        "id": found.id,
        "hostname": found.hostname,
        "region": f"{found.region}/{found.zone}",
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(found.labels.items())),
        "disk": size(found.disk_bytes),
        "promised": f"CPU {found.cpu_overcommit} times over, disk {found.disk_overcommit} times",
        "confinement": found.confinement,
        "hints": found.hints or "local",
        **({"keys": ", ".join(map(_key_age, found.tunnel_keys))} if found.tunnel_keys else {}),
        "version": found.version,
        "epoch": found.epoch,
    }
    show_one(session, msgspec.to_builtins(found), pairs, name=found.name)
    if session.output == "table":
        for backend in found.backends:
            isolation = f"{backend.acceleration}, {backend.isolation}" if backend.status == "ready" else backend.status
            reason = f" — {backend.reason}" if backend.reason else ""
            click.echo(one_line(f"backend {backend.name}: {isolation}{reason}"))
        for warning in found.warnings:
            click.echo(one_line(f"warning: {warning}"))
        if found.flapping:
            until = f" (by {found.steady_at:%Y-%m-%dT%H:%M:%SZ})" if found.steady_at else ""
            click.echo(
                f"warning: goes down again and again: gets nothing new until it was steady{until}, or uncordoned"
            )
        for each in found.drain.waiting if found.drain else ():
            click.echo(one_line(f"left {each.app}/{each.process}.{each.slot} ({each.instance_id}): {each.reason}"))
        for volume in found.drain.volumes_left if found.drain else ():
            click.echo(one_line(f"left volume {volume.volume} ({volume.volume_id}): {volume.reason}"))
