"""What the platform refuses, in the words of the engine's services, which make statuses of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from plasmavmc import errors as engine
from shellwego.core import errors as platform

_KINDS: Mapping[type[platform.ShellWeGoError], type[engine.PlasmaError]] = {
    platform.NotFoundError: engine.NotFoundError,
    platform.ConflictError: engine.ConflictError,
    platform.StaleError: engine.UnavailableError,
    platform.ForbiddenError: engine.ForbiddenError,
    platform.UnauthenticatedError: engine.UnauthenticatedError,
    platform.QuotaError: engine.CapacityError,
    platform.UnavailableError: engine.UnavailableError,
}


@contextmanager
def translated() -> Iterator[None]:
    """The platform's errors as the engine's."""
    try:
        yield
    except platform.ShellWeGoError as error:
        raise told(error) from error


def told(error: platform.ShellWeGoError) -> engine.PlasmaError:
    """One error. What has no meaning names the field at fault; what is malformed without one names the request."""
    if isinstance(error, platform.InvalidError | platform.MalformedError):
        fault = next(iter(error.errors), None)
        field, words = (fault.field, fault.message) if fault else ("request", error.message)
        return engine.InvalidSpecError(field, words, resolution=error.resolution)
    return _KINDS.get(type(error), engine.PlasmaError)(error.code, error.message, resolution=error.resolution)


def not_offered(what: str, instead: str) -> engine.ConflictError:
    """A method that the platform has no use case for."""
    return engine.ConflictError("not-offered", f"the platform does not {what}", resolution=instead)
