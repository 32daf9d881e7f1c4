"""Master keys in memory only: gone with the process. For tests and simulation."""

from __future__ import annotations

from shellwego.core.envelope import Context
from shellwego.core.errors import UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.ring import Ring, new_key
from shellwego.ports.kms import WrappedKey


class MemoryKms:
    """See `ports.kms.RotatingKms`. `available` False: as one that does not answer."""

    def __init__(self) -> None:
        self._ring = Ring("memory:1", {"memory:1": new_key()})
        self._number = 1
        self.available = True

    async def current(self) -> str:
        return self._reached().current

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        return self._reached().wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        return self._reached().unwrap(wrapped, context)

    async def rotate(self) -> str:
        self._number += 1
        self._ring = self._reached().rotated(f"memory:{self._number}")
        return self._ring.current

    async def retire(self, master_key: str) -> None:
        self._ring = self._reached().without(master_key)

    async def close(self) -> None:
        pass

    def _reached(self) -> Ring:
        if not self.available:
            raise UnavailableError("kms-unavailable", "the KMS does not answer")
        return self._ring
