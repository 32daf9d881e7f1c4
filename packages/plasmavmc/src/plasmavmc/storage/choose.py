"""Which storage driver suits a directory: told by a trial, never by the name of a file system."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.storage.backend import StorageBackend
from plasmavmc.storage.file import FileStorage
from plasmavmc.storage.reflink import ReflinkStorage, can_reflink


def choose_storage(directory: Path) -> StorageBackend:
    """The best driver that works in `directory`, which is made where it is missing. Its `name` tells which it is."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return ReflinkStorage(directory) if can_reflink(directory) else FileStorage(directory)
