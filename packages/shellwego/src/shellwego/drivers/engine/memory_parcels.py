"""What a sleeping VM of the memory engine is on its way to another one: whose it is, what it fits, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shellwego.core.assignments import Workload
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.wire.codec import decode, encode

WHOLE = b"whole"
"""Ends a memory that was sent."""
_PART_BYTES = 64

SnapshotHost = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    whose: tuple[str, str, str]
    """Organization, project and image."""
    host: SnapshotHost
    files: Mapping[str, bytes]


def packed(work: Workload, host: SnapshotHost, files: Mapping[str, bytes]) -> Iterator[bytes]:
    """It in parts; `WHOLE` is to follow."""
    sent = encode(_Parcel(whose=_whose(work), host=host, files=files))
    for at in range(0, len(sent), _PART_BYTES):
        yield sent[at : at + _PART_BYTES]


def unpacked(received: bytes, work: Workload, host: SnapshotHost) -> dict[str, bytes]:
    """Its files, for this workload on this host.

    Raises:
        InvalidError: `snapshot-damaged`.
        ConflictError: `snapshot-foreign`.
    """
    try:
        sent = decode(_Parcel, received.removesuffix(WHOLE))
    except ValueError as error:
        raise InvalidError("snapshot-damaged", f"the memory that was sent is damaged: {error}") from None
    if not received.endswith(WHOLE):
        raise InvalidError("snapshot-damaged", "the memory that was sent breaks off")
    if (sent.whose, sent.host) != (_whose(work), host):
        raise ConflictError("snapshot-foreign", "the memory that was sent is not for this VM and host")
    return dict(sent.files)


def _whose(work: Workload) -> tuple[str, str, str]:
    return work.organization_id, work.project_id, work.image_digest
