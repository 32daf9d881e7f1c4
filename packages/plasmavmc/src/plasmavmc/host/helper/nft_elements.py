"""Elements of nftables sets, changed by a message to the kernel: for what every start of a VM waits for.

Theory. `nft` is a program to be started, reads text, asks for what there is, and compiles: for a few elements that is many
times the work itself, which needs nothing but their bytes. The kernel takes a batch as one transaction, and only where the
rules are in the state (the generation) that the sender names. So a change is in force as a whole, on what it was made for,
or not at all; who is refused loads everything by `nft`.

Traps: of a key with several parts each is filled up to four bytes, and a key of one part is not. A mark is in the byte
order of the host, all else in that of the network; in a set of ranges, which have to be in order, a mark too. There a key
has two ends, also where they are the same. The first answer to a batch is its first error, or else what was asked for with
its last message.

Source: linux/netfilter/nf_tables.h and nfnetlink.h; net/netfilter/nfnetlink.c, `nfnetlink_rcv_batch`.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plasmavmc.host.helper.nft import NamedSet

NETLINK_NETFILTER = 12
HEADER = struct.Struct("=IHHIIBBH")
"""nlmsghdr and nfgenmsg."""
ATTRIBUTE = struct.Struct("=HH")
ANSWER_S = 1.0
_ERROR = struct.Struct("=i")
_ERROR_AT = 16
_SUBSYSTEM = 10
_BEGIN, _END = 0x10, 0x11
_NEW, _DELETE = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14
_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_NESTED = 0x8000
_FAMILIES = {"inet": 1, "bridge": 7}
_GENERATION, _TABLE, _SET, _ELEMENTS = 1, 1, 2, 3
_ELEMENT, _KEY, _DATA, _KEY_END, _VALUE = 1, 1, 2, 10, 1
_NAME_BYTES = 16
_A_MESSAGE = 256
"""Elements of one message: the length of an attribute has 16 bits."""


_Order = Literal["big", "little"]
_Elements = tuple[int, int, tuple[str, str], list[str]]
"""Kind and flags of a message; family and set; elements."""


class Element(NamedTuple):
    """An element of a set, as in `nft`'s text."""

    family: str
    set: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """Elements that come, and that go before."""

    added: frozenset[Element] = frozenset()
    removed: frozenset[Element] = frozenset()

    @property
    def is_empty(self) -> bool:
        return not self.added and not self.removed


@dataclass(frozen=True, slots=True)
class Layout:
    """What the elements of a set are made of: names of nftables' types."""

    key: tuple[str, ...]
    data: tuple[str, ...]
    ranges: bool

    @classmethod
    def of(cls, each: NamedSet) -> Layout:
        """That of a set of ours."""
        key, _, data = each.type.partition(" : ")
        return cls(tuple(key.split(" . ")), tuple(data.split(" . ")) if data else (), each.ranges)


def batch(table: str, layouts: Mapping[tuple[str, str], Layout], change: Change, generation: int) -> bytes:
    """The message that makes a change of some elements to a table in this state."""
    orders = [*_orders(_DELETE, 0, change.removed), *_orders(_NEW, _CREATE | _EXCLUSIVE, change.added)]
    messages = [_message(_BEGIN, 0, 0, _attribute(_GENERATION, generation.to_bytes(4, "big")), _SUBSYSTEM)]
    for number, (kind, flags, (family, name), texts) in enumerate(orders, 1):
        listed = b"".join(_element(layouts[family, name], text, whole=kind == _NEW) for text in texts)
        content = _text(_TABLE, table) + _text(_SET, name) + _attribute(_ELEMENTS | _NESTED, listed)
        messages.append(_message(kind, flags | (_ACK if number == len(orders) else 0), _FAMILIES[family], content))
    return b"".join((*messages, _message(_END, 0, 0, b"", _SUBSYSTEM)))


def commit(message: bytes) -> None:
    """Have the kernel make a change. Raises `OSError` where it does not, or does not say so."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as link:
        link.settimeout(ANSWER_S)
        link.sendto(message, (0, 0))
        [code] = _ERROR.unpack_from(link.recv(1 << 16), _ERROR_AT)
    if code:
        raise OSError(-code, os.strerror(-code))


def _orders(kind: int, flags: int, elements: Iterable[Element]) -> Iterator[_Elements]:
    found: dict[tuple[str, str], list[str]] = {}
    for each in sorted(elements):
        found.setdefault((each.family, each.set), []).append(each.text)
    for place, texts in found.items():
        for start in range(0, len(texts), _A_MESSAGE):
            yield kind, flags, place, texts[start : start + _A_MESSAGE]


def _element(layout: Layout, text: str, *, whole: bool) -> bytes:
    """`whole`: with what a map has for its key."""
    key, _, data = text.partition(" : ")
    parts = key.split(" . ")
    ends = [part.partition("-") for part in parts] if layout.ranges else [(part, "", "") for part in parts]
    order: _Order = "big" if layout.ranges else sys.byteorder
    found = [_data(_KEY, layout.key, [first for first, _, _ in ends], order)]
    if whole and data:
        found.append(_data(_DATA, layout.data, data.split(" . "), order))
    if layout.ranges:
        found.append(_data(_KEY_END, layout.key, [last or first for first, _, last in ends], order))
    return _attribute(_ELEMENT | _NESTED, b"".join(found))


def _data(kind: int, types: tuple[str, ...], parts: list[str], order: _Order) -> bytes:
    values = [_packed(name, part, order) for name, part in zip(types, parts, strict=True)]
    value = values[0] if len(values) == 1 else b"".join(map(_filled, values))
    return _attribute(kind | _NESTED, _attribute(_VALUE, value))


def _message(kind: int, flags: int, family: int, content: bytes, resource: int = 0) -> bytes:
    length = HEADER.size + len(content)
    return HEADER.pack(length, kind, flags | _REQUEST, 0, 0, family, 0, socket.htons(resource)) + content


def _attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + _filled(value)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _filled(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def _packed(kind: str, text: str, order: _Order) -> bytes:
    """A value of one of nftables' types."""
    match kind:
        case "ipv4_addr":
            return socket.inet_pton(socket.AF_INET, text)
        case "ipv6_addr":
            return socket.inet_pton(socket.AF_INET6, text)
        case "ether_addr":
            return bytes.fromhex(text.replace(":", ""))
        case "ifname":
            return text.strip('"').encode().ljust(_NAME_BYTES, b"\0")
        case "mark":
            return int(text).to_bytes(4, order)
        case "inet_proto" | "inet_service":
            return int(text).to_bytes(1 if kind == "inet_proto" else 2, "big")
        case _:
            raise ValueError(f"elements of type {kind} are changed by nft alone")
