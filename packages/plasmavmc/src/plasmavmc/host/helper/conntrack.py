"""The kernel's memory of connections (connection tracking), told and shortened by its own messages.

Theory. That memory has room for a quarter of a million on most hosts, and `pyroute2` makes objects of each entry: a minute
of work. Here an entry is looked at by what stands at the same place in all of them, and what is to be forgotten is named by
the bytes in which it was told: half a second for all of them, with a few thousand some milliseconds.

Its two addresses are who opened it, and who answers, after translation. Who answers need not be whom it was opened to, nor
does who opened it hear the answers under that address: but an address of a VM, which is translated on the way out and in
only, is always one of the two.

Traps: an entry is found again by its tuple within its zone alone, and another may have the same tuple by then, so zone and
id are named as well; that one is gone already is told as an error, and is none. Ports stand where they are read here with
protocols that have ports only. A kernel before Linux 5.15 tells of all, whatever status is asked for.
Source: linux/netfilter/nfnetlink_conntrack.h; net/netfilter/nf_conntrack_netlink.c, `ctnetlink_fill_info`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from plasmavmc.host.helper.nft_elements import ATTRIBUTE, HEADER, NETLINK_NETFILTER

_SUBSYSTEM = 1
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_START = struct.Struct("=IH")
"""Length and kind, with which each message begins."""
_CODE, _CODE_AT = struct.Struct("=i"), 16
_FAMILY_AT = 16
_ADDRESS_BYTES = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
_SOURCE_AT = 12
"""Of a tuple: it begins with its addresses, and they with the source; behind both are the protocol and the ports."""
_PROTOCOL_AT, _SOURCE_PORT_AT, _PORT_AT = 12, 20, 28
_PORT = struct.Struct("!H")
_STATUS_VALUE = struct.Struct("!I")
_TUPLE, _STATUS, _ID, _ZONE = 1, 3, 12, 18
_LED = 1 << 5
"""Of a status: where it goes was translated (IPS_DST_NAT)."""
_NAMING = frozenset({_TUPLE, _ID, _ZONE})
_TYPE = 0x3FFF
_CHUNK = 1 << 17
_AT_ONCE = 256
_ANSWER_S = 20.0
_FILL = Path("/proc/sys/net/netfilter")


def crowded() -> bool:
    """Whether more than half of the room is taken; False where that cannot be told."""
    try:
        taken, room = (int((_FILL / name).read_text()) for name in ("nf_conntrack_count", "nf_conntrack_max"))
    except (OSError, ValueError):
        return False
    return taken > room // 2


class Entry(NamedTuple):
    """A connection, as it stands in what is told."""

    told: bytes
    at: int
    end: int
    address_bytes: int
    answer_at: int
    """Where the second tuple is: that of its answers."""

    @property
    def opener(self) -> bytes:
        """Address of who opened it."""
        return self._address(self.at + HEADER.size + _SOURCE_AT)

    @property
    def answerer(self) -> bytes:
        """Address of who answers."""
        return self._address(self.answer_at + _SOURCE_AT)

    @property
    def protocol(self) -> int:
        return self.told[self._behind(self.at + HEADER.size) + _PROTOCOL_AT]

    @property
    def port(self) -> int:
        """At which it was opened."""
        return self._port(self._behind(self.at + HEADER.size) + _PORT_AT)

    @property
    def answering_port(self) -> int:
        return self._port(self._behind(self.answer_at) + _SOURCE_PORT_AT)

    @property
    def is_led(self) -> bool:
        """Whether it was opened to another address or port than those that answer."""
        for kind, start, _ in _attributes(self.told, self.answer_at, self.end):
            if kind == _STATUS:
                return bool(_STATUS_VALUE.unpack_from(self.told, start + ATTRIBUTE.size)[0] & _LED)
        return False

    def _address(self, at: int) -> bytes:
        return self.told[at : at + self.address_bytes]

    def _port(self, at: int) -> int:
        number: int = _PORT.unpack_from(self.told, at)[0]
        return number

    def _behind(self, tuple_at: int) -> int:
        """Of a tuple, but for its addresses."""
        return tuple_at + _SOURCE_AT + 2 * self.address_bytes


Doomed = Callable[[Entry], bool]
"""Whether a connection is one that is to be forgotten."""


def forget_addresses(doomed: Callable[[bytes], bool]) -> None:
    """Forget all connections that a doomed address opened or answers; an address comes as its four or sixteen bytes.

    Raises:
        OSError: the kernel does not do that.
    """
    _forget(lambda entry: doomed(entry.opener) or doomed(entry.answerer), b"")


def forget_led(doomed: Doomed) -> None:
    """Forget all doomed connections of those that were opened to another address or port than those that answer.

    Raises:
        OSError: the kernel does not do that.
    """
    asked = ATTRIBUTE.pack(ATTRIBUTE.size + _STATUS_VALUE.size, _STATUS) + _STATUS_VALUE.pack(_LED)
    _forget(lambda entry: doomed(entry) and entry.is_led, asked)


def _forget(doomed: Doomed, asked: bytes) -> None:
    """`asked`: attributes of those that the kernel is to tell of."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.settimeout(_ANSWER_S)
        length = HEADER.size + len(asked)
        link.sendto(HEADER.pack(length, _GET, _REQUEST | _DUMP, 0, 0, socket.AF_UNSPEC, 0, 0) + asked, (0, 0))
        found = [_named(entry) for entry in _entries(link) if doomed(entry)]
        numbers = count(1)
        for start in range(0, len(found), _AT_ONCE):
            _delete(link, found[start : start + _AT_ONCE], numbers)


