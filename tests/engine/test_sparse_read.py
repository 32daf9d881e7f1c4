"""A range of a file is read and written whole, or who does it hears why not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from plasmavmc.host.ranges import read_range, write_range

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives no more than 1,000 bytes at once."""
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: whole(file, min(size, 1000), offset))


def opened(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return os.open(path, os.O_RDONLY)


@pytest.mark.usefixtures("halves")
def test_what_comes_in_parts_is_joined_and_ends_where_the_file_does(tmp_path: Path) -> None:
    file = opened(tmp_path)
    try:
        assert read_range(file, 3000, 5) == CONTENT[5:3005]
        assert read_range(file, 9999, 4000) == CONTENT[4000:]
        assert read_range(file, 10, 9999) == b""
    finally:
        os.close(file)


def test_an_error_in_the_midst_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_file: int, size: int, offset: int) -> bytes:
        if offset >= 1000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return CONTENT[offset:1000][:size]

    file = opened(tmp_path)
    try:
        monkeypatch.setattr(os, "pread", broken)
        with pytest.raises(OSError, match="nput/output"):
            read_range(file, 3000, 0)
    finally:
        os.close(file)


def test_what_the_disk_takes_in_parts_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: whole(file, data[:1000], offset))
    with (tmp_path / "file").open("w+b") as file:
        write_range(file.fileno(), CONTENT, 5)
        assert file.read() == bytes(5) + CONTENT


def test_a_disk_that_is_full_in_the_midst_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset >= 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(file, data[:1000], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with (tmp_path / "file").open("w+b") as file, pytest.raises(OSError, match="No space left"):
        write_range(file.fileno(), CONTENT, 0)
