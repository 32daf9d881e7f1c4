"""Whose turn it is to try: first tries run side by side, and a retry runs alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Of the threads of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._waiting_to_be_alone = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Beside others; whoever waits to be alone goes before."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting_to_be_alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Beside nobody."""
        with self._changed:
            self._waiting_to_be_alone += 1
            self._changed.wait_for(lambda: not self._alone and not self._together)
            self._waiting_to_be_alone -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
