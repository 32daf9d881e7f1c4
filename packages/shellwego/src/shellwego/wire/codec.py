"""Core dataclasses to bytes and back, strictly: unknown fields are ignored (a newer peer), wrong types are refused."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def encode(message: object) -> bytes:
    """A message as MessagePack."""
    return msgspec.msgpack.encode(message)


def decode(kind: type[T], data: bytes) -> T:
    """Parse a message of this kind.

    Raises:
        ValueError: it is not one (`msgspec.ValidationError`).
    """
    return msgspec.msgpack.decode(data, type=kind)
