"""What travels over the socketpair between the unprivileged side and the root helper.

Theory. The socket is SOCK_SEQPACKET, so packets keep their bounds. A message is at most 768 packets of 64 KiB (the rules of
a full /20 need ten, 140 more where each VM has as long a list of destinations as it may, and 560 more where it has as
much ingress); each packet begins with a byte that tells whether more follows. Descriptors travel with the first packet
(SCM_RIGHTS) in the order that the message names them.
Requests are a closed set of types; anything else, too long, or with descriptors cut off is a `ProtocolError`, after which
the helper ends: its only client is our own code, so a broken message means that the client is no longer ours.

Traps: descriptors arrive even with a message that is then refused, and must be closed on every path; `socket.recv_fds`
ignores its flags, so what it receives would be inherited by every program started.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

import msgspec

from plasmavmc.host.operations import Bridge, Keep, Limits, Member, Peer, ProcessId, Reach, RuleSet, Source, TapRequest
from plasmavmc.host.ports import OpenPort
from plasmavmc.host.zfs import ZfsOrder

PACKET_BYTES = 64 * 1024
MAX_PACKETS = 768
MAX_DESCRIPTORS = 32
_MORE = b"\x01"
_LAST = b"\x00"
_PAYLOAD = PACKET_BYTES - 1
_ADDRESSES = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)
"""They travel as text."""

T = TypeVar("T")


class ProtocolError(Exception):
    """The peer sent what no peer of ours sends."""


class _Request(msgspec.Struct, forbid_unknown_fields=True, tag=str.lower):
    pass


class BridgeEnsure(_Request):
    bridge: Bridge


class RulesApply(_Request):
    rules: RuleSet


class RulesFault(_Request):
    pass


class RulesChange(_Request):
    """The rules that are in force, with these members in place of those that had these taps, these open ports, and these VMs
    of other nodes."""

    added: tuple[Member, ...]
    removed: tuple[str, ...]
    ports: tuple[OpenPort, ...] | None = None
    """None: those that there are."""
    sources: tuple[Source, ...] | None = None
    """Likewise."""


class RoutesApply(_Request):
    peers: tuple[Peer, ...]
    reach: Reach


class NetworksInUse(_Request):
    pass


class TapOpen(_Request):
    tap: TapRequest


class TapMake(_Request):
    pass


class TapForget(_Request):
    name: str


class LimitsLack(_Request):
    pass


class TapsGuarding(_Request):
    pass


class TapsUsage(_Request):
    names: tuple[str, ...]


class UidTake(_Request):
    key: str
    seat: bool = False
    """Rather that of a seat, if there is one."""


class UidFree(_Request):
    key: str


class SeatMake(_Request):
    kvm: bool


class VmSpawn(_Request):
    key: str
    argv: tuple[str, ...]
    limits: Limits
    fds: tuple[str, ...]
    """Names of the descriptors that come with this message, in their order."""


class VmLimit(_Request):
    key: str
    limits: Limits


class VmSignal(_Request):
    key: str
    process: ProcessId
    signal: int


class VmMemory(_Request):
    key: str
    process: ProcessId


class VmReap(_Request):
    key: str
    process: ProcessId


class VmFence(_Request):
    key: str
    until: float | None


class JailPrepare(_Request):
    key: str
    files: tuple[str, ...]
    """Names of the files whose descriptors come with this message, in their order."""


class JailOpen(_Request):
    key: str


class JailSpawn(_Request):
    key: str
    limits: Limits
    tap: TapRequest | None = None


class JailRemove(_Request):
    key: str


class CgroupPlace(_Request):
    name: str
    process: ProcessId


class Listen(_Request):
    address: str
    port: int


class ResolverSockets(_Request):
    pass


class ZfsOpen(_Request):
    pass


class ZfsLook(_Request):
    pass


class ZfsDo(_Request):
    order: ZfsOrder


class Sweep(_Request):
    keep: Keep


class Dismantle(_Request):
    pass


Request = (
    BridgeEnsure
    | RulesApply
    | RulesChange
    | RulesFault
    | RoutesApply
    | NetworksInUse
    | TapOpen
    | TapMake
    | TapForget
    | LimitsLack
    | TapsGuarding
    | TapsUsage
    | UidTake
    | UidFree
    | SeatMake
    | VmSpawn
    | VmLimit
    | VmSignal
    | VmMemory
    | VmReap
    | VmFence
    | JailPrepare
    | JailOpen
    | JailSpawn
    | JailRemove
    | CgroupPlace
    | Listen
    | ResolverSockets
    | ZfsOpen
    | ZfsLook
    | ZfsDo
    | Sweep
    | Dismantle
)


class SpawnedProcess(msgspec.Struct, frozen=True):
    """Answer to `VmSpawn` and `JailSpawn`; its descriptors are pidfd and stdout."""

    pid: int
    start_time: int
    confinement: str


class Failure(msgspec.Struct, frozen=True):
    """A refusal: at the client an `UnavailableError` where it is temporary, else a `HostError`."""

    code: str
    brief: str
    details: str = ""
    resolution: str = ""
    temporary: bool = False


class Reply(msgspec.Struct, frozen=True):
    failure: Failure | None = None
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    """The answer, still encoded: only the one who asked knows its type. The default is msgpack's nil."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message with the descriptors that came with it, which belong to the holder."""

    data: bytes
    fds: tuple[int, ...] = ()


