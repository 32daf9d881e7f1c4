"""Backups as they are stored: chunks of a volume, and manifests that list them. Pure.

    <project>/chunks/<2 digits>/<id>    1 MiB of some volume: compressed, then sealed
    <project>/backups/<backup>          which chunk lies where in the volume: compressed, then sealed

A chunk is stored once, whichever backups have it. Its id is a keyed hash of what is in it, under a key that only this
project has, so two projects with equal data have nothing in common, and who sees the repository cannot tell whether
some known data is in it. All keys are derived (HKDF, RFC 5869) from one, which lies in the envelope: without it nothing can
be read.

Chunks have a fixed size. Where content decides on the cuts, what was inserted into a file shifts nothing; but on a block
device nothing shifts: file systems write in place, at multiples of their blocks. Fixed cuts cost no search, and whoever
reads a range knows which chunks it needs.

A chunk of zeros is not stored, and not listed. What is sealed says what it is (AES-256-GCM, with the chunk's id or the
backup's as associated data), so nothing opens in the place of something else; and what was opened is hashed again.
"""

from __future__ import annotations

import hmac
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shellwego.core.errors import ConflictError
from shellwego.core.sensitive import Sensitive

CHUNK_BYTES = 1 << 20
NONCE_BYTES = 12
_FORMAT = b"\x01"
_LEVEL = 3
_KEY_BYTES = 32
_ENTRY = struct.Struct(">I32s")


class BrokenError(Exception):
    """What is stored is not what was stored: changed, moved, or sealed under another key."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup's list of chunks."""

    backup_id: str
    volume_id: str
    parent_id: str
    size_bytes: int
    """Of the volume as its host stores it."""
    sealed: bool
    """What is in the volume is ciphertext, under a key of its own."""
    table: bytes
    """For each chunk, in order: its number in the volume (4 bytes), its id (32)."""

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Number and id of each chunk, in order; what is not listed is zeros."""
        return _ENTRY.iter_unpack(self.table)

    def ids(self) -> set[bytes]:
        """Of all its chunks."""
        return {chunk_id for _, chunk_id in self.chunks()}

    def span(self, number: int) -> tuple[int, int]:
        """Where a chunk lies in the volume: its first byte, and the one after its last."""
        start = number * CHUNK_BYTES
        return start, min(start + CHUNK_BYTES, self.size_bytes)


def entry(number: int, chunk_id: bytes) -> bytes:
    """A chunk as it stands in a manifest's table."""
    return _ENTRY.pack(number, chunk_id)


def chunk_path(project_id: str, chunk_id: bytes) -> str:
    """Where in the repository a chunk is."""
    name = chunk_id.hex()
    return f"{chunks_prefix(project_id)}{name[:2]}/{name}"


def chunks_prefix(project_id: str) -> str:
    return f"{project_id}/chunks/"


def manifest_path(project_id: str, backup_id: str) -> str:
    """Where in the repository a backup's manifest is."""
    return f"{manifests_prefix(project_id)}{backup_id}"


def manifests_prefix(project_id: str) -> str:
    return f"{project_id}/backups/"


def is_zeros(data: bytes) -> bool:
    return not data.strip(b"\0")


class VaultCipher:
    """What is done with the key of a project's vault. A nonce (12 random bytes) is used once."""

    def __init__(self, key: Sensitive) -> None:
        self._names = _derived(key, b"shellwego backup: ids of chunks")
        self._chunks = AESGCM(_derived(key, b"shellwego backup: chunks"))
        self._manifests = AESGCM(_derived(key, b"shellwego backup: manifests"))

    def chunk_id(self, data: bytes) -> bytes:
        """The name under which this content is stored."""
        return hmac.digest(self._names, data, sha256)

    def seal_chunk(self, chunk_id: bytes, data: bytes, nonce: bytes) -> bytes:
        return _FORMAT + nonce + self._chunks.encrypt(nonce, zstandard.compress(data, _LEVEL), _FORMAT + chunk_id)

    def open_chunk(self, chunk_id: bytes, stored: bytes) -> bytes:
        """What was sealed under this id.

        Raises:
            BrokenError: it was not, or was changed since.
        """
        data = _opened(self._chunks, stored, _FORMAT + chunk_id)
        if not hmac.compare_digest(self.chunk_id(data), chunk_id):
            raise BrokenError
        return data

    def seal_manifest(self, manifest: Manifest, nonce: bytes) -> bytes:
        head = {
            "backup": manifest.backup_id,
            "volume": manifest.volume_id,
            "parent": manifest.parent_id,
            "size": manifest.size_bytes,
            "sealed": manifest.sealed,
            "chunk": CHUNK_BYTES,
        }
        plain = json.dumps(head).encode() + b"\n" + manifest.table
        packed = zstandard.compress(plain, _LEVEL)
        return _FORMAT + nonce + self._manifests.encrypt(nonce, packed, _FORMAT + manifest.backup_id.encode())

    def open_manifest(self, backup_id: str, stored: bytes) -> Manifest:
        """The manifest of this backup.

        Raises:
            BrokenError: it is another's, or was changed.
        """
        plain = _opened(self._manifests, stored, _FORMAT + backup_id.encode())
        text, _, table = plain.partition(b"\n")
        head = json.loads(text)
        if head["chunk"] != CHUNK_BYTES or len(table) % _ENTRY.size:
            raise BrokenError
        return Manifest(backup_id, head["volume"], head["parent"], head["size"], head["sealed"], table)


def _opened(cipher: AESGCM, stored: bytes, associated: bytes) -> bytes:
    nonce, ciphertext = stored[1 : 1 + NONCE_BYTES], stored[1 + NONCE_BYTES :]
    if stored[:1] != _FORMAT:
        raise BrokenError
    try:
        return zstandard.decompress(cipher.decrypt(nonce, ciphertext, associated))
    except (InvalidTag, ValueError, zstandard.ZstdError):
        raise BrokenError from None


def _derived(key: Sensitive, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=purpose).derive(key.reveal())


def digest_of(stored: bytes) -> str:
    """As `Backup.digest`."""
    return sha256(stored).hexdigest()


def damaged_chunk(manifest: Manifest, number: int, chunk_id: bytes, trouble: str) -> ConflictError:
    """A chunk of a backup that cannot be had: `trouble` is what is the matter with it."""
    start, end = manifest.span(number)
    return _damaged(
        f"the backup {manifest.backup_id} is damaged: bytes {start} to {end - 1} of the volume {manifest.volume_id} "
        f"(chunk {chunk_id.hex()}) are {trouble}"
    )


def damaged_manifest(backup_id: str, volume_id: str, trouble: str) -> ConflictError:
    """The list of a backup's chunks cannot be had, so nothing of it can."""
    return _damaged(f"the backup {backup_id} of the volume {volume_id} is damaged: its manifest is {trouble}")


def _damaged(message: str) -> ConflictError:
    return ConflictError("backup-damaged", message, resolution="Restore another backup of the volume.")
