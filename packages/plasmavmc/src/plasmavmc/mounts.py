"""Which volumes a VM may ask for, and where. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plasmavmc.errors import InvalidSpecError
from plasmavmc.types import DiskFormat, DiskSource, DiskSpec, check_id

MAX_DESTINATION = 255
_DISK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SYSTEM = ("/proc", "/sys", "/dev")
"""Not the image's: what is mounted over them would take from the guest what it lives by."""


def check_volumes(volumes: Sequence[DiskSpec]) -> None:
    """Refuse what makes no sense.

    Raises:
        InvalidSpecError: with the field at fault.
    """
    for index, volume in enumerate(volumes):
        _check_volume(f"volumes[{index}]", volume)
        for other in volumes[:index]:
            for name in ("id", "reference", "destination"):
                if getattr(volume, name) == getattr(other, name):
                    raise InvalidSpecError(f"volumes[{index}].{name}", "another volume of this VM has it")


def _check_volume(field: str, volume: DiskSpec) -> None:
    if not _DISK_ID.fullmatch(volume.id):
        raise InvalidSpecError(f"{field}.id", "an id has 1 to 64 characters of A-Z, a-z, 0-9, _, . and -")
    if volume.source is not DiskSource.VOLUME:
        raise InvalidSpecError(f"{field}.source", "only a volume can be mounted")
    if volume.format is not DiskFormat.RAW:
        raise InvalidSpecError(f"{field}.format", "a volume is raw")
    if volume.size_bytes:
        raise InvalidSpecError(f"{field}.size_bytes", "a volume has the size that it was made with")
    check_id(f"{field}.reference", volume.reference)
    _check_destination(f"{field}.destination", volume.destination)


def _check_destination(field: str, path: str) -> None:
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or any(part in {"", ".", ".."} for part in parts[1:]):
        raise InvalidSpecError(field, f"{path[:80]!r} is not the absolute path of a directory below /")
    if len(path.encode(errors="surrogateescape")) > MAX_DESTINATION or not path.isprintable():
        raise InvalidSpecError(field, f"a path has at most {MAX_DESTINATION} bytes, all printable")
    if any(path == system or path.startswith(f"{system}/") for system in _SYSTEM):
        raise InvalidSpecError(field, f"{', '.join(_SYSTEM)} are the guest's own")
