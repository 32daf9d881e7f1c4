"""bpf(2): the few commands that programs at taps need, with values in and values out.

Trap: what the kernel does not know of the attributes must be zero, and what it knows more is zero: each command hands over
the same block of 128 bytes.

Source: bpf(2), include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from plasmavmc.host.architecture import BPF_CALL, MACHINE
from plasmavmc.host.helper.ebpf_object import MapSpec

INGRESS, EGRESS = 46, 47
"""BPF_TCX_INGRESS, BPF_TCX_EGRESS."""
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 0, 1, 2, 3, 4
_PROGRAM_LOAD, _PIN, _GET = 5, 6, 7
_INFO, _LINK_CREATE, _LINK_UPDATE = 15, 28, 29
_ATTRIBUTES = 128
_SCHED_CLS = 3
_NAME_BYTES = 15
_LOG_BYTES = 64 * 1024
_MAP_INFO = struct.Struct("<6I")
_LINK_INFO = struct.Struct("<6I")
_LINK_TCX = 11
_libc = ctypes.CDLL(None, use_errno=True)


def create_map(name: str, spec: MapSpec) -> int:
    """A descriptor of a new map. Raises `OSError`."""
    shape = (spec.type, spec.key_bytes, spec.value_bytes, spec.entries, spec.flags)
    return _bpf(_MAP_CREATE, struct.pack("<5I8x16s", *shape, name.encode()[:_NAME_BYTES]))


def spec_of_map(fd: int) -> MapSpec:
    """The shape of a map. Raises `OSError`: it is none."""
    type_, _, key_bytes, value_bytes, entries, flags = _MAP_INFO.unpack(_info(fd, _MAP_INFO.size))
    return MapSpec(type_, key_bytes, value_bytes, entries, flags)


def put(fd: int, key: bytes, value: bytes) -> None:
    keys, values = _buffer(key), _buffer(value)
    _bpf(_MAP_UPDATE, struct.pack("<I4xQQQ", fd, _address(keys), _address(values), 0))


def look_up(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """The value at a key, of all processors one after the other where the map has one for each; None: there is none."""
    keys, values = _buffer(key), ctypes.create_string_buffer(value_bytes)
    try:
        _bpf(_MAP_LOOKUP, struct.pack("<I4xQQQ", fd, _address(keys), _address(values), 0))
    except FileNotFoundError:
        return None
    return values.raw


def remove(fd: int, key: bytes) -> None:
    """Remove a key; one that is not there is fine."""
    keys = _buffer(key)
    try:
        _bpf(_MAP_DELETE, struct.pack("<I4xQQQ", fd, _address(keys), 0, 0))
    except FileNotFoundError:
        return


def keys_of(fd: int, key_bytes: int, most: int) -> Iterator[bytes]:
    """The keys of a map that nobody else changes meanwhile, at most so many."""
    key: ctypes.Array[ctypes.c_char] | None = None
    for _ in range(most):
        following = ctypes.create_string_buffer(key_bytes)
        try:
            _bpf(_MAP_NEXT, struct.pack("<I4xQQQ", fd, 0 if key is None else _address(key), _address(following), 0))
        except FileNotFoundError:
            return
        yield following.raw
        key = following


def load_program(name: str, code: bytes, license_text: str) -> int:
    """A descriptor of a program for the traffic of interfaces.

    Raises:
        OSError: the kernel refuses it; the end of what its verifier said is the error's text.
    """
    instructions, licensed = _buffer(code), _buffer(license_text.encode() + b"\0")

    def attributes(log: int, log_bytes: int) -> bytes:
        start = struct.pack("<IIQQ", _SCHED_CLS, len(code) // 8, _address(instructions), _address(licensed))
        return start + struct.pack("<IIQII16s", int(log != 0), log_bytes, log, 0, 0, name.encode()[:_NAME_BYTES])

    try:
        return _bpf(_PROGRAM_LOAD, attributes(0, 0))
    except OSError as refused:
        if refused.errno not in (errno.EACCES, errno.EINVAL):
            raise
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return _bpf(_PROGRAM_LOAD, attributes(_address(log), _LOG_BYTES))
        except OSError as error:
            said = log.value.decode(errors="replace").strip()[-300:]
            raise OSError(error.errno, f"{error.strerror}: {said}" if said else error.strerror) from refused


def pin(fd: int, path: Path) -> None:
    """Let a map or link live on by a name in a bpf file system."""
    name = _buffer(bytes(path) + b"\0")
    _bpf(_PIN, struct.pack("<QI", _address(name), fd))


def pinned(path: Path) -> int | None:
    """A descriptor of what was pinned; None: nothing was."""
    name = _buffer(bytes(path) + b"\0")
    try:
        return _bpf(_GET, struct.pack("<Q", _address(name)))
    except FileNotFoundError:
        return None


def attach(program: int, interface: int, hook: int) -> int:
    """A link of a program to an interface's traffic (tcx); it ends with its last descriptor, unless it is pinned."""
    return _bpf(_LINK_CREATE, struct.pack("<IIII", program, interface, hook, 0))


def exchange(link: int, program: int) -> None:
    """Let a link run another program from the next frame on; none passes between the two."""
    _bpf(_LINK_UPDATE, struct.pack("<II", link, program))


def interface_of(link: int) -> int:
    """The interface that a link is attached to; 0: that interface has ended."""
    type_, *_, interface, _ = _LINK_INFO.unpack(_info(link, _LINK_INFO.size))
    if type_ != _LINK_TCX:
        raise OSError(errno.EINVAL, "this is no link to an interface's traffic")
    return int(interface)


def _info(fd: int, length: int) -> bytes:
    room = ctypes.create_string_buffer(length)
    _bpf(_INFO, struct.pack("<IIQ", fd, length, _address(room)))
    return room.raw


def _bpf(command: int, attributes: bytes) -> int:
    if BPF_CALL is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {MACHINE} is not known")
    block = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
    result = int(_libc.syscall(BPF_CALL, command, block, _ATTRIBUTES))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)
