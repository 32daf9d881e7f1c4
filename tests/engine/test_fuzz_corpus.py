"""Everything in the fuzzer's corpus is taken or refused by name: real messages, and what once met a defect."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from plasmavmc.guest.boot import init_sources
from tests.fuzz.targets import CORPUS, GUEST, TARGETS

CHANGES = 60
LARGEST_CORPUS = 300 * 1024


def changed(data: bytes, chance: random.Random) -> bytes:
    """The same with some bytes altered, cut out, or doubled."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start, end = sorted((chance.randint(0, len(result)), chance.randint(0, len(result))))
        match chance.randrange(4):
            case 0 if result:
                result[start % len(result)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 1:
                del result[start:end]
            case 2:
                result[end:end] = result[start:end]
            case _:
                result[start:start] = chance.randbytes(chance.randint(1, 8))
    return bytes(result[:16384])


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_corpus_holds_is_taken_or_refused_by_name(name: str) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert inputs
    chance = random.Random(name)  # the same changes in each run
    for data in inputs:
        TARGETS[name](data)
        for _ in range(CHANGES):
            TARGETS[name](changed(data, chance))


def test_what_the_corpus_holds_for_the_guest_does_it_no_harm(tmp_path: Path) -> None:
    """Under the sanitizers, with changed bytes for a moment."""
    build = ["make", "-s", "-C", str(init_sources()), f"OUT={tmp_path}", str(tmp_path / "fuzz")]
    subprocess.run(build, check=True, timeout=300)
    for name in GUEST:
        argv = [str(tmp_path / "fuzz"), name, "1", str(CORPUS / f"guest-{name}"), str(tmp_path / "input")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_corpus_stays_small_and_names_known_targets() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {*TARGETS, *(f"guest-{name}" for name in GUEST)}
    assert sum(path.stat().st_size for path in files) <= LARGEST_CORPUS
