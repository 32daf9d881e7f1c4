"""That a resolver deals with questions, as its keeper sees it: the time of a file.

Theory. The keeper asks as anybody does, and its question may be lost among those of others. A resolver that answers as many
as it can must not be ended for that. So one that had questions says so once a second; the keeper's own is one of them. While
nobody asks nothing is said.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

SAID_EVERY_S = 1.0
_FILE = "asked"


def say(run_dir: Path) -> None:
    """There were questions, and they were dealt with. Where that cannot be written the keeper has its own question only."""
    with suppress(OSError):
        (run_dir / _FILE).touch(mode=0o600)


def said(run_dir: Path) -> int:
    """When that was said last, in nanoseconds of the file system's clock; 0: never."""
    try:
        return (run_dir / _FILE).stat().st_mtime_ns
    except OSError:
        return 0
