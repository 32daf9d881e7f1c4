"""Ciphertext at rest: a LUKS1 container made here, and opened by the VMM alone.

Theory. Each sealed volume has a master key of its own, drawn at its creation and stored in its header under the caller's
key; who forgets the caller's key has shredded the volume. The caller's key is 256 random bits, so the key derivation need
not be slow: it is not what protects. What a guest writes lies behind the header, where the host never looks; the header
is read again only to tell a wrong key before anything is done with it.

Why not a program: `cryptsetup` wants a device mapper on some hosts and QEMU's own formatting measures its processor and
gives up on a busy one. The format is small, fixed, and read by both.

What is laid into a sealed volume is written through the cipher, sector by sector. What is not written is no zeros for
the guest: a hole deciphers to noise. So what is laid must have as data, and not as holes, all that has to be zero.

Source: LUKS1 On-Disk Format Specification 1.2.3; aes-xts-plain64: IEEE 1619, the tweak is the sector's number.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from functools import reduce

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from plasmavmc.errors import ConflictError
from plasmavmc.host.ranges import read_range
from plasmavmc.storage.sparse import data_ranges

KEY_BYTES = 32
SECTOR = 512
HEADER_BYTES = 2 * 1024 * 1024
"""Before the volume's own first byte: the header, room for eight key slots, and alignment."""

_MAGIC = b"LUKS\xba\xbe"
_HEAD = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_SLOTS = 8
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD
_MASTER_BYTES, _DIGEST_BYTES, _SALT_BYTES = 64, 20, 32
_STRIPES = 4000
_ITERATIONS = 2000
_FIRST_SECTOR = 8
_SLOT_SECTORS = 504
_HASH = "sha256"

Entropy = Callable[[int], bytes]


def passphrase(key: bytes) -> bytes:
    """The key as VMMs take it: text."""
    return key.hex().encode()


def make_header(key: bytes, entropy: Entropy) -> tuple[bytes, bytes]:
    """A new container's first bytes, under this key, and its master key."""
    master, salt, digest_salt = (entropy(size) for size in (_MASTER_BYTES, _SALT_BYTES, _SALT_BYTES))
    head = _HEAD.pack(
        _MAGIC,
        1,
        b"aes",
        b"xts-plain64",
        _HASH.encode(),
        HEADER_BYTES // SECTOR,
        _MASTER_BYTES,
        _derived(master, digest_salt, _ITERATIONS, _DIGEST_BYTES),
        digest_salt,
        _ITERATIONS,
        str(uuid.UUID(bytes=entropy(16), version=4)).encode(),
    )
    first = _SLOT.pack(_ENABLED, _ITERATIONS, salt, _FIRST_SECTOR, _STRIPES)
    others = (
        _SLOT.pack(_DISABLED, 0, b"", _FIRST_SECTOR + number * _SLOT_SECTORS, _STRIPES) for number in range(1, _SLOTS)
    )
    material = _split(master, entropy)
    sealed = _sealed(_derived(passphrase(key), salt, _ITERATIONS, _MASTER_BYTES), 0, material)
    return (head + first + b"".join(others)).ljust(_FIRST_SECTOR * SECTOR, b"\0") + sealed, master


def master_key(volume: int, key: bytes) -> bytes:
    """The master key of a container of ours, by its descriptor; blocking.

    Raises:
        ConflictError: `wrong-key`, this key does not open it; `damaged-header`, no key does.
        OSError: it cannot be read.
    """
    header = read_range(volume, _FIRST_SECTOR * SECTOR, 0).ljust(_FIRST_SECTOR * SECTOR, b"\0")
    fields = _HEAD.unpack_from(header)
    state, iterations, salt, sector, stripes = _SLOT.unpack_from(header, _HEAD.size)
    ours = (fields[0], fields[6], fields[9], state, iterations, sector, stripes) == (
        *(_MAGIC, _MASTER_BYTES, _ITERATIONS),
        *(_ENABLED, _ITERATIONS, _FIRST_SECTOR, _STRIPES),
    )
    sealed = read_range(volume, _MASTER_BYTES * _STRIPES, _FIRST_SECTOR * SECTOR)
    if not ours or len(sealed) != _MASTER_BYTES * _STRIPES:
        raise ConflictError(
            "damaged-header",
            "the header of this encrypted volume is damaged: no key opens it",
            resolution="Restore the volume from a snapshot or a backup: each has a header of its own.",
        )
    material = _opened(_derived(passphrase(key), salt, _ITERATIONS, _MASTER_BYTES), 0, sealed)
    master = _merged(material)
    if hmac.compare_digest(_derived(master, fields[8], _ITERATIONS, _DIGEST_BYTES), fields[7]):
        return master
    raise ConflictError("wrong-key", "the key does not open this volume", resolution="Give the key it was made with.")


def lay(source: int, volume: int, header: bytes, master: bytes) -> None:
    """Write a header, and behind it the data (not the holes) of `source` as ciphertext; blocking. Raises `OSError`."""
    _write(volume, header, 0)
    for start, end in data_ranges(source):
        first = start - start % SECTOR
        data = read_range(source, end - first, first)
        data = data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
        _write(volume, _sealed(master, first // SECTOR, data), HEADER_BYTES + first)


def _write(file: int, data: bytes, at: int) -> None:
    written = os.pwrite(file, data, at)
    if written != len(data):
        raise OSError(errno.ENOSPC, "the file was not written whole")


def _derived(secret: bytes, salt: bytes, iterations: int, size: int) -> bytes:
    return hashlib.pbkdf2_hmac(_HASH, secret, salt, iterations, size)


def _ciphers(key: bytes, first: int, data: bytes) -> Iterator[tuple[Cipher[XTS], bytes]]:
    for at in range(0, len(data), SECTOR):
        tweak = (first + at // SECTOR).to_bytes(16, "little")
        yield Cipher(AES(key), XTS(tweak)), data[at : at + SECTOR]


def _sealed(key: bytes, first: int, data: bytes) -> bytes:
    return b"".join(cipher.encryptor().update(sector) for cipher, sector in _ciphers(key, first, data))


def _opened(key: bytes, first: int, data: bytes) -> bytes:
    return b"".join(cipher.decryptor().update(sector) for cipher, sector in _ciphers(key, first, data))


def _split(master: bytes, entropy: Entropy) -> bytes:
    """Anti-forensic stripes (section 2.4): all of them are needed to have the key."""
    random = entropy(_MASTER_BYTES * (_STRIPES - 1))
    return random + _xor(_folded(random), master)


def _merged(material: bytes) -> bytes:
    return _xor(_folded(material[:-_MASTER_BYTES]), material[-_MASTER_BYTES:])


def _folded(stripes: bytes) -> bytes:
    parts = (stripes[at : at + _MASTER_BYTES] for at in range(0, len(stripes), _MASTER_BYTES))
    return reduce(lambda folded, stripe: _diffused(_xor(folded, stripe)), parts, bytes(_MASTER_BYTES))


def _diffused(block: bytes) -> bytes:
    size = hashlib.sha256().digest_size
    return b"".join(
        hashlib.sha256(number.to_bytes(4, "big") + block[at : at + size]).digest()
        for number, at in enumerate(range(0, len(block), size))
    )


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")
