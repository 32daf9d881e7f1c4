"""What a snapshot is: whose, of what machine, and the digest of each piece of it. Pure.

Theory. A manifest is the last file of a snapshot to be written, and the first to be read. Its first line is the digest
of the rest, so that no byte of it can change unnoticed; the digests in it cover every byte of the others that is ever
used. What the snapshot needs of the host (program, machine, processor, kernel) is kept as words: where one differs,
the refusal names it.

There is no signature: who can write these files is the platform itself, or root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from plasmavmc.errors import ConflictError, HostError

VERSION = 1


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A run of bytes of a file. What lies in no piece is zero."""

    offset: int
    length: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    vm_id: str
    image: str
    """Digest of the OCI manifest."""
    backend: str
    memory_bytes: int
    generation: int
    """How often the VM was restored before."""
    created: float
    traits: Mapping[str, str]
    """What must be the same on the host that resumes; see `differences`."""
    state: tuple[Piece, ...]
    memory: tuple[Piece, ...] | None
    """None: the memory is in the state."""
    origin: str = ""
    """The VM whose memory it is, where that was another one on another host: this one begins as a copy of it does."""


def encode(manifest: Manifest) -> bytes:
    body = msgspec.json.encode(manifest)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode(raw: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        HostError: `snapshot-damaged`; `snapshot-version`, it is of another version of the engine.
    """
    digest, _, body = raw.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise damaged("its manifest is not what was written")
    try:
        version = msgspec.json.decode(body, type=_Version).version
        if version == VERSION:
            return msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(f"its manifest cannot be read: {error}") from error
    raise HostError(
        "snapshot-version",
        f"the snapshot has version {version} and this engine knows {VERSION}",
        resolution="Delete the VM and start a new one.",
    )


class _Version(msgspec.Struct):
    version: int


def check(
    manifest: Manifest, *, vm_id: str, image: str, backend: str, memory_bytes: int, traits: Mapping[str, str]
) -> None:
    """Accept a snapshot for this VM on this host.

    Raises:
        ConflictError: `snapshot-foreign`, naming each part that differs.
    """
    ours = {"vm": vm_id, "image": image, "backend": backend, "memory": str(memory_bytes), **traits}
    theirs = {
        "vm": manifest.vm_id,
        "image": manifest.image,
        "backend": manifest.backend,
        "memory": str(manifest.memory_bytes),
        **manifest.traits,
    }
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        raise ConflictError(
            "snapshot-foreign",
            f"the snapshot was not taken by this VM on a host like this one: {', '.join(different)} differ",
            details="; ".join(
                f"{name}: {theirs.get(name, 'none')!r:.120} then, {ours.get(name, 'none')!r:.120} now"
                for name in different
            ),
            resolution="Delete the VM and start a new one.",
        )


def damaged(why: str) -> HostError:
    """A snapshot that is not as it was written."""
    return HostError(
        "snapshot-damaged",
        f"the snapshot is damaged: {why}",
        resolution="It will never be loaded. Delete the VM and start a new one; check the host's disk.",
    )
