"""`swg volumes`: storage that outlives apps and their VMs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shellwego.cli.backups import backup_policy, backups, take_backup
from shellwego.cli.failure import FAILED, TIMED_OUT, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_one, show_removed, size
from shellwego.cli.presence import look_first
from shellwego.cli.rollout import follow
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.cli.volumemoves import move_row, move_volume
from shellwego.cli.volumestandbys import copies_rows, drop_copy, promote_volume, replicate_volume, standby_cell
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import SnapshotView, VolumeChange, VolumeDetail, VolumeView

_POLL_S = 20.0
_WAIT_S = 120.0
_BUSY = ("creating", "snapshotting", "restoring")
_SETTLED = "available,attached,error,deleting"
_detach = click.option("--detach", is_flag=True, help="Do not wait until it is done.")
_stage = click.option("--stage", is_flag=True, help="Roll nothing out; the next deploy takes it along.")


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def volumes() -> None:
    """Create, list, attach, resize, move, replicate, snapshot, restore and remove volumes."""


@volumes.command("ls")
@shared
@about_no_app
def list_volumes(session: Session) -> None:
    """List the project's volumes."""
    import msgspec  # noqa: PLC0415

    found = every(lambda cursor: session.client.list_volumes(project=session.project, limit=MOST, cursor=cursor))
    rows = [_row(volume) for volume in found]
    show(session, msgspec.to_builtins(found), rows, empty="no volumes yet: swg volumes create NAME --size 1gb")


@volumes.command("create")
@click.argument("name")
@click.option("--size", "size_text", metavar="SIZE", help="Such as 512m or 10gb. With --snapshot: at least its size.")
@click.option("--snapshot", metavar="ID", help="Begin as a copy of this snapshot, on its node.")
@click.option("--protect", is_flag=True, help="It cannot be removed before this is taken back.")
@click.option(
    "--encrypted/--no-encrypted",
    default=None,
    help="Whether its node stores it as ciphertext: it does, or as the snapshot is.",
)
@_detach
@shared
@about_no_app
def create_volume(
    session: Session,
    name: str,
    size_text: str | None,
    snapshot: str | None,
    protect: bool,
    encrypted: bool | None,
    detach: bool,
) -> None:
    """Make a volume, encrypted unless you say otherwise.

    An empty one gets its node with the first instance that mounts it.
    """
    from shellwego.client.generated import VolumeCreate  # noqa: PLC0415

    if size_text is None and snapshot is None:
        raise click.UsageError("Give --size, or --snapshot.")
    body = VolumeCreate(name=name, size=size_text, snapshot=snapshot, protected=protect, encrypted=encrypted)
    made = session.client.create_volume(body, project=session.project)
    _show(session, made if detach else _settled(session, made))
    if snapshot is None:
        session.say(f"next: swg volumes attach {name} -a APP --path /data, or [[mounts]] in shellwego.toml")


@volumes.command("show")
@click.argument("name")
@shared
@about_no_app
def show_volume(session: Session, name: str) -> None:
    """Show a volume: where it lives, who has it, who mounts it."""
    _show(session, session.client.get_volume(name, project=session.project))


@volumes.command("attach")
@click.argument("name")
@click.option("--path", "destination", required=True, metavar="PATH", help="Where the process finds it, as /data.")
@click.option("--process", default="web", show_default=True, help="The process that is to have it.")
@click.option("--read-only", is_flag=True, help="The process cannot write to it.")
@_stage
@_detach
@shared
def attach_volume(
    session: Session, name: str, destination: str, process: str, read_only: bool, stage: bool, detach: bool
) -> None:
    """Have a process of an app mount a volume, and roll that out.

    One instance has a volume, so the process runs once, and each deploy stops the old instance before the new one starts.
    """
    from shellwego.client.generated import AttachBody  # noqa: PLC0415

    if not destination.startswith("/"):
        raise click.UsageError(f"--path: {destination!r} is no absolute path, such as /data.")
    body = AttachBody(app=session.app, destination=destination, process=process, read_only=read_only, stage=stage)
    changed = session.client.attach_volume(name, body, project=session.project)
    _rolled_out(session, changed, f"{name} is mounted at {destination}", detach=detach)


