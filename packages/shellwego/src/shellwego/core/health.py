"""What an agent's checks say of a VM."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    WAITING = "waiting"
    """This attempt never passed its checks yet."""
    PASSING = "passing"
    FAILING = "failing"
    """It passed, and then failed as often in a row as the check allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the checks say of one VM."""

    vm_id: str
    verdict: Verdict = Verdict.WAITING
    reason: str = ""
    """Why it does not pass, in the check's words."""
    log_tail: tuple[str, ...] = ()
    """The last lines of a VM that does not pass, for whoever wants to know why."""
    since: float = 0.0
    """Monotonic time from which the verdict holds."""
