"""Payloads of the guest channel: our words to bytes, the guest's bytes to events. Pure.

The guest's words are hostile: each is checked for size and form, and text is decoded with replacement and cut.
"""

from __future__ import annotations

import signal as signals
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum

from plasmavmc.errors import GuestError, InvalidSpecError
from plasmavmc.guest.api import (
    GuestCard,
    GuestConfig,
    GuestExited,
    GuestFailed,
    GuestHello,
    GuestNetwork,
    GuestOutput,
    GuestReady,
    GuestVolume,
)
from plasmavmc.guest.framing import MAX_PAYLOAD, Frame, fields, put_field
from plasmavmc.types import MIB, CopyTarget, ExecSpec, FileSpec, LogStream, Stdio, TerminalSize

PROTOCOL_VERSION = 1
MAX_CONFIG = 4 * MIB
MAX_TEXT = 400
_RTMIN = 34
"""SIGRTMIN as the C library counts it; the kernel's first two belong to threads."""
_ATTACHED, _OPEN = 1, 2
_READ_ONLY = 1
_MAX_PATH, _MAX_NAME = 4095, 255
_STREAMS = {1: LogStream.STDOUT, 2: LogStream.STDERR}

_HELLO = struct.Struct("<HBBQ")
_EXITED = struct.Struct("<IB")
_OUTPUT = struct.Struct("<QB")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SIZE = struct.Struct("<HH")
_STOP = struct.Struct("<II")
_ORDER = struct.Struct("<BBQ")


class Order(IntEnum):
    """What a guest is to do with a volume of its own."""

    FREEZE = 1
    THAW = 2
    GROW = 3


class Tag(IntEnum):
    ARG = 1
    ENV = 2
    USER = 3
    WORKDIR = 4
    TERMINAL = 5
    STDIO = 6
    HOSTNAME = 16
    IPV4 = 17
    GATEWAY = 18
    NAMESERVER = 19
    FILE = 20
    ENTROPY = 21
    TIME = 22
    MAC = 23
    GENERATION = 24
    MACHINE_ID = 25
    VOLUME = 26
    IPV6 = 27
    GATEWAY_MAC = 28
    CODE = 32
    MESSAGE = 33
    PATH = 40
    NAME = 41
    CONTENTS = 42


def _text(field: str, tag: Tag, value: str) -> bytes:
    raw = value.encode(errors="surrogateescape")
    if b"\0" in raw:
        raise InvalidSpecError(field, "contains a NUL byte")
    return put_field(tag, raw)


def _command(argv: tuple[str, ...], env: Mapping[str, str]) -> Iterator[bytes]:
    if not argv or not argv[0]:
        raise InvalidSpecError("command", "is empty")
    for argument in argv:
        yield _text("command", Tag.ARG, argument)
    for key, value in env.items():
        if not key or "=" in key:
            raise InvalidSpecError("env", f"{key!r} is no name of a variable")
        yield _text(f"env.{key}", Tag.ENV, f"{key}={value}")


def _file(file: FileSpec) -> bytes:
    path = file.path.encode()
    if not file.path.startswith("/") or file.path.endswith("/") or b"\0" in path or len(path) > 4000:
        raise InvalidSpecError("files", f"{file.path[:80]!r} is not the absolute path of a file")
    return put_field(Tag.FILE, struct.pack("<IH", file.mode & 0o7777, len(path)) + path + file.content)


def _volume(volume: GuestVolume) -> bytes:
    place = volume.destination.encode()
    if not volume.destination.startswith("/") or len(place) < 2 or b"\0" in place or len(place) > _MAX_PATH:
        raise InvalidSpecError("volumes", f"{volume.destination[:80]!r} is not the absolute path of a directory")
    return put_field(Tag.VOLUME, bytes([volume.disk, _READ_ONLY if volume.read_only else 0]) + place)


