"""The kernel's memory of connections (connection tracking), told and shortened by its own messages.

Theory. That memory has room for a quarter of a million on most hosts, and `pyroute2` makes objects of each entry: a minute
of work. Here an entry is looked at by two addresses, at the places where they always stand, and what is to be forgotten is
named by the bytes in which it was told: 0.4 s for all of them, with a few thousand some milliseconds.

The two are who opened it, and who answers, after translation. Who answers need not be whom it was opened to, nor does who
opened it hear the answers under that address: but an address of a VM, which is translated on the way out and in only, is
always one of the two.

Traps: an entry is found again by its tuple within its zone alone, and another may have the same tuple by then, so zone and
id are named as well; that one is gone already is told as an error, and is none.
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
"""Of a tuple: it begins with its addresses, and they with the source."""
_TUPLE, _ID, _ZONE = 1, 12, 18
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


def forget(doomed: Callable[[bytes], bool]) -> None:
    """Forget all connections that a doomed address opened or answers; an address comes as its four or sixteen bytes.

    Raises:
        OSError: the kernel does not do that.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.settimeout(_ANSWER_S)
        link.sendto(HEADER.pack(HEADER.size, _GET, _REQUEST | _DUMP, 0, 0, socket.AF_UNSPEC, 0, 0), (0, 0))
        found = [_named(chunk[at:end]) for chunk, at, end in _entries(link, doomed)]
        numbers = count(1)
        for start in range(0, len(found), _AT_ONCE):
            _delete(link, found[start : start + _AT_ONCE], numbers)


def _entries(link: socket.socket, doomed: Callable[[bytes], bool]) -> Iterator[tuple[bytes, int, int]]:
    """Where those of doomed addresses stand in what is told."""
    while True:
        chunk, at = link.recv(_CHUNK), 0
        while at < len(chunk):
            length, kind = _START.unpack_from(chunk, at)
            if kind == _ERROR:
                _check(chunk, at)
            if kind in (_ERROR, _DONE):
                return
            size = _ADDRESS_BYTES.get(chunk[at + _FAMILY_AT], 0)
            opened_at = at + HEADER.size + _SOURCE_AT
            tuple_bytes, _ = ATTRIBUTE.unpack_from(chunk, at + HEADER.size)
            answers_at = opened_at + (tuple_bytes + 3 & ~3)
            if size and (doomed(chunk[opened_at : opened_at + size]) or doomed(chunk[answers_at : answers_at + size])):
                yield chunk, at, at + length
            at += length + 3 & ~3


def _named(entry: bytes) -> tuple[int, bytes]:
    """Its family, and what it is found again by."""
    found, rest = b"", entry[HEADER.size :]
    while len(rest) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(rest)
        whole = max(length + 3 & ~3, ATTRIBUTE.size)
        if kind & _TYPE in (_TUPLE, _ID, _ZONE):
            found += rest[:whole]
        rest = rest[whole:]
    return entry[_FAMILY_AT], found


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
