"""What drivers of volumes refuse, in one set of words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plasmavmc.errors import CapacityError, ConflictError, HostError, NotFoundError, disk_full, is_disk_full


def no_volume(volume_id: str) -> NotFoundError:
    return NotFoundError("volume-not-found", f"there is no volume {volume_id} on this node")


def no_snapshot(snapshot_id: str) -> NotFoundError:
    return NotFoundError("snapshot-not-found", f"there is no such snapshot {snapshot_id} on this node")


def volume_exists(volume_id: str) -> ConflictError:
    return ConflictError("volume-exists", f"volume {volume_id} exists already")


def snapshot_exists(snapshot_id: str) -> ConflictError:
    return ConflictError("snapshot-exists", f"snapshot {snapshot_id} exists already")


def has_snapshots(volume_id: str, count: int) -> ConflictError:
    return ConflictError(
        "volume-has-snapshots",
        f"volume {volume_id} has {count} snapshot{'s' if count > 1 else ''}",
        resolution="Delete its snapshots first.",
    )


def volumes_full(doing: str) -> CapacityError:
    return disk_full(f"cannot {doing}: no space left for volumes")


@contextmanager
def volume_errors(doing: str) -> Iterator[None]:
    """Turn what the file system refuses into the engine's errors; `doing` says what was tried, with the id."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise volumes_full(doing) from error
        raise HostError("storage-error", f"cannot {doing}: {error.strerror or error}", details=str(error)) from error
