"""What is wrong with a manifest, and in which line."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]
"""Keys and places in lists, from the root on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    place: Place
    message: str


class ManifestError(Exception):
    """A manifest that cannot be used. Its text has a line for each fault: file, line, key, and what is wrong."""

    def __init__(self, path: Path, text: str, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(_told(path, text, fault) for fault in faults))
        self.faults = faults


def _told(path: Path, text: str, fault: Fault) -> str:
    line = line_of(text, fault.place)
    where = f"{path}:{line}" if line else str(path)
    return f"{where}: {name_of(fault.place)}: {fault.message}" if fault.place else f"{where}: {fault.message}"


def name_of(place: Place) -> str:
    """A place as people write it: `checks[0].port`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


def line_of(text: str, place: Place) -> int:
    """The line in which a place begins, or the nearest thing around it that is there; 0 where there is none.

    TOML's parser keeps no positions. But a beginning of the file that ends with a whole statement is a document by itself:
    the first such that has the place shows where its statement ended, and the one before where it began.
    """
    lines = text.splitlines(keepends=True)
    for depth in range(len(place), 0, -1):
        whole = 0
        for count in range(1, len(lines) + 1):
            try:
                document = tomllib.loads("".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if _has(document, place[:depth]):
                return whole + 1
            whole = count
    return 0


def _has(document: Any, place: Place) -> bool:
    for part in place:
        if isinstance(document, dict):
            if part not in document:
                return False
        elif not (isinstance(document, list) and isinstance(part, int) and part < len(document)):
            return False
        document = document[part]
    return True