@volumes.command("detach")
@click.argument("name")
@_stage
@_detach
@shared
@about_no_app
def detach_volume(session: Session, name: str, stage: bool, detach: bool) -> None:
    """Have the app that mounts it go on without it, and roll that out. What is on it stays."""
    from shellwego.client.generated import DetachBody  # noqa: PLC0415

    changed = session.client.detach_volume(name, DetachBody(stage=stage), project=session.project)
    _rolled_out(session, changed, f"{name} is no longer mounted", detach=detach)


@volumes.command("resize")
@click.argument("name")
@click.argument("size_text", metavar="SIZE")
@_detach
@shared
@about_no_app
def resize_volume(session: Session, name: str, size_text: str, detach: bool) -> None:
    """Make a volume larger, also while it is in use; the guest grows its file system by itself."""
    from shellwego.client.generated import ResizeBody  # noqa: PLC0415

    changed = session.client.resize_volume(name, ResizeBody(size=size_text), project=session.project)
    _show(session, changed if detach else _settled(session, changed))


@volumes.command("update")
@click.argument("name")
@click.option("--protect/--no-protect", required=True, help="Whether it is kept from being removed.")
@shared
@about_no_app
def update_volume(session: Session, name: str, protect: bool) -> None:
    """Protect a volume from being removed, or do so no more."""
    from shellwego.client.generated import VolumePatch  # noqa: PLC0415

    _show(session, session.client.update_volume(name, VolumePatch(protected=protect), project=session.project))


@volumes.command("snapshot")
@click.argument("name")
@click.option("--description", default="", metavar="TEXT", help="What it is kept for.")
@click.option("--freeze", is_flag=True, help="Have the guest's file system at rest meanwhile.")
@_detach
@shared
@about_no_app
def snapshot_volume(session: Session, name: str, description: str, freeze: bool, detach: bool) -> None:
    """Keep what a volume holds now. Without --freeze it is as after a power cut."""
    from shellwego.client.generated import SnapshotCreate  # noqa: PLC0415

    body = SnapshotCreate(description=description, freeze=freeze)
    taken = session.client.create_snapshot(name, body, project=session.project)
    if not detach:
        _settled(session, session.client.get_volume(name, project=session.project))
        taken = session.client.get_snapshot(name, taken.id, project=session.project)
    if taken.state == "error":
        raise Failure(f"the snapshot could not be taken: {taken.reason}", code=FAILED)
    _show_snapshot(session, taken)


@volumes.command("restore")
@click.argument("name")
@click.argument("snapshot", required=False)
@click.option("--backup", metavar="ID", help="Make a new volume of this backup, wherever it is mounted first.")
@click.option("--to", metavar="NAME", help="As a new volume of this name; the old one stays as it is.")
@_detach
@shared
@about_no_app
def restore_volume(
    session: Session, name: str, snapshot: str | None, backup: str | None, to: str | None, detach: bool
) -> None:
    """Put a volume back to one of its snapshots, while nothing has it; or make a new one of it, or of a backup."""
    from shellwego.client.generated import BackupRestore, RestoreBody  # noqa: PLC0415

    if (snapshot is None) == (backup is None):
        raise click.UsageError("Give a snapshot, or --backup.")
    if backup is not None and to is None:
        raise click.UsageError("A backup is made into a new volume: give --to.")
    if to is None:
        session.confirm(f"Put {name} back? What was written since the snapshot cannot be had back.")
    if backup is not None and to is not None:
        made = session.client.restore_backup(name, backup, BackupRestore(to=to), project=session.project)
        _show(session, made)
        session.say(f"next: swg volumes attach {to} -a APP --path /data; it is filled on the node where that begins")
        return
    body = RestoreBody(snapshot=snapshot or "", to=to)
    found = session.client.restore_volume(name, body, project=session.project)
    _show(session, found if detach else _settled(session, found))


@volumes.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@shared
@about_no_app
def remove_volumes(session: Session, names: tuple[str, ...]) -> None:
    """Destroy volumes; refused while something mounts one, it has snapshots, or it is protected."""
    look_first(session, names, lambda name: session.client.get_volume(name, project=session.project))
    session.confirm(f"Destroy {', '.join(names)}, with all data? This cannot be undone.")
    for name in names:
        session.client.delete_volume(name, project=session.project)
        session.say(f"{name} is being removed")
    show_removed(session, *names)


