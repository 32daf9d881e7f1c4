"""Which driver of volumes suits a directory: told by a trial, never by the name of a file system."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.storage.reflink import can_reflink, clone_file
from plasmavmc.storage.sparse import sparse_copy
from plasmavmc.storage.volumes.backend import VolumeDriver
from plasmavmc.storage.volumes.directory import VolumeDirectory


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
