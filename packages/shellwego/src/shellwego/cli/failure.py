"""How a command ends when it does not succeed: what went wrong, where, what to do, and the exit code.

docs/reference/exit-codes.md lists the codes.
"""

from __future__ import annotations

from typing import IO, Any

import click

OK, FAILED, USAGE, AUTH, NOT_FOUND, CONFLICT, NO_CAPACITY, QUOTA, UNHEALTHY = range(9)
TIMED_OUT, INTERRUPTED = 124, 130
OUTPUT = "shellwego.output"
"""Where a command that runs tells, in its context's `meta`, how it prints results."""
_BY_STATUS = {
    400: USAGE,
    401: AUTH,
    403: AUTH,
    404: NOT_FOUND,
    409: CONFLICT,
    412: CONFLICT,
    413: USAGE,
    422: USAGE,
    429: QUOTA,
    431: USAGE,
}


_KINDS = {
    USAGE: "usage",
    AUTH: "not-allowed",
    NOT_FOUND: "not-found",
    CONFLICT: "conflict",
    NO_CAPACITY: "no-capacity",
    QUOTA: "quota",
    UNHEALTHY: "unhealthy",
    TIMED_OUT: "timed-out",
}


class Failure(click.ClickException):
    """Ends the command with a message on stderr and an exit code. `kind` is the stable code of an API's problem."""

    def __init__(
        self, message: str, *, code: int = FAILED, resolution: str = "", trace_id: str = "", kind: str = ""
    ) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance, too
        self.resolution = resolution
        self.trace_id = trace_id
        self.kind = kind

    def format_message(self) -> str:
        from shellwego.client.text import printable  # noqa: PLC0415 - only after a failure

        lines = [self.message]
        if self.resolution:
            lines.append(f"  → {self.resolution}")
        if self.trace_id:
            lines.append(f"  trace id: {self.trace_id}")
        return printable("\n".join(lines))


class JsonFailure(click.ClickException):
    """A failure as one line of JSON on stderr, for who asked for JSON."""

    def __init__(self, error: click.ClickException) -> None:
        super().__init__(error.message if isinstance(error, Failure) else error.format_message())
        self.exit_code = error.exit_code  # type: ignore[misc]
        self._error = error

    def show(self, file: IO[Any] | None = None) -> None:
        import json  # noqa: PLC0415 - only after a failure

        error = self._error
        told = {
            "code": getattr(error, "kind", "") or _KINDS.get(self.exit_code, "failed"),
            "message": self.message,
            "resolution": getattr(error, "resolution", ""),
            "trace_id": getattr(error, "trace_id", ""),
            "exit_code": self.exit_code,
        }
        click.echo(json.dumps({name: value for name, value in told.items() if value}), err=True)


def exit_code(status: int, code: str) -> int:
    """The exit code for a problem of the API, by its status and stable code."""
    if code in ("no-capacity", "cannot-be-placed"):
        return NO_CAPACITY
    if code == "unknown":
        return FAILED  # not an answer of our API, so its status means nothing here
    return _BY_STATUS.get(status, FAILED)
