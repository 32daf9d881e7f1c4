"""Reads an object of BPF programs as clang writes it. Pure.

Theory. An object is a relocatable ELF file for the machine BPF. Each program is a section `program/<name>`; the section
`maps` has a record of five numbers for each symbol in it; where an instruction loads a map's address, a table says at which
offset, and by which symbol. That is all there may be: another relocation, or one that is out of place, is an error, so that
nothing is loaded half understood.

The object is our own and its hash was compared; it is still read as if it were not, since root does.

Source: ELF-64 object file format; Documentation/bpf/llvm_reloc.rst and instruction-set.rst of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

MOST_BYTES = 1 << 20
_MOST_SECTIONS = 64
_MOST_SYMBOLS = 512
_HEADER = struct.Struct("<4sBBB9xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_MAP = struct.Struct("<5I")
_INSTRUCTION = struct.Struct("<BBhi")
_CLASS_64, _LITTLE_ENDIAN, _VERSION = 2, 1, 1
_RELOCATABLE, _MACHINE_BPF = 1, 247
_PROGBITS, _SYMTAB, _STRTAB, _RELA, _NOBITS, _REL = 1, 2, 3, 4, 8, 9
_MAP_ADDRESS = 1
"""R_BPF_64_64: the one relocation that there is."""
_LOAD_64 = 0x18
"""BPF_LD | BPF_DW | BPF_IMM, the first of its two slots."""
_PSEUDO_MAP = 1
_PROGRAM, _MAPS, _LICENSE = "program/", "maps", "license"


class ObjectError(ValueError):
    """This is not an object of ours."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map that programs want; the numbers are the kernel's (`BPF_MAP_CREATE`)."""

    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions in which addresses of maps are missing still."""

    code: bytes
    maps_at: Mapping[int, str] = field(default_factory=dict)
    """Offset of an instruction, and the name of the map it loads."""

    def linked(self, maps: Mapping[str, int]) -> bytes:
        """The instructions with these descriptors of maps."""
        code = bytearray(self.code)
        for offset, name in self.maps_at.items():
            operation, registers, zero, _ = _INSTRUCTION.unpack_from(code, offset)
            _INSTRUCTION.pack_into(code, offset, operation, registers & 0x0F | _PSEUDO_MAP << 4, zero, maps[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class BpfObject:
    programs: Mapping[str, Program]
    maps: Mapping[str, MapSpec]
    license: str


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_bytes: int


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    section: int
    value: int


def read_object(data: bytes) -> BpfObject:
    """Read an object.

    Raises:
        ObjectError: it is none of these, or damaged.
    """
    if len(data) > MOST_BYTES:
        raise ObjectError(f"{len(data)} bytes are more than an object has")
    try:
        return _Reader(data).read()
    except struct.error as error:
        raise ObjectError(f"cut off: {error}") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sections, names = self._headers()
        table = self._contents(self._section(names, _STRTAB))
        self._names = [_text(table, section.name) for section in self._sections]

    def read(self) -> BpfObject:
        symbols = self._symbols()
        maps = self._maps(symbols)
        indexes = [index for index, name in enumerate(self._names) if name.startswith(_PROGRAM)]
        programs = {self._names[index].removeprefix(_PROGRAM): self._program(index, symbols, maps) for index in indexes}
        self._refuse_other_relocations(indexes)
        if _LICENSE not in self._names:
            raise ObjectError("no license")
        license_text = self._contents(self._section(self._names.index(_LICENSE), _PROGBITS))
        return BpfObject(programs, maps, _text(license_text, 0))

    def _headers(self) -> tuple[list[_Section], int]:
        (magic, kind, order, version, type_, machine, _, _, _, start, _, _, _, _, entry, count, names) = (
            _HEADER.unpack_from(self._data)
        )
        if (magic, kind, order, version) != (b"\x7fELF", _CLASS_64, _LITTLE_ENDIAN, _VERSION):
            raise ObjectError("no little-endian ELF of 64 bits")
        if (type_, machine, entry) != (_RELOCATABLE, _MACHINE_BPF, _SECTION.size):
            raise ObjectError(f"no relocatable object for BPF (type {type_}, machine {machine})")
        if not 0 < count <= _MOST_SECTIONS or start > len(self._data):
            raise ObjectError(f"{count} sections at {start}")
        places = (start + index * _SECTION.size for index in range(count))
        return [_Section(*_SECTION.unpack_from(self._data, place)) for place in places], names

    def _section(self, index: int, type_: int) -> _Section:
        if index >= len(self._sections) or self._sections[index].type != type_:
            raise ObjectError(f"section {index} is not there, or not of type {type_}")
        return self._sections[index]

    def _contents(self, section: _Section) -> bytes:
        end = section.offset + section.size
        if section.type == _NOBITS or end > len(self._data):
            raise ObjectError(f"a section of {section.size} bytes at {section.offset} is not in the file")
        return self._data[section.offset : end]

    def _records(self, section: _Section, shape: struct.Struct) -> Iterator[tuple[int, ...]]:
        if section.entry_bytes != shape.size or section.size % shape.size:
            raise ObjectError(f"a table of {section.size} bytes has entries of {section.entry_bytes}")
        return shape.iter_unpack(self._contents(section))

    def _symbols(self) -> list[_Symbol]:
        tables = [section for section in self._sections if section.type == _SYMTAB]
        if len(tables) != 1 or tables[0].size > _MOST_SYMBOLS * _SYMBOL.size:
            raise ObjectError(f"{len(tables)} tables of symbols")
        texts = self._contents(self._section(tables[0].link, _STRTAB))
        return [
            _Symbol(_text(texts, name), section, value)
            for name, _, _, section, value, _ in self._records(tables[0], _SYMBOL)
        ]

    def _maps(self, symbols: list[_Symbol]) -> dict[str, MapSpec]:
        if _MAPS not in self._names:
            return {}
        index = self._names.index(_MAPS)
        contents = self._contents(self._section(index, _PROGBITS))
        return {
            symbol.name: MapSpec(*_MAP.unpack_from(contents, symbol.value))
            for symbol in symbols
            if symbol.section == index and symbol.name
        }

    def _program(self, index: int, symbols: list[_Symbol], maps: Mapping[str, MapSpec]) -> Program:
        code = self._contents(self._section(index, _PROGBITS))
        if len(code) % _INSTRUCTION.size:
            raise ObjectError(f"a program of {len(code)} bytes")
        return Program(code, dict(self._map_loads(index, code, symbols, maps)))

    def _map_loads(
        self, index: int, code: bytes, symbols: list[_Symbol], maps: Mapping[str, MapSpec]
    ) -> Iterator[tuple[int, str]]:
        for section in self._sections:
            if section.type != _REL or section.info != index:
                continue
            for offset, info in self._records(section, _RELOCATION):
                name = _at(symbols, info >> 32).name
                if info & 0xFFFFFFFF != _MAP_ADDRESS or name not in maps:
                    raise ObjectError(f"a relocation of type {info & 0xFFFFFFFF} by {name!r:.40}")
                if offset % _INSTRUCTION.size or offset + 2 * _INSTRUCTION.size > len(code) or code[offset] != _LOAD_64:
                    raise ObjectError(f"a relocation at {offset}, where no address is loaded")
                yield offset, name

    def _refuse_other_relocations(self, programs: Collection[int]) -> None:
        for section in self._sections:
            if section.type == _RELA or (section.type == _REL and section.info not in programs):
                raise ObjectError("relocations that are not a program's")


def _at(symbols: list[_Symbol], index: int) -> _Symbol:
    for symbol in islice(symbols, index, index + 1):
        return symbol
    raise ObjectError(f"symbol {index} is not there")


def _text(table: bytes, start: int) -> str:
    end = table.find(b"\0", start)
    if end < 0:
        raise ObjectError(f"a text at {start} does not end")
    try:
        return table[start:end].decode("ascii")
    except UnicodeDecodeError as error:
        raise ObjectError(f"a text at {start} is not ASCII") from error
