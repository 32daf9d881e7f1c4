"""The last lines of a VM's output, as they are told to the control plane: few enough that a thousand VMs which do not run
well leave room on the way there. Pure."""

from __future__ import annotations

from collections.abc import Sequence

LINES = 50
LINE_BYTES = 1000
TAIL_BYTES = 16 * 1024
"""Of all lines, in UTF-8, each with its end."""


def log_tail(lines: Sequence[str]) -> tuple[str, ...]:
    """The last of these lines that are within the bounds; long ones are cut."""
    kept: list[str] = []
    left = TAIL_BYTES
    for line in reversed(lines[-LINES:]):
        data = line[:LINE_BYTES].encode(errors="replace")[:LINE_BYTES]
        left -= len(data) + 1
        if left < 0:
            break
        kept.append(data.decode(errors="ignore"))
    return tuple(reversed(kept))
