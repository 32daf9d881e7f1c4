"""What a use case refuses, and why. The rim maps these to HTTP, gRPC and exit codes; here they carry meaning only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    field: str
    code: str
    message: str
    limit: int | None = None
    """Of a quota: what may be had."""
    used: int | None = None
    """Of a quota: what is there already."""


class ShellWeGoError(Exception):
    """Base. `code` is stable kebab case, `message` what happened and where, `resolution` what to do about it."""

    temporary = False

    def __init__(self, code: str, message: str, *, resolution: str = "", errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.resolution = resolution
        self.errors = errors


class InvalidError(ShellWeGoError):
    """Well-formed, but means nothing sensible (422)."""


class MalformedError(ShellWeGoError):
    """Not well-formed (400)."""


class UnauthenticatedError(ShellWeGoError):
    """No credentials, or none that we know (401)."""


class ForbiddenError(ShellWeGoError):
    """Known, but not allowed, on a thing that the caller may see (403)."""


class NotFoundError(ShellWeGoError):
    """There is none, or it is somebody else's: both look the same (404)."""


class ConflictError(ShellWeGoError):
    """The name is taken, or the state forbids it (409)."""


class StaleError(ShellWeGoError):
    """Somebody changed it in between (412 where the client gave an ETag, retried inside otherwise)."""


class QuotaError(ShellWeGoError):
    """More than the plan allows (429)."""


class ThrottledError(QuotaError):
    """Too often in too short a time; `retry_after_s` says when it may be tried again (429)."""

    def __init__(self, code: str, message: str, *, resolution: str, retry_after_s: int) -> None:
        super().__init__(code, message, resolution=resolution)
        self.retry_after_s = retry_after_s


class UnavailableError(ShellWeGoError):
    """A part that is needed does not answer now (503)."""

    temporary = True
