"""How a command ends when it does not succeed: what went wrong, where, what to do, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from plasmavmc.errors import PlasmaError

OK, FAILED, USAGE, AUTH, NOT_FOUND, CONFLICT, NO_CAPACITY, QUOTA, UNHEALTHY = range(9)
TIMED_OUT, INTERRUPTED = 124, 130
RUN_FAILED, NOT_EXECUTABLE, NO_SUCH_COMMAND = 125, 126, 127
"""As container engines' `run` and `exec`: it was the engine that failed; the command exists but cannot be executed; it
does not exist. So a script can tell them from the workload's own codes, which are passed."""

_BY_KIND: Mapping[str, int] = {
    "InvalidSpecError": USAGE,
    "UnauthenticatedError": AUTH,
    "ForbiddenError": AUTH,
    "NotFoundError": NOT_FOUND,
    "ConflictError": CONFLICT,
    "CapacityError": NO_CAPACITY,
}
_BY_CODE: Mapping[str, int] = {"image-not-found": NOT_FOUND}
_RUN_BY_CODE: Mapping[str, int] = {
    "no-such-command": NO_SUCH_COMMAND,
    "exec-no-such-command": NO_SUCH_COMMAND,
    "not-executable": NOT_EXECUTABLE,
    "exec-not-executable": NOT_EXECUTABLE,
}


_FIELDS: Mapping[str, str] = {
    "spec.resources.memory_bytes": "--memory",
    "spec.resources.vcpus": "--cpus",
    "spec.resources.disk_bytes": "--disk",
    "spec.networks[0].network_id": "--network",
    "spec.networks[0].egress": "--egress",
    "spec.networks[0].identity": "--identity",
    "spec.networks[0].ingress": "--ingress",
    "spec.stop_signal": "--stop-signal",
    "spec.backend": "--backend",
    "spec.user": "--user",
    "spec.workdir": "-w",
    "spec.env": "-e",
    "spec.labels": "--label",
    "spec.published": "-p",
    "spec.image": "IMAGE",
    "start.reference": "IMAGE",
    "start.name": "--name",
    "tls.authority": "--tls-ca",
    "tls.certificate": "--tls-cert",
}
"""Fields of the services, as this command line calls them."""


class Failure(click.ClickException):
    """Ends the command with words on stderr and an exit code."""

    def __init__(self, message: str, *, code: int = FAILED, details: str = "", resolution: str = "") -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance, too
        self.details = details
        self.resolution = resolution

    def format_message(self) -> str:
        details = [f"  {line}" for line in self.details.splitlines()[-20:]]
        return "\n".join([self.message, *details, *([f"  → {self.resolution}"] if self.resolution else [])])


def failure_of(error: PlasmaError, *, running: bool = False) -> Failure:
    """An error of the engine as the end of a command; `running`: of one that passes a workload's exit code."""
    if running:
        code = _RUN_BY_CODE.get(error.code, RUN_FAILED)
    else:
        code = _BY_CODE.get(error.code, _BY_KIND.get(type(error).__name__, FAILED))
    return Failure(_in_our_words(error.brief), code=code, details=error.details, resolution=_ours(error.resolution))


def _in_our_words(brief: str) -> str:
    field, colon, words = brief.partition(": ")
    return f"{_FIELDS[field]}: {words}" if colon and field in _FIELDS else brief


def run_code(reason_code: str) -> int:
    """The exit code of a run whose workload never ran, by the reason that its VM gives."""
    return _RUN_BY_CODE.get(reason_code, RUN_FAILED)


def _ours(resolution: str) -> str:
    return resolution[:1].upper() + resolution[1:]
