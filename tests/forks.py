"""Work in a child of the tests' own process, for the sake of its closures.

Only the thread that forks lives on in the child: what other threads held stays locked there, and what is collected there may
wait for them for good. So nothing of the parent's is collected, and a child that stands still is ended by an alarm: its test
fails then, where it would hang. What talks to databases has a process of its own instead.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable

_PATIENCE_S = 300


def in_child(work: Callable[[], int]) -> int:
    """How the child ended: the exit code that the work gave, 1 where it raised, and -N where signal N ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            gc.freeze()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_PATIENCE_S)
            code = work()
        except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
