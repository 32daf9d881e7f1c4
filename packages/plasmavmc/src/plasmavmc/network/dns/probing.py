"""Whether a resolver answers, asked as anybody on this host may: a refusal is an answer."""

from __future__ import annotations

import secrets
import socket

from plasmavmc.host.operations import RESOLVER_PORT
from plasmavmc.network.dns import wire

_TRIES = 3


def is_own_address(address: str) -> bool:
    """Whether this host has the address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((address, 0))
        except OSError:
            return False
    return True


def answers(address: str, port: int = RESOLVER_PORT, *, wait_s: float = 0.5) -> bool:
    """Whether whoever is there answers a question for a name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(wait_s)
        for _ in range(_TRIES):
            id_ = secrets.randbits(16)
            question = wire.name_of("internal") + wire.SOA.to_bytes(2, "big") + wire.IN.to_bytes(2, "big")
            try:
                asking.connect((address, port))
                asking.send(wire.encode_query(id_, question, 0, edns=False, dnssec=False))
                if asking.recv(wire.PLAIN_UDP)[:2] == id_.to_bytes(2, "big"):
                    return True
            except OSError:
                continue
    return False
