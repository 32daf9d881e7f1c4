"""Two slots of a file: what was written last is there, whatever became of the write under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.agent.slots import MOST_BYTES, SLOT_BYTES, Slots
from shellwego.core.errors import InvalidError


def written(path: Path, *contents: bytes) -> Slots:
    slots = Slots(path)
    for content in contents:
        slots.write(content)
    return slots


def test_what_was_written_last_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert Slots(path).content is None
    for number in range(5):
        written(path, str(number).encode())
        assert Slots(path).content == str(number).encode()
        assert path.stat().st_size == 2 * SLOT_BYTES


def test_it_is_overwritten_in_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    slots = written(path, b"one")
    before = path.stat().st_ino, path.stat().st_blocks
    for number in range(10):
        slots.write(str(number).encode())
    assert (path.stat().st_ino, path.stat().st_blocks) == before


@pytest.mark.parametrize("writes", [2, 3])
def test_a_torn_write_leaves_what_was_there_before(tmp_path: Path, writes: int) -> None:
    path = tmp_path / "file"
    contents = [f"number {number} {'x' * 1000}".encode() for number in range(writes)]
    written(path, *contents[:-1])
    before = path.read_bytes()
    written(path, contents[-1])
    after = path.read_bytes()
    changed = [at for at in range(2 * SLOT_BYTES) if before[at] != after[at]]
    assert changed[0] // SLOT_BYTES == changed[-1] // SLOT_BYTES, "only one slot is touched"
    for reached in range(changed[0] + 1, changed[-1] + 1, 7):
        path.write_bytes(after[:reached] + before[reached:])
        assert Slots(path).content == contents[-2]
        written(path, b"next")
        assert Slots(path).content == b"next"
        path.write_bytes(before)


def test_a_write_after_one_that_failed_spares_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    slots = written(path, b"one", b"two")
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", lambda descriptor, data, at: 0)
        with pytest.raises(OSError, match="Input/output error"):
            slots.write(b"three")
    assert (slots.content, Slots(path).content) == (b"two", b"two")
    slots.write(b"four")
    assert Slots(path).content == b"four"


@pytest.mark.parametrize("content", [b"", b"x", bytes(2 * SLOT_BYTES), b"x" * 3 * SLOT_BYTES])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match="file") as caught:
        Slots(path)
    assert caught.value.resolution


def test_a_file_that_was_taken_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    slots = written(path, b"one", b"two")
    path.unlink()
    slots.write(b"three")
    assert Slots(path).content == b"three"


def test_what_does_not_fit_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    slots = written(tmp_path / "file", b"x" * MOST_BYTES)
    with pytest.raises(OSError, match="do not fit"):
        slots.write(b"x" * (MOST_BYTES + 1))
    assert Slots(tmp_path / "file").content == b"x" * MOST_BYTES
