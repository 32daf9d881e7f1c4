"""Which driver of volumes an installation has: ZFS where the operator named a dataset, else what suits its directory, told
by a trial and never by the name of a file system.

Volumes are not moved when that changes, and an engine that does not find them would tell the platform that they are lost.
So an installation remembers its dataset, and does not start with another one.
"""

from __future__ import annotations

from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.operations import Zfs
from plasmavmc.host.zfs import check_dataset
from plasmavmc.storage.reflink import can_reflink, clone_file
from plasmavmc.storage.sparse import sparse_copy
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.directory import VolumeDirectory
from plasmavmc.storage.volumes.zfs.driver import open_zfs_volumes

DATASET_FILE = "volumes.zfs"
"""Holds the name of the dataset, beside the directory of volumes."""


def file_volumes(directory: Path) -> VolumeDirectory:
    """Works on every file system; a snapshot costs the volume's data."""
    return VolumeDirectory(directory, sparse_copy, name="file", at_once=False)


def reflink_volumes(directory: Path) -> VolumeDirectory:
    """`can_reflink(directory)` must hold."""
    return VolumeDirectory(directory, clone_file, name="reflink", at_once=True)


def choose_volumes(directory: Path) -> VolumeDriver:
    """The best driver that works in `directory`, which is made where it is missing. Its `name` tells which it is."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return reflink_volumes(directory) if can_reflink(directory) else file_volumes(directory)


async def open_volumes(directory: Path, host: Zfs, dataset: str = "") -> VolumeDriver:
    """The driver in use: on ZFS where a dataset is given (as the root helper was), else in `directory`.

    Raises:
        HostError: `volumes-elsewhere`, the installation has its volumes in another place; `bad-zfs-dataset`,
            `no-zfs-dataset`; `zfs-failed`; `storage-error`.
    """
    kept = directory.parent / DATASET_FILE
    before = kept.read_text().strip() if kept.exists() else ""
    if before and before != dataset:
        raise _elsewhere(f"the ZFS dataset {before}", f"Give --zfs {before}.")
    if not dataset:
        return choose_volumes(directory)
    if await choose_volumes(directory).volumes():
        raise _elsewhere(str(directory), "Leave out --zfs, or move those volumes by backups.")
    volumes = await open_zfs_volumes(host)
    kept.write_text(f"{check_dataset(dataset)}\n")
    return volumes


def _elsewhere(where: str, resolution: str) -> HostError:
    return HostError("volumes-elsewhere", f"this installation has its volumes in {where}", resolution=resolution)
