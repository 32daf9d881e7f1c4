"""`swg volumes replicate`, `promote`, `drop-copy`: a copy of a volume on another node, for when its own is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.durations import whole_seconds
from shellwego.cli.output import show_one, show_removed
from shellwego.cli.session import Session, about_no_app, shared

if TYPE_CHECKING:
    from shellwego.client.generated import CopyView, PromotionView, VolumeDetail


@click.command("replicate")
@click.argument("name")
@click.option("--every", metavar="TIME", help="How old the copy may become, such as 60s or 5m: so much may be lost.")
@click.option("--to", "node", metavar="NODE", help="Where it is kept, by name or id; left out: where there is room.")
@click.option(
    "--automatic/--by-hand", default=True, help="Whether it becomes the volume by itself once the node is lost."
)
@click.option("--off", is_flag=True, help="Keep no copy any more.")
@shared
@about_no_app
def replicate_volume(
    session: Session, name: str, every: str | None, node: str | None, automatic: bool, off: bool
) -> None:
    """Keep a standby copy of a volume on another node, which becomes the volume where its node is lost.

    What has such a volume ends where its node does not hear the platform for 40 s, and comes again when it does.
    """
    from shellwego.client.generated import ReplicationBody  # noqa: PLC0415

    if (every is None) == (not off):
        raise click.UsageError("Give --every, or --off.")
    if off:
        _show(session, session.client.stop_volume_replication(name, project=session.project))
        session.say(f"no copy of {name} is kept any more")
        return
    age = whole_seconds(every or "", "--every", least="5s", most="7d")
    body = ReplicationBody(every_s=age, node=node, automatic=automatic)
    found = session.client.replicate_volume(name, body, project=session.project)
    _show(session, found)
    if found.standby is not None:
        session.say(f"a copy of {name} is kept on {found.standby.node}, at most {found.standby.every_s} s old")


@click.command("promote")
@click.argument("name")
@shared
@about_no_app
def promote_volume(session: Session, name: str) -> None:
    """Let the standby copy of a volume become the volume, once its node is down and nothing there can have it any more.

    What the lost node has of it is left there: swg volumes show lists it, swg volumes drop-copy destroys it.
    """
    found = session.client.promote_volume(name, project=session.project)
    _show(session, found)
    if found.promotion is not None:
        session.say(f"{name} is on {found.node}: {promotion_row(found.promotion)}")


@click.command("drop-copy")
@click.argument("name")
@click.argument("copy")
@shared
@about_no_app
def drop_copy(session: Session, name: str, copy: str) -> None:
    """Destroy a copy that was left behind on a node that was lost. What only it has cannot be had back."""
    session.confirm(f"Destroy what {name} was on the node that was lost? It cannot be had back.")
    session.client.drop_volume_copy(name, copy, project=session.project)
    session.say(f"{copy} is being destroyed")
    show_removed(session, copy)


def copy_row(copy: CopyView) -> str:
    """A copy in one line."""
    told = f"{copy.purpose} on {copy.node or 'no node yet'}: {copy.state}"
    if copy.age_s is not None:
        told += f", {copy.age_s:.0f} s old"
    if copy.every_s is not None:
        told += f" (at most {copy.every_s} s are asked for{'' if copy.automatic else '; by hand'})"
    if copy.purpose == "left":
        told += f", {copy.id}"
    return f"{told}: {copy.reason}" if copy.reason else told


def standby_cell(copy: CopyView | None) -> str | None:
    """A standby in a column of a table."""
    if copy is None:
        return None
    age = "" if copy.age_s is None else f" {copy.age_s:.0f} s"
    return f"{copy.node or '-'} {copy.state}{age}"


def promotion_row(promotion: PromotionView) -> str:
    """A promotion in one line."""
    return f"taken over from {promotion.from_node}, without what was written in the last {promotion.lost_s:.0f} s there"


def copies_rows(volume: VolumeDetail) -> dict[str, object]:
    """What is told of a volume's copies when it is shown."""
    return {
        "copies": "; ".join(map(copy_row, volume.copies)) or None,
        "promotion": promotion_row(volume.promotion) if volume.promotion else None,
    }


def _show(session: Session, volume: VolumeDetail) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {"name": volume.name, "state": volume.state, "node": volume.node, **copies_rows(volume)}
    show_one(session, msgspec.to_builtins(volume), {**pairs, "reason": volume.reason}, name=volume.name)
