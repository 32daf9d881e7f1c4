"""Driver `file`: a disk is a sparse copy of its template. Works on every file system; a clone costs the template's data."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.storage.directory import DiskDirectory
from plasmavmc.storage.sparse import sparse_copy


class FileStorage(DiskDirectory):
    """`StorageBackend` over sparse copies."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, sparse_copy)

    @property
    def name(self) -> str:
        return "file"