def _entries(link: socket.socket) -> Iterator[Entry]:
    """What is told."""
    while True:
        chunk, at = link.recv(_CHUNK), 0
        while at < len(chunk):
            length, kind = _START.unpack_from(chunk, at)
            if kind == _ERROR:
                _check(chunk, at)
            if kind in (_ERROR, _DONE):
                return
            tuple_bytes, _ = ATTRIBUTE.unpack_from(chunk, at + HEADER.size)
            if size := _ADDRESS_BYTES.get(chunk[at + _FAMILY_AT]):
                yield Entry(chunk, at, at + length, size, at + HEADER.size + (tuple_bytes + 3 & ~3))
            at += length + 3 & ~3


def _named(entry: Entry) -> tuple[int, bytes]:
    """Its family, and what it is found again by."""
    told, first = entry.told, entry.at + HEADER.size
    named = (told[start:past] for kind, start, past in _attributes(told, first, entry.end) if kind in _NAMING)
    return told[entry.at + _FAMILY_AT], b"".join(named)


def _attributes(told: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kinds of attributes, and from where to where they stand."""
    while at + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(told, at)
        past = at + max(length + 3 & ~3, ATTRIBUTE.size)
        yield kind & _TYPE, at, past
        at = past


def _delete(link: socket.socket, entries: Sequence[tuple[int, bytes]], numbers: Iterator[int]) -> None:
    """The last of them is acknowledged; of those before, only errors are told."""
    message, last = b"", 0
    for left, (family, named) in zip(range(len(entries) - 1, -1, -1), entries, strict=True):
        last = next(numbers)
        flags = _REQUEST | (0 if left else _ACK)
        message += HEADER.pack(HEADER.size + len(named), _DELETE, flags, last, 0, family, 0, 0) + named
    link.sendto(message, (0, 0))
    while True:
        answers, at = link.recv(_CHUNK), 0
        while at < len(answers):
            length, _ = _START.unpack_from(answers, at)
            _check(answers, at)
            if HEADER.unpack_from(answers, at)[3] == last:
                return
            at += length + 3 & ~3


def _check(answers: bytes, at: int) -> None:
    [code] = _CODE.unpack_from(answers, at + _CODE_AT)
    if code not in (0, -errno.ENOENT):
        raise OSError(-code, os.strerror(-code))
