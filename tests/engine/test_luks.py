"""Sealed volumes as they lie on the disk: what opens them, and what does not."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from plasmavmc.errors import ConflictError
from plasmavmc.storage import luks
from plasmavmc.types import MIB

KEY = bytes(range(32))
CANARY = b"canary in a coal mine " * 30


def entropy(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture
def volume() -> Iterator[int]:
    file = os.memfd_create("volume")
    yield file
    os.close(file)


@pytest.fixture
def template(tmp_path: Path) -> Iterator[int]:
    file = os.open(tmp_path / "template", os.O_RDWR | os.O_CREAT)
    os.truncate(file, 8 * MIB)
    os.pwrite(file, CANARY, MIB)
    yield file
    os.close(file)


def clear(volume: int, master: bytes, sector: int) -> bytes:
    """A sector as its user sees it, by the standard and not by our code."""
    sealed = os.pread(volume, 512, luks.HEADER_BYTES + sector * 512)
    return Cipher(AES(master), XTS(struct.pack("<QQ", sector, 0))).decryptor().update(sealed)


def test_the_key_opens_what_it_sealed_and_no_other_key_does(volume: int, template: int) -> None:
    header, master = luks.make_header(KEY, entropy)
    luks.lay(template, volume, header, master)
    assert luks.master_key(volume, KEY) == master
    before = os.pread(volume, 16 * MIB, 0)
    for wrong in (bytes(32), KEY[:-1] + b"\0"):
        with pytest.raises(ConflictError) as caught:
            luks.master_key(volume, wrong)
        assert caught.value.code == "wrong-key"
        assert wrong.hex() not in str(caught.value)
    assert os.pread(volume, 16 * MIB, 0) == before


def test_what_is_laid_is_ciphertext_and_reads_as_it_was(volume: int, template: int) -> None:
    header, master = luks.make_header(KEY, entropy)
    luks.lay(template, volume, header, master)
    stored = os.pread(volume, 16 * MIB, 0)
    for secret in (CANARY[:16], KEY, KEY.hex().encode(), master, master[:32]):
        assert secret not in stored
    at = MIB // 512
    assert clear(volume, master, at) + clear(volume, master, at + 1)[:148] == CANARY


def test_holes_are_not_written(volume: int, template: int) -> None:
    luks.lay(template, volume, *luks.make_header(KEY, entropy))
    assert os.fstat(volume).st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("size", [0, 100, 4096, 200_000])
def test_a_header_that_is_cut_or_damaged_opens_with_no_key(volume: int, size: int) -> None:
    header, _master = luks.make_header(KEY, entropy)
    os.pwrite(volume, header[:size], 0)
    with pytest.raises(ConflictError) as cut:
        luks.master_key(volume, KEY)
    os.pwrite(volume, header, 0)
    os.pwrite(volume, b"\xff\xff\xff\xff", 212)  # a count of iterations that would take an hour
    with pytest.raises(ConflictError) as damaged:
        luks.master_key(volume, KEY)
    assert (cut.value.code, damaged.value.code) == ("damaged-header", "damaged-header")


def test_two_volumes_under_one_key_have_nothing_in_common() -> None:
    (one, first), (two, second) = (luks.make_header(KEY, os.urandom) for _ in range(2))
    assert first != second
    assert one[4096:8192] != two[4096:8192]
