"""Waiting with a deadline: `poll_oneoff` of WASI preview 1, in place of the library's.

Theory. A deadline in epochs is seen by WebAssembly code, and by nothing that the code has called: in the library's own
`poll_oneoff` a module could sleep for ever. Here it is woken at its deadline, and the epoch does the rest. Files, pipes and
standard streams are all that a module can wait for, and they are always ready, as with the library. It is the only call
that waits for time; one that writes to a pipe ends when the other end is closed.

Traps: an exception must not leave the function, since the library keeps it in one place for all threads. The module's
monotonic clock begins where its WASI context is made, so `begin` is called just before.

Source: WASI preview 1, `witx/typenames.witx` (`subscription`, `event`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

import wasmtime

_MODULE, _NAME = "wasi_snapshot_preview1", "poll_oneoff"
_SUBSCRIPTION = Struct("<QB7xI4xQQH6x")
_EVENT = Struct("<QHB5xQH6x")
_CLOCK = 0
_REALTIME = 0
_ABSOLUTE = 1
_SUCCESS, _FAULT, _INVALID = 0, 21, 28
_MOST = 1024
_LONGEST_S = 3600.0
"""One sleep of ours: `time.sleep` has a limit, and a module may ask for more."""
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Subscription:
    userdata: int
    kind: int
    clock: int
    timeout_ns: int
    absolute: bool


class Waits:
    """See the module's head. Each thread runs one module at a time."""

    def __init__(self, linker: wasmtime.Linker) -> None:
        self._local = threading.local()
        i32 = wasmtime.ValType.i32()
        linker.allow_shadowing = True
        kind = wasmtime.FuncType([i32] * 4, [i32])
        linker.define_func(_MODULE, _NAME, kind, self._poll, access_caller=True)

    def begin(self, deadline_s: float | None) -> None:
        """This thread begins a run with this deadline."""
        self._local.began_ns = time.monotonic_ns()
        self._local.until_s = float("inf") if deadline_s is None else time.monotonic() + deadline_s

    def _poll(self, caller: wasmtime.Caller, at: int, events_at: int, count: int, told_at: int) -> int:
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory) or not 0 < count <= _MOST:
            return _INVALID
        at, events_at, told_at = (address & 0xFFFFFFFF for address in (at, events_at, told_at))
        ends = (at + count * _SUBSCRIPTION.size, events_at + count * _EVENT.size, told_at + 4)
        if max(ends) > memory.data_len(caller):
            return _FAULT
        wanted = _read(bytes(memory.read(caller, at, ends[0])))
        due = self._await(wanted)
        memory.write(
            caller, bytearray(b"".join(_EVENT.pack(each.userdata, 0, each.kind, 0, 0) for each in due)), events_at
        )
        memory.write(caller, bytearray(len(due).to_bytes(4, "little")), told_at)
        return _SUCCESS

    def _await(self, wanted: list[_Subscription]) -> list[_Subscription]:
        """Those that are due; they are waited for, at most until the deadline."""
        ready = [each for each in wanted if each.kind != _CLOCK]
        if ready:
            return ready
        soonest = min(wanted, key=self._remaining_s)
        until_s = min(time.monotonic() + self._remaining_s(soonest), self._local.until_s)
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _LONGEST_S))
        return [soonest]

    def _remaining_s(self, wanted: _Subscription) -> float:
        if not wanted.absolute:
            return wanted.timeout_ns / _NANO
        now = time.time_ns() if wanted.clock == _REALTIME else time.monotonic_ns() - self._local.began_ns
        return (wanted.timeout_ns - now) / _NANO


def _read(raw: bytes) -> list[_Subscription]:
    return [_subscription(values) for values in _SUBSCRIPTION.iter_unpack(raw)]


def _subscription(values: Iterable[int]) -> _Subscription:
    userdata, kind, clock, timeout_ns, _precision, flags = values
    return _Subscription(userdata, kind, clock, timeout_ns, bool(flags & _ABSOLUTE))
