"""What `swg doctor` tells of one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, but weaker than it should; or it could not be looked at."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: State
    message: str
    remedy: str = ""


def told(text: str) -> tuple[str, str]:
    """What is wrong and its remedy, of a reason that the engine gives as `what — remedy`."""
    message, _, remedy = text.partition(" — ")
    return message, remedy


def ok(check: str, message: str) -> Finding:
    """It is well."""
    return Finding(check, State.OK, message)


def warn(check: str, message: str, remedy: str = "") -> Finding:
    """It works, but not as well as it should."""
    return Finding(check, State.WARN, message, remedy)


def fail(check: str, message: str, remedy: str = "") -> Finding:
    """It does not work."""
    return Finding(check, State.FAIL, message, remedy)
