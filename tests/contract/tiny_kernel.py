"""Guest kernels of a few instructions, for a VMM that loads 64-bit ELF files: no driver, no interrupt, no Linux.

They show that a VMM runs what it was given and how it ends; they say nothing of Linux guests.
"""

from __future__ import annotations

import struct

_LOAD = 0x100_000
"""Where Linux on x86-64 is loaded at the lowest (boot protocol)."""
_HEADER = 64 + 56
_CODE = _LOAD + _HEADER


def _elf(code: bytes) -> bytes:
    """An executable with one segment that holds everything, headers too."""
    size = _HEADER + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _CODE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _LOAD, _LOAD, size, size, 0x1000)
    return ident + header + segment + code


def _write_port(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al"""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def idle(words: bytes = b"up\n") -> bytes:
    """Writes to the serial port, then does nothing for ever."""
    return _elf(b"".join(_write_port(0x3F8, byte) for byte in words) + b"\xf3\x90\xeb\xfc")


def chatter() -> bytes:
    """Writes to the serial port for ever."""
    return _elf(_write_port(0x3F8, ord("x")) + _write_port(0x3F8, ord("\n")) + b"\xeb\xf0")


def reset() -> bytes:
    """Resets the CPU by the keyboard controller, as Linux does under `reboot=k`."""
    return _elf(_write_port(0x64, 0xFE) + b"\xf4\xeb\xfd")
