"""The engine's errors in the platform's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plasmavmc import errors as engine_errors
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, ShellWeGoError, UnavailableError


@contextmanager
def translated() -> Iterator[None]:
    """The engine's errors in the platform's words."""
    try:
        yield
    except engine_errors.NotFoundError as error:
        raise NotFoundError(error.code, error.brief, resolution=error.resolution) from error
    except (engine_errors.ConflictError, engine_errors.GuestError) as error:
        raise ConflictError(error.code, _told(error), resolution=error.resolution) from error
    except engine_errors.InvalidSpecError as error:
        raise InvalidError(error.code, error.brief, resolution=error.resolution) from error
    except engine_errors.PlasmaError as error:
        kind: type[ShellWeGoError] = UnavailableError if error.temporary else InvalidError
        raise kind(error.code, _told(error), resolution=error.resolution) from error


def _told(error: engine_errors.PlasmaError) -> str:
    """What happened and what was seen; the remedy goes its own way."""
    return " — ".join(filter(None, (error.brief, error.details)))