def _network(network: GuestNetwork | None) -> Iterator[bytes]:
    if network is not None:
        yield put_field(Tag.IPV4, network.ipv4.packed)
        yield put_field(Tag.GATEWAY, network.gateway.packed)
        for server in network.nameservers:
            yield _text("nameservers", Tag.NAMESERVER, server)
        if network.mac:
            yield put_field(Tag.MAC, _mac(network.mac))
        if network.ipv6 is not None:
            yield put_field(Tag.IPV6, network.ipv6.packed)
            yield put_field(Tag.GATEWAY_MAC, _mac(network.gateway_mac))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def encode_card(card: GuestCard) -> bytes:
    """What a held guest is told before it runs on.

    Raises:
        InvalidSpecError: something in it cannot be said.
    """
    parts = [
        put_field(Tag.TIME, _U64.pack(card.unix_time_ns)),
        put_field(Tag.ENTROPY, card.entropy),
        put_field(Tag.GENERATION, _U64.pack(card.generation)),
        *_network(card.network),
    ]
    if card.hostname:
        parts.append(_text("hostname", Tag.HOSTNAME, card.hostname))
    if card.machine_id:
        parts.append(put_field(Tag.MACHINE_ID, card.machine_id))
    return b"".join(parts)


def encode_config(config: GuestConfig) -> bytes:
    """The configuration as fields.

    Raises:
        InvalidSpecError: something in it cannot be said, or all of it exceeds 4 MiB.
    """
    parts = [
        *_command(config.argv, config.env),
        _text("user", Tag.USER, config.user),
        _text("workdir", Tag.WORKDIR, config.workdir),
        _text("hostname", Tag.HOSTNAME, config.hostname),
        *(_file(file) for file in config.files),
        *(_volume(volume) for volume in config.volumes),
        put_field(Tag.ENTROPY, config.entropy),
        put_field(Tag.TIME, _U64.pack(config.unix_time_ns)),
        *_network(config.network),
    ]
    parts += _stdio(config)
    encoded = b"".join(parts)
    if len(encoded) > MAX_CONFIG:
        raise InvalidSpecError("files", f"command, env and files exceed {MAX_CONFIG // MIB} MiB together")
    return encoded


def _stdio(config: GuestConfig) -> Iterator[bytes]:
    if config.stdio is not Stdio.LOGGED:
        yield put_field(Tag.STDIO, bytes([_ATTACHED | (_OPEN if config.stdio is Stdio.OPEN else 0)]))
    if config.stdio is Stdio.TERMINAL:
        yield put_field(Tag.TERMINAL, encode_size(config.terminal_size))


def encode_copy_in(target: CopyTarget) -> bytes:
    """A request to take in a tree.

    Raises:
        InvalidSpecError: a path or name that no guest can have.
    """
    if not 1 <= len(target.name.encode(errors="surrogateescape")) <= _MAX_NAME or "/" in target.name:
        raise InvalidSpecError("name", f"{target.name[:80]!r} is no name of a file")
    contents = (put_field(Tag.CONTENTS, b""),) if target.contents else ()
    return b"".join((_path(target.path), _text("name", Tag.NAME, target.name), *contents))


def encode_copy_out(path: str) -> bytes:
    """A request for a tree; raises as `encode_copy_in`."""
    return _path(path)


def _path(path: str) -> bytes:
    if not path.startswith("/") or len(path.encode(errors="surrogateescape")) > _MAX_PATH:
        raise InvalidSpecError(
            "path",
            f"{path[:80]!r} is not the absolute path of a file in the VM",
            resolution="Write VM:/PATH, with at most 4095 bytes.",
        )
    return _text("path", Tag.PATH, path)


def encode_exec(spec: ExecSpec) -> bytes:
    """A request to run a command; what it leaves open the guest takes from the workload.

    Raises:
        InvalidSpecError: something in it cannot be said, or all of it exceeds 64 KiB.
    """
    parts = list(_command(spec.command, spec.env))
    if spec.user is not None:
        parts.append(_text("user", Tag.USER, spec.user))
    if spec.workdir is not None:
        parts.append(_text("workdir", Tag.WORKDIR, spec.workdir))
    if spec.terminal is not None:
        parts.append(put_field(Tag.TERMINAL, encode_size(spec.terminal)))
    encoded = b"".join(parts)
    if len(encoded) > MAX_PAYLOAD:
        raise InvalidSpecError("command", f"command and env exceed {MAX_PAYLOAD // 1024} KiB together")
    return encoded


