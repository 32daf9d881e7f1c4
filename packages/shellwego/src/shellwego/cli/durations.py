"""How long something takes or how old it is, as people write it: `90s`, `10m`, `2h`, `1d`, or a bare number of seconds."""

from __future__ import annotations

import re
import time

from shellwego.cli.failure import USAGE, Failure

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 1000.0 * 365 * 86400
"""Beyond it calendars end, and what is meant is a mistake."""


def seconds(text: str, option: str = "--since") -> float:
    """The seconds that a text such as `90s` stands for.

    Raises:
        Failure: it stands for none, or for more than a thousand years.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)([smhd]?)", text, re.ASCII)
    if match is None:
        raise Failure(f"{option}: {text!r} is no time such as 90s, 10m, 2h or 30d", code=USAGE)
    found = float(match[1]) * _UNITS[match[2]]
    if found > _LONGEST_S:
        raise Failure(f"{option}: {text} is longer than a thousand years", code=USAGE)
    return found


def whole_seconds(text: str, option: str, *, least: str, most: str) -> int:
    """As `seconds`, without fractions, and within limits that are written as people write them.

    Raises:
        Failure: as `seconds`, or it is outside of them.
    """
    found = int(seconds(text, option))
    if not seconds(least) <= found <= seconds(most):
        raise Failure(f"{option}: {text} is not from {least} to {most}", code=USAGE)
    return found


def moment_ago(text: str | None) -> float | None:
    """The moment so long ago, in seconds since the epoch, for `--since`; None where nothing is said. Raises as `seconds`."""
    return None if text is None else max(0.0, time.time() - seconds(text))
