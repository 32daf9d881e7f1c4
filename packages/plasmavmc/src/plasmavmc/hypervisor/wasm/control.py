"""What travels between the backend and a worker: one packet a word, over a socketpair (SOCK_SEQPACKET).

The worker says `Ready` once it can take a module at once. It is then given `Assign` with descriptors, and `Start`. It may
say `Compiled`, with the native code in a memory file, so that the next worker of the same tenant need not compile.
What a worker says is hostile: bounded by the packet, of a closed set of types, and its code goes to nobody but its tenant.
"""

from __future__ import annotations

import socket
from array import array
from typing import TypeVar

import msgspec

PACKET_BYTES = 64 * 1024
MAX_DESCRIPTORS = 4
HTTP_BACKLOG = 1024
"""Connections that wait until the module is loaded, or until a busy worker takes them."""
MODULE, CHANNEL, COMPILED, LISTENER = "module", "channel", "compiled", "listener"
"""Names of descriptors: the module; the socket that the guest channel listens on; its native code; where HTTP comes."""


class Ready(msgspec.Struct, tag="ready"):
    pass


class Assign(msgspec.Struct, tag="assign"):
    """The one VM of this worker."""

    memory_bytes: int
    fds: tuple[str, ...]
    """Names of the descriptors that come with it, in their order."""
    deadline_s: float | None = None
    """After so many seconds of its life the module is interrupted."""


class Start(msgspec.Struct, tag="start"):
    pass


class Compiled(msgspec.Struct, tag="compiled"):
    """The descriptor is a memory file with what the module was compiled to."""


T = TypeVar("T")
Order = Assign | Start
Word = Ready | Compiled

_ORDERS: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_WORDS: msgspec.msgpack.Decoder[Word] = msgspec.msgpack.Decoder(Word)


def send(connection: socket.socket, value: Order | Word, fds: tuple[int, ...] = ()) -> None:
    """One word with its descriptors. Raises `OSError`."""
    socket.send_fds(connection, [msgspec.msgpack.encode(value)], fds)


def receive(connection: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    """One packet and its descriptors (close-on-exec); empty at the end. Raises `OSError`."""
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
    data, extras, _flags, _ = connection.recvmsg(PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in extras:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, tuple(fds)


def decode_order(data: bytes) -> Order:
    """Raises `msgspec.DecodeError`."""
    return _decoded(_ORDERS, data)


def decode_word(data: bytes) -> Word:
    """Raises `msgspec.DecodeError`."""
    return _decoded(_WORDS, data)


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"{type(error).__name__}: {error}") from error
