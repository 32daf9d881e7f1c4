"""A backup on disk: a directory with a manifest and sealed pieces, each of them whole or found damaged.

Every piece is AES-256-GCM in chunks, under a key of its own that HKDF (RFC 5869) makes of the passphrase's (scrypt, as for
the master keys). A chunk's nonce is its number and whether it is the last, so none can be moved, left out or cut off. The
manifest names the pieces with the digest of what is stored; it is readable, and sealed by an HMAC under the same passphrase.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shellwego.core.envelope import KEY_BYTES
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.files import replace_file
from shellwego.drivers.kms.keyfile import SALT_BYTES, Seal

PLAIN, WITH_VOLUMES = 1, 2
"""Formats: a backup of a version that knew of no volumes in it has the first, and so has one without any."""
MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_TAG = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    name: str
    file: str
    """Within the backup."""
    bytes: int
    """Of what is sealed in it."""
    sha256: str
    """Of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    made_at: float
    """Unix time."""
    version: str
    """Of ShellWeGo."""
    revision: str
    """Of the database's schema."""
    kms: str = ""
    """Who keeps the master key: `local` (in this backup, if in a file), else it is not in it."""
    pieces: tuple[Piece, ...] = ()
    salt: str = ""
    format: int = PLAIN


@dataclass(frozen=True, slots=True)
class Backup:
    """One that was opened by its passphrase."""

    directory: Path
    manifest: Manifest
    _seal: Seal = field(repr=False)

    def pieces(self) -> Mapping[str, Piece]:
        """By name."""
        return {piece.name: piece for piece in self.manifest.pieces}

    def read(self, piece: Piece) -> Iterator[bytes]:
        """What is in a piece.

        Raises:
            InvalidError: `backup-damaged`, it is missing or was changed; what came before is not to be believed.
        """
        cipher, number = AESGCM(_derived(self._seal, piece.name)), 0
        try:
            with (self.directory / piece.file).open("rb") as stream:
                chunk = stream.read(_CHUNK + _TAG)
                while True:
                    following = stream.read(_CHUNK + _TAG)
                    yield cipher.decrypt(_nonce(number, last=not following), chunk, piece.name.encode())
                    if not following:
                        return
                    chunk, number = following, number + 1
        except (OSError, InvalidTag, ValueError):
            raise damaged(self.directory, piece.name) from None

    def lines(self, piece: Piece) -> Iterator[bytes]:
        """As `read`, line by line."""
        rest = b""
        for chunk in self.read(piece):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def content(self, piece: Piece) -> bytes:
        """As `read`, at once."""
        return b"".join(self.read(piece))

    def verify(self) -> None:
        """Read every piece to its end; raises as `read`."""
        for piece in self.manifest.pieces:
            found = sum(len(chunk) for chunk in self.read(piece))
            if found != piece.bytes or _digest(self.directory / piece.file) != piece.sha256:
                raise damaged(self.directory, piece.name)


class Writer:
    """Writes a backup into a new directory; it is one when `finish` returns."""

    def __init__(self, directory: Path, manifest: Manifest, passphrase: Sensitive) -> None:
        """`directory` is empty."""
        salt = secrets.token_bytes(SALT_BYTES)
        self._directory = directory
        self._seal = Seal.of(passphrase, salt)
        self._manifest = replace(manifest, salt=salt.hex())
        self._pieces: list[Piece] = []

    def add(self, name: str, content: Iterable[bytes]) -> None:
        """Seal a piece; raises `OSError`."""
        file, cipher, size = f"{len(self._pieces):04}.sealed", AESGCM(_derived(self._seal, name)), 0
        with (self._directory / file).open("xb") as stream:
            chunks = _chunked(content)
            chunk, number = next(chunks, b""), 0
            while True:
                following = next(chunks, b"")
                stream.write(cipher.encrypt(_nonce(number, last=not following), chunk, name.encode()))
                size += len(chunk)
                if not following:
                    break
                chunk, number = following, number + 1
            stream.flush()
            os.fsync(stream.fileno())
        digest = _digest(self._directory / file)
        self._pieces.append(Piece(name=name, file=file, bytes=size, sha256=digest))

    def finish(self, kms: str) -> Manifest:
        """Write the manifest; `kms`: as there."""
        manifest = replace(self._manifest, pieces=tuple(self._pieces), kms=kms)
        body = asdict(manifest)
        document = {
            "manifest": body,
            "sha256": hashlib.sha256(_text(body)).hexdigest(),
            "seal": _sealed(self._seal, body),
        }
        replace_file(self._directory / MANIFEST, json.dumps(document, indent=1).encode() + b"\n")
        return manifest


def open_backup(directory: Path, passphrase: Sensitive) -> Backup:
    """A backup by its passphrase.

    Raises:
        InvalidError: `no-backup`, `backup-damaged`, `wrong-passphrase`.
        ConflictError: `backup-too-new`.
    """
    try:
        document = json.loads((directory / MANIFEST).read_bytes())
        body = document["manifest"]
        if body["format"] not in (PLAIN, WITH_VOLUMES):
            raise ConflictError(
                "backup-too-new",
                f"{directory} is a backup of format {body['format']}, and this version knows {WITH_VOLUMES}",
                resolution="Restore it with the version that made it, or a later one.",
            )
        if hashlib.sha256(_text(body)).hexdigest() != document["sha256"]:
            raise damaged(directory, MANIFEST)
        pieces = tuple(Piece(**piece) for piece in body["pieces"])
        manifest = Manifest(**{**body, "pieces": pieces})
        seal = Seal.of(passphrase, bytes.fromhex(manifest.salt))
        told = str(document["seal"])
    except FileNotFoundError:
        raise InvalidError(
            "no-backup",
            f"{directory} is no backup: it has no {MANIFEST}",
            resolution="Give the directory that swg backup create made.",
        ) from None
    except OSError as error:
        raise InvalidError("no-backup", f"{directory / MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise damaged(directory, MANIFEST) from None
    if not hmac.compare_digest(_sealed(seal, body), told):
        raise InvalidError("wrong-passphrase", f"the passphrase is not that of the backup {directory}")
    if any(Path(piece.file).name != piece.file for piece in manifest.pieces):
        raise damaged(directory, MANIFEST)
    return Backup(directory, manifest, seal)


def damaged(directory: Path, piece: str) -> InvalidError:
    """This piece is not as it was written."""
    return InvalidError(
        "backup-damaged",
        f"the piece {piece} of the backup {directory} is missing or damaged",
        resolution="Take another copy of it, or another backup.",
    )


def _chunked(content: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for part in content:
        held += part
        while len(held) >= _CHUNK:
            yield bytes(held[:_CHUNK])
            del held[:_CHUNK]
    if held:
        yield bytes(held)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _derived(seal: Seal, name: str) -> bytes:
    info = f"shellwego backup {PLAIN}: {name}".encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=seal.salt, info=info).derive(seal.key.reveal())


def _sealed(seal: Seal, body: object) -> str:
    return hmac.new(_derived(seal, MANIFEST), _text(body), hashlib.sha256).hexdigest()


def _text(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
