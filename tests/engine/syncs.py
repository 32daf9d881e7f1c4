"""What is brought to the disk, as a test sees it: by names, and refused where it says so."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest


class Syncs:
    """Names of the files that were brought to the disk, as they were at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.in_event_loop: list[str] = []
        """Those for which nobody else could go on meanwhile."""
        self.refused: set[str] = set()
        """Names of files that the disk does not take."""
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._note)

    def _note(self, descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if name in self.refused:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(descriptor)
        self.names.append(name)
        if threading.current_thread() is threading.main_thread():
            self.in_event_loop.append(name)
