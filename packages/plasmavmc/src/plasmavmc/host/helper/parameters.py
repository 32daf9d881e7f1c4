"""Parameters of the kernel, below /proc/sys."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def set_parameter(path: Path, value: int) -> None:
    """Set a kernel parameter; one that this kernel does not have (IPv6 built out) needs no setting."""
    with suppress(FileNotFoundError):
        path.write_text(f"{value}\n")
