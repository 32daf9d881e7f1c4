"""What can go wrong in the engine, told so that a person knows what to do and a loop knows whether to retry.

Each error carries a stable `code` (kebab case, never reworded), a `brief` (what happened and where, one line), `details`
(what was seen) and a `resolution` (what to do). `temporary` is the retry policy in the type: a temporary error may go
away by itself, a permanent one will not. Transport codes (HTTP, gRPC) are mapped at the rim only.
"""

from __future__ import annotations

import errno

MORE_ROOM = "Free space, or give the data directory a larger disk."
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class PlasmaError(Exception):
    """Base of all errors of the engine."""

    temporary = False

    def __init__(self, code: str, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief)
        self.code = code
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __str__(self) -> str:
        parts = (self.brief, self.details, self.resolution)
        return " — ".join(part for part in parts if part)


class InvalidSpecError(PlasmaError):
    """The caller asked for something that has no meaning; `field` names the part at fault."""

    def __init__(self, field: str, brief: str, *, resolution: str = "") -> None:
        super().__init__("invalid-spec", f"{field}: {brief}", resolution=resolution)
        self.field = field


class NotFoundError(PlasmaError):
    """The thing named does not exist, or is not the caller's."""


class ConflictError(PlasmaError):
    """The thing exists already, or its state forbids the move."""


class UnauthenticatedError(PlasmaError):
    """Nobody whom we know asks: no token, certificate or socket of a principal, or one that is not valid."""


class ForbiddenError(PlasmaError):
    """The caller may see the thing, but may not do this with it."""


class CapacityError(PlasmaError):
    """The host has no room: memory, addresses, disk, descriptors."""

    temporary = True


def is_disk_full(error: OSError) -> bool:
    """The disk has no room, or not for a file of that size, or not for us."""
    return error.errno in _DISK_FULL


def disk_full(brief: str, *, resolution: str = MORE_ROOM) -> CapacityError:
    """What `is_disk_full` is outside."""
    return CapacityError("disk-full", brief, resolution=resolution)


class UnavailableError(PlasmaError):
    """A part that is needed does not answer now."""

    temporary = True


class HostError(PlasmaError):
    """The host refused a privileged operation, or lacks a program."""


class ImageError(PlasmaError):
    """An image cannot be had or cannot be trusted: unknown reference, wrong digest, hostile layer."""


class GuestError(PlasmaError):
    """The guest misbehaved on its channel, or did not come up in time."""


class WorkloadError(GuestError):
    """The guest is well, but what it was told to run cannot be started: no such command, user or directory."""
