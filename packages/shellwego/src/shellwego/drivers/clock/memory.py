"""The clock under the name that the memory driver of every port has: virtual time."""

from __future__ import annotations

from shellwego.drivers.clock.virtual import VirtualClock as MemoryClock

__all__ = ["MemoryClock"]
