"""The reader of BPF objects: what ships is whole, and nothing else brings more than an error."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host.helper.ebpf_guard import counted, possible_processors
from plasmavmc.host.helper.ebpf_object import MOST_BYTES, ObjectError, read_object
from plasmavmc.host.helper.ebpf_programs import FROM_VM, IDENTITIES, OBJECT, TO_VM, TRAFFIC, shipped_object
from plasmavmc.host.operations import DROP_REASONS
from plasmavmc.types import NetworkUsage

NATIVE = Path(__file__).parents[2] / "packages/plasmavmc/native/ebpf"
DATA = OBJECT.read_bytes()
SECTIONS_AT = struct.unpack_from("<Q", DATA, 40)[0]
INSTRUCTION = 8


def test_what_ships_has_the_programs_and_maps_that_the_helper_loads() -> None:
    built = shipped_object(OBJECT)
    assert built.programs.keys() == {FROM_VM, TO_VM}
    assert built.maps.keys() == {IDENTITIES, TRAFFIC}
    assert built.maps[TRAFFIC].value_bytes == 8 * (4 + len(DROP_REASONS))
    assert built.license == "Apache-2.0"


def test_the_reasons_are_named_in_the_order_of_the_source() -> None:
    body = (NATIVE / "tap.h").read_text().partition("enum reason {")[2].partition("REASONS,")[0]
    sourced = [line.strip().rstrip(",") for line in body.splitlines() if line.strip()]
    short = {"EXTENSIONS": "extension-headers", "NEIGHBOUR": "neighbour-discovery"}
    assert [short.get(name, name.lower().replace("_", "-")) for name in sourced] == list(DROP_REASONS)


def test_a_program_is_linked_with_descriptors_where_maps_are_loaded() -> None:
    program = shipped_object(OBJECT).programs[FROM_VM]
    code = program.linked({IDENTITIES: 7, TRAFFIC: 9})
    wanted = {IDENTITIES: 7, TRAFFIC: 9}
    assert set(program.maps_at.values()) == set(wanted)
    for offset, name in program.maps_at.items():
        _, registers, _, number = struct.unpack_from("<BBhi", code, offset)
        assert (registers >> 4, number) == (1, wanted[name])
    assert len(code) == len(program.code)


@pytest.mark.parametrize("length", [0, 1, 4, 16, 63, 64, 200, SECTIONS_AT, SECTIONS_AT + 63, len(DATA) - 1])
def test_a_truncated_object_is_refused(length: int) -> None:
    with pytest.raises(ObjectError):
        read_object(DATA[:length])


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"\x7fELG"),
        (4, b"\x01"),
        (5, b"\x02"),
        (16, b"\x02\x00"),
        (18, b"\x3e\x00"),
        (40, b"\xff" * 8),
        (58, b"\x28\x00"),
        (60, b"\xff\xff"),
        (62, b"\xff\xff"),
    ],
    ids=["magic", "class", "order", "type", "machine", "place", "entry", "sections", "names"],
)
def test_another_machines_file_and_hostile_headers_are_refused(offset: int, value: bytes) -> None:
    with pytest.raises(ObjectError):
        read_object(DATA[:offset] + value + DATA[offset + len(value) :])


def test_more_bytes_than_any_object_has_are_not_read() -> None:
    with pytest.raises(ObjectError, match="more than an object has"):
        read_object(DATA + bytes(MOST_BYTES))


@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_was_changed_the_reader_says_so_or_stays_in_bounds(changes: list[tuple[int, int]]) -> None:
    data = bytearray(DATA)
    for offset, value in changes:
        data[offset] = value
    _read(bytes(data))


@given(st.binary(max_size=400), st.integers(0, 40))
def test_hostile_sections_are_refused_or_read_in_bounds(sections: bytes, count: int) -> None:
    header = bytearray(DATA[:64])
    struct.pack_into("<Q", header, 40, 64)
    struct.pack_into("<HH", header, 60, count, 0)
    _read(bytes(header) + sections)


def _read(data: bytes) -> None:
    try:
        built = read_object(data)
    except ObjectError:
        return
    for program in built.programs.values():
        assert all(0 <= offset <= len(program.code) - 2 * INSTRUCTION for offset in program.maps_at)
        program.linked(dict.fromkeys(built.maps, 3))


@pytest.mark.parametrize("damage", ["object", "hash", "absent"])
def test_an_object_that_is_not_the_one_built_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "tap.o"
    copy.write_bytes(DATA[:-1] + b"\x01" if damage == "object" else DATA)
    if damage != "absent":
        hashed = OBJECT.with_name("tap.o.sha256").read_text()
        (tmp_path / "tap.o.sha256").write_text("0" * 64 if damage == "hash" else hashed)
    with pytest.raises(HostError) as refused:
        shipped_object(copy)
    assert refused.value.code == "ebpf-object"


@pytest.mark.skipif(
    not (shutil.which("clang-14") and shutil.which("llvm-strip-14")),
    reason="the object is built with Debian's clang-14 and llvm-14, which are large and not needed to use it",
)
def test_the_source_builds_to_the_very_bytes_that_ship() -> None:
    done = subprocess.run(["make", "check"], cwd=NATIVE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bytes" in done.stdout


def test_counts_of_all_processors_are_one_and_reasons_without_any_are_left_out() -> None:
    numbers = [1, 100, 2, 200, *([0] * len(DROP_REASONS))]
    other = [10, 1000, 20, 2000, *([0] * len(DROP_REASONS))]
    other[4 + DROP_REASONS.index("arp")] = 3
    value = struct.pack(f"={len(numbers)}Q", *numbers) + struct.pack(f"={len(other)}Q", *other)
    assert counted(value) == NetworkUsage(11, 1100, 22, 2200, {"arp": 3})


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11", 7)])
def test_a_list_of_processors_is_counted(text: str, count: int) -> None:
    assert possible_processors(text) == count
