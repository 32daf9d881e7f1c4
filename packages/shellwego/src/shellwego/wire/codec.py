"""Core dataclasses to bytes and back, strictly: unknown fields are ignored (a newer peer), wrong types are refused.

The one place where a `Sensitive` is encoded: it travels, and is kept nowhere.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from shellwego.core.sensitive import Sensitive

T = TypeVar("T")


def encode(message: object) -> bytes:
    """A message as MessagePack."""
    return _ENCODER.encode(message)


def decode(kind: type[T], data: bytes) -> T:
    """Parse a message of this kind.

    Raises:
        ValueError: it is not one (`msgspec.ValidationError`).
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:  # made once for each kind: to read a kind's fields costs more than to parse most messages
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind, dec_hook=_hide)
    try:
        message: T = decoder.decode(data)
    except RecursionError:  # also within what is passed over
        raise msgspec.ValidationError("nested too deeply") from None
    return message


def _reveal(value: object) -> bytes:
    if isinstance(value, Sensitive):
        return value.reveal()
    raise TypeError(type(value).__name__)


def _hide(kind: type, value: object) -> object:
    if kind is Sensitive and isinstance(value, bytes):
        return Sensitive(value)
    raise TypeError(kind.__name__)


_DECODERS: dict[type, msgspec.msgpack.Decoder[Any]] = {}
_ENCODER = msgspec.msgpack.Encoder(enc_hook=_reveal)
