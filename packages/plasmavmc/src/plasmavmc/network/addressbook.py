"""Which addresses of a node's subnet were given out, and in what order they came back: kept over restarts of the engine.

    <file>      a line that names the format and the subnet; then `+N` for the Nth address of it given out, `-N` for one
                that came back

Theory. What counts is that none is taken for one that nobody had. So what is given out is on the disk before anybody has it,
which costs little where several are entered at once; that one came back is only appended, for where a power cut takes that
away, it counts as given out. What is out when the engine begins came back just then, unless a VM is found that has it.

A file that is missing, or of another subnet, says nothing; a line that was not written whole is passed over. A disk that
takes no entry keeps no VM from its address: the whole is written anew with the next entry.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import structlog

from plasmavmc.host.files import sync_directory
from plasmavmc.host.threads import in_thread

FORMAT = 1
_LARGEST = 256 * 1024
"""Bytes of a file that is made short again, if that makes it half as long at least."""
_OUT, _BACK = "+", "-"

log = structlog.get_logger("plasmavmc.addresses")


class AddressBook:
    """Of one subnet. Without a file it remembers nothing beyond its own life."""

    def __init__(self, subnet: IPv4Network, path: Path | None = None) -> None:
        self._subnet = subnet
        self._path = path
        self._entries: dict[int, str] = {}
        """The last word on each address, by its number; the oldest first."""
        self._known: set[int] = set()
        """Those of which it is on the disk that they were given out once."""
        self._bytes = 0
        self._short = 0
        """Bytes of the file when it was last written anew."""
        self._whole = False
        """The file has all entries."""
        self._failing = False
        if path is not None:
            self._read(path)

    @property
    def order(self) -> Sequence[IPv4Address]:
        """Those that somebody had, as this began: the one that came back longest ago first."""
        return [self._subnet.network_address + number for number in self._entries]

    def give_out(self, addresses: Iterable[IPv4Address]) -> None:
        """Enter these, durably, as given out."""
        self._enter([self._number(address) for address in addresses], _OUT, sync=True)

    async def give_out_soon(self, addresses: Iterable[IPv4Address]) -> None:
        """As `give_out`, which has happened when this returns; a thread waits for the disk."""
        numbers = [self._number(address) for address in addresses]
        self._enter(numbers, _OUT, sync=False)
        if self._path is None or not self._whole:
            return
        try:
            await in_thread(_sync, self._path)
        except OSError as error:
            self._fails(self._path, error)
        else:
            self._known.update(numbers)

    def claim(self, address: IPv4Address) -> None:
        """This one is somebody's already; as `give_out`, if the disk does not know yet that somebody had it."""
        number = self._number(address)
        if self._entries.get(number) != _OUT:
            self._enter([number], _OUT, sync=number not in self._known)

    def take_back(self, address: IPv4Address) -> None:
        """This one came back just now."""
        self._enter([self._number(address)], _BACK, sync=False)

    def _number(self, address: IPv4Address) -> int:
        return int(address) - int(self._subnet.network_address)

    def _enter(self, numbers: Sequence[int], word: str, *, sync: bool) -> None:
        for number in numbers:
            self._entries.pop(number, None)
            self._entries[number] = word
        if self._path is None:
            return
        text = "".join(f"{word}{number}\n" for number in numbers)
        try:
            if self._whole and self._bytes + len(text) <= max(_LARGEST, 2 * self._short):
                self._append(self._path, text, numbers, sync=sync)
            else:
                self._rewrite(self._path)
        except OSError as error:
            self._fails(self._path, error)
        else:
            self._failing = False

    def _fails(self, path: Path, error: OSError) -> None:
        self._whole = False
        if not self._failing:
            log.error("addresses.not_written", file=str(path), reason=error.strerror or str(error))
        self._failing = True

    def _append(self, path: Path, text: str, numbers: Sequence[int], *, sync: bool) -> None:
        self._whole = False
        with path.open("r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            if file.write(text.encode()) != len(text):
                raise OSError("it was not written whole")
            if sync:
                os.fsync(file.fileno())
                self._known.update(numbers)
        self._bytes += len(text)
        self._whole = True

    def _rewrite(self, path: Path) -> None:
        text = self._head + "".join(f"{word}{number}\n" for number, word in self._entries.items())
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_directory(path.parent)
        self._bytes = self._short = len(text)
        self._whole = True
        self._known.update(self._entries)

    @property
    def _head(self) -> str:
        return f"addresses {FORMAT} {self._subnet}\n"

    def _read(self, path: Path) -> None:
        try:
            head, _, text = path.read_bytes().decode("ascii", "replace").partition("\n")
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("addresses.not_read", file=str(path), reason=error.strerror or str(error))
            return
        if f"{head}\n" != self._head:
            log.warning("addresses.foreign", file=str(path))
            return
        lines = text.split("\n")[:-1]  # behind the last newline is nothing, or what was not written whole
        for line in lines:
            word, digits = line[:1], line[1:]
            known = word in (_OUT, _BACK) and digits.isascii() and digits.isdigit() and len(digits) <= len("4294967295")
            if known and int(digits) < self._subnet.num_addresses:
                self._entries.pop(int(digits), None)
                self._entries[int(digits)] = word
        out = [number for number, word in self._entries.items() if word == _OUT]
        for number in out:
            del self._entries[number]
        self._entries.update(dict.fromkeys(out, _BACK))
        self._known.update(out)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
