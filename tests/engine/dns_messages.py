"""DNS messages for tests, made and read without the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from plasmavmc.network.dns.names import Askers, Names, NetworkNames, ServicePlace
from plasmavmc.network.dns.resolver import Resolver

A, SOA, PTR, TXT, AAAA, SRV = 1, 6, 12, 16, 28, 33
RD = 0x0100
SHOP, OTHER = "10.64.0.2", "10.64.0.9"
"""VMs of two networks."""


def encoded(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str, type_: int = A, *, id_: int = 1, flags: int = RD, count: int = 1, klass: int = 1) -> bytes:
    return struct.pack("!6H", id_, flags, count, 0, 0, 0) + encoded(name) + struct.pack("!2H", type_, klass)


def edns(payload: int, *, version: int = 0, dnssec: bool = False) -> bytes:
    return b"\0" + struct.pack("!2HIH", 41, payload, version << 16 | (0x8000 if dnssec else 0), 0)


def with_edns(message: bytes, payload: int = 1232, *, version: int = 0, dnssec: bool = False) -> bytes:
    return message[:10] + b"\0\1" + message[12:] + edns(payload, version=version, dnssec=dnssec)


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, read."""

    id: int
    rcode: int
    cut: bool
    authoritative: bool
    records: tuple[tuple[int, str], ...]
    """Type and data of the answer section, as text."""
    authority: int
    additional: int
    size: int

    @property
    def values(self) -> list[str]:
        return [value for _, value in self.records]


def read(data: bytes | None) -> Told:
    assert isinstance(data, bytes)
    id_, flags, questions, answers, authority, additional = struct.unpack_from("!6H", data)
    at = 12
    for _ in range(questions):
        at = _name(data, at)[1] + 4
    records = []
    for _ in range(answers):
        _, at = _name(data, at)
        type_, _, _, length = struct.unpack_from("!2HIH", data, at)
        at += 10
        records.append((type_, _text(type_, data, at, length)))
        at += length
    return Told(
        id_, flags & 0xF, bool(flags & 0x200), bool(flags & 0x400), tuple(records), authority, additional, len(data)
    )


def _text(type_: int, data: bytes, at: int, length: int) -> str:
    if type_ in (A, AAAA):
        return str(ip_address(data[at : at + length]))
    if type_ == SRV:
        return f"{_name(data, at + 6)[0]}:{struct.unpack_from('!H', data, at + 4)[0]}"
    if type_ == TXT:
        return data[at + 1 : at + length].decode()
    return _name(data, at)[0]


def _name(data: bytes, at: int) -> tuple[str, int]:
    labels, end = [], 0
    while data[at]:
        if data[at] >= 0xC0:
            end = end or at + 2
            at = (data[at] & 0x3F) << 8 | data[at + 1]
            continue
        labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
        at += 1 + data[at]
    return ".".join(labels), end or at + 1


NAMES = Names(
    networks={
        "net_shop": NetworkNames(
            hosts={
                "web": ("10.64.0.2", "fd00::2", "10.64.0.3", "10.64.0.4"),
                "worker.web": ("10.64.0.4",),
                "ill": (),
                "vm-1.vm": ("10.64.0.2", "fd00::2"),
                "vm-3.vm": ("10.64.0.3",),
            },
            services={
                "_web._tcp.web": (ServicePlace(target="vm-1.vm", port=8080), ServicePlace(target="vm-3.vm", port=80))
            },
            texts={"_apps": ("web,ill",)},
        ),
        "net_other": NetworkNames(hosts={"web": ("10.64.0.9",)}),
    }
)
ASKERS = Askers(networks={SHOP: "net_shop", OTHER: "net_other", "10.64.0.8": "net_empty"})


def told_resolver() -> Resolver:
    """One that knows two networks."""
    resolver = Resolver()
    resolver.tell_askers(ASKERS)
    resolver.tell_names(NAMES)
    return resolver
