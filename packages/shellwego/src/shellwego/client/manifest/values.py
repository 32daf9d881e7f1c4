"""Values as people write them: durations, commands, shares.

Raises: each function a `ValueError` that says what is wrong.
"""

from __future__ import annotations

import re
import shlex

_DURATION = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")
_FOR_A_SHELL = re.compile(r"[$`|&;<>*?~]")


def seconds(value: int | float | str) -> float:
    """Seconds of `30`, `30s`, `5m`, `1h30m`."""
    if not isinstance(value, str):
        return float(value)
    found = _DURATION.fullmatch(value.strip())
    if not value.strip() or found is None:
        raise ValueError(f"{value!r} is no duration; write seconds, or 30s, 5m, 1h30m")
    return 3600.0 * int(found["h"] or 0) + 60.0 * int(found["m"] or 0) + float(found["s"] or 0)


def arguments(command: str | list[str]) -> list[str]:
    """The arguments of a command. A text that only a shell would understand is refused: none is run."""
    if not isinstance(command, str):
        return list(command)
    special = _FOR_A_SHELL.search(command)
    if special is not None:
        remedy = f'["sh", "-c", {_quoted(command)}]'
        raise ValueError(f"{special[0]!r} means something to a shell only, and none is run; for one, write {remedy}")
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ValueError(f"its quotes are not closed: {error}") from error


def _quoted(text: str) -> str:
    """A text as TOML writes it."""
    return f"'{text}'" if "'" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def env_text(value: str | int | float | bool) -> str:
    """A variable's value as the process sees it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
