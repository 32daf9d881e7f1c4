"""What stores of objects refuse, in one set of words."""

from __future__ import annotations

from shellwego.core.errors import NotFoundError, UnavailableError


def no_object(path: str) -> NotFoundError:
    return NotFoundError("object-not-found", f"the store has no {path}")


def unavailable(doing: str, reason: str) -> UnavailableError:
    """`reason` is told to operators and users: it names no credentials."""
    return UnavailableError(
        "objects-unavailable",
        f"the store of backups cannot {doing}: {reason}",
        resolution="It is tried again. If it stays so, the platform's operator has to look at [backups].",
    )
