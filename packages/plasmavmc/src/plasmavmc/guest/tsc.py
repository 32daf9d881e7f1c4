"""The frequency of the host's time stamp counter.

An emulated guest on the microvm machine has no other clock to calibrate by; without `tsc_early_khz` most boots hang on a
loaded host. The kernel's own value is not exported, so it is measured: the counter is read twice with a pause between.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from functools import cache

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""x86-64: rdtsc; shl rdx,32; or rax,rdx; ret"""
_PAUSE_S = 0.05
_ATTEMPTS = 3


def _reader() -> tuple[Callable[[], int], mmap.mmap]:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_RDTSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return ctypes.CFUNCTYPE(ctypes.c_uint64)(address), code


def _measure(read: Callable[[], int]) -> tuple[int, int]:
    """(nanoseconds of uncertainty, kHz) of one measurement."""
    before = time.monotonic_ns()
    first = read()
    middle = time.monotonic_ns()
    time.sleep(_PAUSE_S)
    after = time.monotonic_ns()
    last = read()
    end = time.monotonic_ns()
    elapsed_doubled = (after + end) - (before + middle)
    return (middle - before) + (end - after), round((last - first) * 2_000_000 / elapsed_doubled)


@cache
def tsc_khz() -> int:
    """kHz of this host's TSC; takes 150 ms the first time. The measurement least disturbed by others counts."""
    read, code = _reader()
    result = min(_measure(read) for _ in range(_ATTEMPTS))[1]
    del code
    return result
