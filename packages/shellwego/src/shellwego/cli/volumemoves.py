"""`swg volumes move`: a volume to another node, and its app with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import FAILED, TIMED_OUT, Failure
from shellwego.cli.output import show_one, size
from shellwego.cli.session import Session, about_no_app, shared

if TYPE_CHECKING:
    from shellwego.client.generated import VolumeDetail, VolumeMoveView

_POLL_S = 5.0
_STAGES = {
    "copying": "copies while the app runs",
    "stopping": "stops the app",
    "last": "copies what is left",
    "arriving": "the new node takes it over",
    "clearing": "starts the app, and deletes the copy left behind",
}
_ENDED = ("done", "failed", "cancelled")


@click.command("move")
@click.argument("name")
@click.option("--to", "node", metavar="NODE", help="The node that it is to be on, by name or id.")
@click.option("--cancel", is_flag=True, help="Give its move up: it stays where it is.")
@click.option("--detach", is_flag=True, help="Do not wait until it is done.")
@click.option(
    "--wait-timeout", type=float, default=3600.0, show_default=True, metavar="S", help="Wait so long at most."
)
@shared
@about_no_app
def move_volume(session: Session, name: str, node: str | None, cancel: bool, detach: bool, wait_timeout: float) -> None:
    """Bring a volume, with its snapshots, to another node; the app that mounts it follows.

    The app runs while it is copied, and is stopped for the last of it alone. How long that was is told at the end.
    """
    from shellwego.client.generated import VolumeMoveBody  # noqa: PLC0415

    if (node is None) == (not cancel):
        raise click.UsageError("Give --to, or --cancel.")
    if cancel:
        found = session.client.cancel_volume_move(name, project=session.project)
        session.say(f"{name} stays on {found.node}")
    else:
        found = session.client.move_volume(name, VolumeMoveBody(node=node or ""), project=session.project)
        if not detach:
            found = _followed(session, found, wait_timeout)
    _show(session, found)


def move_row(move: VolumeMoveView) -> str:
    """A move in one line."""
    told = f"{move.from_node} to {move.to_node}: {_STAGES.get(move.stage, move.stage)}"
    if move.stage not in _ENDED:
        told += f", round {move.rounds}, {size(move.sent_bytes + move.round_bytes)} so far"
    if move.stopped_s is not None:
        told += f", the app was stopped for {move.stopped_s:.1f} s"
    return f"{told} ({move.reason})" if move.reason else told


def _followed(session: Session, volume: VolumeDetail, wait_s: float) -> VolumeDetail:
    """The volume once its move is over; each stage is told as it begins.

    Raises:
        Failure: it came to nothing, or takes long.
    """
    deadline, told = time.monotonic() + wait_s, ""
    while volume.move is not None and volume.move.stage not in _ENDED:
        line = f"{volume.name}: {_STAGES.get(volume.move.stage, volume.move.stage)}"
        line += f" ({volume.move.reason})" if volume.move.reason else ""
        if line != told:
            session.say(line)
            told = line
        if time.monotonic() > deadline:
            resolution = f"See: swg volumes show {volume.name}"
            raise Failure(f"{volume.name} is still on its way: {line}", code=TIMED_OUT, resolution=resolution)
        volume = session.client.wait_volume(volume.id, version=volume.version, timeout=_POLL_S)
    if volume.move is None or volume.move.stage != "done":
        reason = volume.move.reason if volume.move else ""
        raise Failure(f"{volume.name} stays on {volume.node}: {reason or 'its move was given up'}", code=FAILED)
    stopped = "" if volume.move.stopped_s is None else f"; the app was stopped for {volume.move.stopped_s:.1f} s"
    session.say(f"{volume.name} is on {volume.node}{stopped}")
    return volume


def _show(session: Session, volume: VolumeDetail) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        "name": volume.name,
        "state": volume.state,
        "node": volume.node,
        "move": move_row(volume.move) if volume.move else None,
        "reason": volume.reason,
    }
    show_one(session, msgspec.to_builtins(volume), pairs, name=volume.name)