volumes.add_command(move_volume)
volumes.add_command(replicate_volume)
volumes.add_command(promote_volume)
volumes.add_command(drop_copy)
volumes.add_command(take_backup)
volumes.add_command(backups)
volumes.add_command(backup_policy)


@volumes.group("snapshots", cls=NounGroup)
def snapshots() -> None:
    """List and remove the snapshots of a volume."""


@snapshots.command("ls")
@click.argument("name")
@shared
@about_no_app
def list_snapshots(session: Session, name: str) -> None:
    """List a volume's snapshots, the newest first."""
    import msgspec  # noqa: PLC0415

    found = every(
        lambda cursor: session.client.list_snapshots(name, project=session.project, limit=MOST, cursor=cursor)
    )
    rows = [_snapshot_row(snapshot) for snapshot in found]
    show(session, msgspec.to_builtins(found), rows, name="id", empty=f"no snapshots yet: swg volumes snapshot {name}")


@snapshots.command("rm")
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@shared
@about_no_app
def remove_snapshots(session: Session, name: str, ids: tuple[str, ...]) -> None:
    """Destroy snapshots of a volume."""
    look_first(session, ids, lambda id_: session.client.get_snapshot(name, id_, project=session.project))
    session.confirm(f"Destroy {', '.join(ids)} of {name}? This cannot be undone.")
    for id_ in ids:
        session.client.delete_snapshot(name, id_, project=session.project)
        session.say(f"{id_} is being removed")
    show_removed(session, *ids)


def _row(volume: VolumeView | VolumeDetail) -> dict[str, object]:
    return {
        "name": volume.name,
        "state": volume.state,
        "size": size(volume.size_bytes),
        "used": size(volume.used_bytes),
        "node": volume.node,
        "standby": standby_cell(volume.standby),
        "instance": volume.instance_id,
        "age": age(volume.created_at),
        "reason": volume.reason,
    }


def _show(session: Session, volume: VolumeDetail) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        **_row(volume),
        "mounted by": ", ".join(volume.mounted_by),
        "move": move_row(volume.move) if volume.move else None,
        **copies_rows(volume),
        "encrypted": volume.encrypted,
        "protected": volume.protected,
        "copy of": volume.source_snapshot_id,
        "made of": volume.source_backup_id,
        "id": volume.id,
    }
    show_one(session, msgspec.to_builtins(volume), pairs, name=volume.name)


def _snapshot_row(snapshot: SnapshotView) -> dict[str, object]:
    return {
        "id": snapshot.id,
        "state": snapshot.state,
        "size": size(snapshot.size_bytes),
        "used": size(snapshot.used_bytes),
        "frozen": snapshot.freeze,
        "standby": None if snapshot.on_standby is None else "has it" if snapshot.on_standby else "not yet",
        "age": age(snapshot.created_at),
        "description": snapshot.description,
        "reason": snapshot.reason,
    }


def _show_snapshot(session: Session, snapshot: SnapshotView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(snapshot), _snapshot_row(snapshot), name=snapshot.id)


def _settled(session: Session, volume: VolumeDetail) -> VolumeDetail:
    """The volume once nothing is under way with it.

    Raises:
        Failure: it cannot be had, or it takes long.
    """
    deadline = time.monotonic() + _WAIT_S
    while volume.state in _BUSY:
        if time.monotonic() > deadline:
            resolution = f"See: swg volumes show {volume.name}"
            raise Failure(f"{volume.name} is still {volume.state}", code=TIMED_OUT, resolution=resolution)
        volume = session.client.wait_volume(volume.id, state=_SETTLED, timeout=_POLL_S)
    if volume.state == "error":
        raise Failure(f"{volume.name}: {volume.reason}", code=FAILED)
    return volume


def _rolled_out(session: Session, changed: VolumeChange, done: str, *, detach: bool) -> None:
    import msgspec  # noqa: PLC0415

    if changed.deployment_id is None:
        session.say(f"{done} with the next deploy")
    elif not detach:
        follow(session, changed.app_id, session.client.get_deployment(changed.app_id, changed.deployment_id))
        session.say(done)
    if session.output != "table":
        show_one(session, msgspec.to_builtins(changed), {}, name=changed.volume.name)