def encode(value: object) -> bytes:
    return _ENCODER.encode(value)


def decode_request(data: bytes) -> Request:
    """Parse a request.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _REQUESTS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a request: {error}") from error


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Parse what the helper answered.

    Raises:
        ProtocolError: it is not of this type.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_from_text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not an answer: {error}") from error


def packets_of(data: bytes) -> list[bytes]:
    """Cut a message into packets.

    Raises:
        ProtocolError: it is too long.
    """
    parts = [data[start : start + _PAYLOAD] for start in range(0, len(data), _PAYLOAD)] or [b""]
    if len(parts) > MAX_PACKETS:
        raise ProtocolError(f"a message of {len(data)} bytes is too long")
    return [*(_MORE + part for part in parts[:-1]), _LAST + parts[-1]]


@dataclass(slots=True)
class Assembler:
    """Joins packets to messages. Owns the descriptors of a message that is not whole yet."""

    _parts: list[bytes] = field(default_factory=list)
    _fds: tuple[int, ...] = ()

    def add(self, packet: bytes, fds: tuple[int, ...] = ()) -> Message | None:
        """Take a packet and its descriptors; the whole message once the last packet is there.

        Raises:
            ProtocolError: too many packets, an unknown kind of packet, or descriptors with a later packet. All
                descriptors are closed.
        """
        if packet[:1] not in (_MORE, _LAST) or len(self._parts) >= MAX_PACKETS or (fds and self._parts):
            close_all(fds)
            self.discard()
            raise ProtocolError("a packet out of place")
        self._fds = self._fds or fds
        self._parts.append(packet[1:])
        if packet[:1] == _MORE:
            return None
        message = Message(b"".join(self._parts), self._fds)
        self._parts, self._fds = [], ()
        return message

    def discard(self) -> None:
        """Forget what was begun."""
        close_all(self._fds)
        self._parts, self._fds = [], ()


def receive_packet(connection: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    """One packet and its descriptors (close-on-exec); empty at the end of the connection, also where the other side ended
    with something unread, of which the kernel tells as a reset.

    Raises:
        ProtocolError: the packet or its descriptors were cut off.
    """
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
    try:
        data, extras, flags, _ = connection.recvmsg(PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", ()
    fds = array("i")
    for level, kind, content in extras:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise ProtocolError("a packet was cut off")
    return data, tuple(fds)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _to_text(value: object) -> Any:
    if isinstance(value, _ADDRESSES):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value)} does not travel")


def _from_text(kind: type, text: object) -> object:
    if kind in _ADDRESSES and isinstance(text, str):
        return kind(text)
    raise ValueError(f"{kind} is not made from {type(text)}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_text)
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request, dec_hook=_from_text)
