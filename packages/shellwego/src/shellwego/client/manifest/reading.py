"""From the file to a `Manifest`: syntax, names and types first, then what this platform does not do yet."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import msgspec

from shellwego.client.manifest.document import Command, EnvValue, Manifest, ProcessName
from shellwego.client.manifest.faults import Fault, ManifestError, Place
from shellwego.client.manifest.unsupported import unsupported

FILE_NAME = "shellwego.toml"
STDIN = Path("-")
_MAX_BYTES = 1024 * 1024
_TYPES = re.compile(r"`(?P<names>[a-z]+(?: \| [a-z]+)*)`")
_REGEX = re.compile(r"matching regex .*", re.DOTALL)
_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "a text",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_PART = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+)\]")
_OF_NAMED: tuple[tuple[str, Any, Any], ...] = (("env", str, EnvValue), ("processes", ProcessName, Command))
"""Tables whose keys are the user's own, with the types of key and value; a message about them does not say which."""


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest; raises as `text_of` and `parse_manifest`."""
    return parse_manifest(path, text_of(path))


def parse_manifest(path: Path, text: str) -> Manifest:
    """Check a manifest of this text; `path` is what it is called.

    Raises:
        ManifestError: it is no TOML, or says what is unknown, misspelt or not supported; with the lines.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ManifestError(path, text, (Fault((), str(error)),)) from error
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise ManifestError(path, text, tuple(_faults(document, str(error)))) from error
    faults = tuple(unsupported(manifest))
    if faults:
        raise ManifestError(path, text, faults)
    return manifest


def text_of(path: Path) -> str:
    """The text of a manifest; `-` is stdin.

    Raises:
        ManifestError: it cannot be read, or is no text or far too long.
    """
    try:
        data = sys.stdin.buffer.read(_MAX_BYTES + 1) if path == STDIN else _bytes(path)
        if len(data) > _MAX_BYTES:
            raise ManifestError(path, "", (Fault((), "it is larger than 1 MiB, and so no manifest"),))
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ManifestError(path, "", (Fault((), f"it cannot be read: {reason}"),)) from error


def _bytes(path: Path) -> bytes:
    """A pipe that has a name would be waited for until somebody writes to it; those of a shell (`<(…)`) have none."""
    if path.is_fifo() and path.resolve().exists():
        raise ManifestError(path, "", (Fault((), "it is a pipe, and no file"),))
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1)


def _faults(document: dict[str, Any], message: str) -> Iterator[Fault]:
    """What the decoder found; it stops at the first."""
    named = list(_wrong_values(document))
    if named:
        yield from named
        return
    what, _, where = message.partition(" - at ")
    place = _place(where.strip("`"))
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is None:
        yield Fault(place, _plainly(what))
    else:
        yield Fault((*place, unknown["name"]), _no_such_key(place, unknown["name"]))


def _wrong_values(document: dict[str, Any]) -> Iterator[Fault]:
    for table, key, kind in _OF_NAMED:
        values = document.get(table)
        for name, value in values.items() if isinstance(values, dict) else ():
            try:
                msgspec.convert(name, key)
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                yield Fault((table, name), _plainly(str(error).partition(" - at ")[0]))


def _place(text: str) -> Place:
    return tuple(part["key"] or int(part["index"]) for part in _PART.finditer(text))


def _plainly(message: str) -> str:
    """The decoder's words in ours."""
    message = _REGEX.sub("of a-z, 0-9 and -, beginning with a letter", message)
    message = _TYPES.sub(lambda types: " or ".join(_words(types["names"])), message)
    return message[:1].lower() + message[1:]


def _words(names: str) -> Iterator[str]:
    for name in names.split(" | "):
        if name != "null":
            yield _WORDS.get(name, name)


def _no_such_key(place: Place, name: str) -> str:
    known = _keys_of(place)
    near = get_close_matches(name, known, n=1)
    return (
        f"there is no such key; did you mean {near[0]}?" if near else f"there is no such key; known: {', '.join(known)}"
    )


def _keys_of(place: Place) -> list[str]:
    """The keys of the table at a place."""
    kind: Any = Manifest
    for part in place:
        if not isinstance(part, int):
            kind = _table_of({each.encode_name: each.type for each in msgspec.structs.fields(kind)}.get(part))
    return [each.encode_name for each in msgspec.structs.fields(kind)]


def _table_of(kind: Any) -> Any:
    """The table in a type such as `list[Check]` or `HttpService | None`."""
    inner = get_args(kind)
    return next((found for each in inner if (found := _table_of(each)) is not None), None) if inner else _if_table(kind)


def _if_table(kind: Any) -> Any:
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None
