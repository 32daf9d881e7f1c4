"""Unprivileged processes that outlive who starts them: each in a session of its own, with nothing of ours but the
descriptors it is given."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from plasmavmc.errors import HostError
from plasmavmc.host.run import PATH

_FIRST = 3
_ABOVE = 128
"""Numbers that no target has."""


def start_daemon(argv: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start a program; descriptor i becomes number 3 + i. Returns its pid; it is our child, and ours to reap. It begins with
    SIGHUP held back, so that a hint which comes before it can take one waits.

    Raises:
        HostError: `not-started`.
    """
    null = os.devnull
    moved = [(os.POSIX_SPAWN_DUP2, each, _ABOVE + place) for place, each in enumerate(descriptors)]
    placed = [(os.POSIX_SPAWN_DUP2, _ABOVE + place, _FIRST + place) for place in range(len(descriptors))]
    closed = [(os.POSIX_SPAWN_CLOSE, _ABOVE + place) for place in range(len(descriptors))]
    try:
        return os.posix_spawn(
            argv[0],
            list(argv),
            {"PATH": PATH, "LC_ALL": "C.UTF-8"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, null, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                *moved,
                *placed,
                *closed,
            ],
            setsid=True,
            setsigmask=[signal.SIGHUP],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
    except OSError as error:
        raise HostError("not-started", f"{argv[0]} cannot be started: {error.strerror}") from error