def encode_size(size: TerminalSize) -> bytes:
    """Rows and columns; what does not fit is brought to the nearest that does."""
    return _SIZE.pack(min(max(size.rows, 0), 65535), min(max(size.columns, 0), 65535))


def encode_u32(value: int) -> bytes:
    return _U32.pack(value)


def encode_u64(value: int) -> bytes:
    return _U64.pack(value)


def encode_stop(signal: str, grace_s: float) -> bytes:
    """A request to end.

    Raises:
        InvalidSpecError: no such signal.
    """
    return _STOP.pack(signal_number(signal), min(max(round(grace_s * 1000), 0), 0xFFFFFFFF))


def encode_order(order: Order, disk: int, size_bytes: int = 0) -> bytes:
    return _ORDER.pack(order, disk, size_bytes)


def signal_number(name: str) -> int:
    """The number of a Linux signal as images name it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.

    Raises:
        InvalidSpecError: no such signal.
    """
    text = name.strip().upper().removeprefix("SIG")
    number = -1
    if text.isascii() and text.isdigit():
        number = int(text)
    elif text == "RTMIN" or (text.startswith("RTMIN+") and text[6:].isascii() and text[6:].isdigit()):
        number = _RTMIN + int(text[6:] or 0)
    elif f"SIG{text}" in signals.Signals.__members__:
        number = signals.Signals[f"SIG{text}"].value
    if not 1 <= number <= 64:
        raise InvalidSpecError("signal", f"{name[:40]!r} is no signal", resolution="Use a name such as SIGTERM.")
    return number


def _unpack(layout: struct.Struct, frame: Frame) -> tuple[int, ...]:
    if len(frame.payload) < layout.size:
        raise GuestError("bad-frame", f"the guest sent a frame of type {frame.type} that is cut short")
    return layout.unpack_from(frame.payload)


def decode_hello(frame: Frame) -> GuestHello:
    """Raises `GuestError`: `guest-version`, or `bad-frame`."""
    version, configured, held, offset = _unpack(_HELLO, frame)
    if version != PROTOCOL_VERSION:
        raise GuestError(
            "guest-version",
            f"the guest's init speaks version {version} of the channel, not {PROTOCOL_VERSION}",
            resolution="Run `plasmavmc guest build`; VMs that were started before must be replaced.",
        )
    return GuestHello(configured=bool(configured), log_offset=offset, held=bool(held))


def decode_ready(frame: Frame) -> GuestReady:
    decode_u32(frame)  # the process id, which is of use within the guest alone
    return GuestReady()


def decode_failed(frame: Frame) -> GuestFailed:
    values = dict(fields(frame.payload))
    return GuestFailed(
        _readable(values.get(Tag.CODE, b"unknown"), 32), _readable(values.get(Tag.MESSAGE, b""), MAX_TEXT)
    )


def _readable(raw: bytes, limit: int) -> str:
    text = raw[:limit].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def decode_exited(frame: Frame) -> GuestExited:
    code, oom = _unpack(_EXITED, frame)
    return GuestExited(code & 0xFF, oom=bool(oom))


def decode_output(frame: Frame) -> GuestOutput:
    offset, stream = _unpack(_OUTPUT, frame)
    data = frame.payload[_OUTPUT.size :]
    if offset + len(data) >= 1 << 63:
        raise GuestError("bad-frame", "the guest counts more output than can be")
    return GuestOutput(_stream(stream), offset, data)


def decode_exec_output(frame: Frame) -> tuple[LogStream, bytes]:
    if not frame.payload:
        raise GuestError("bad-frame", "the guest sent output without a stream")
    return _stream(frame.payload[0]), frame.payload[1:]


def _stream(number: int) -> LogStream:
    if number not in _STREAMS:
        raise GuestError("bad-frame", f"the guest names an output stream {number}")
    return _STREAMS[number]


def decode_u32(frame: Frame) -> int:
    return _unpack(_U32, frame)[0]
