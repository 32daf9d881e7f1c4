"""Port: who keeps the master key. It wraps data keys and unwraps them, and never gives the master key out.

A master key has versions; each has a name that says all that is needed to find it again. New keys are wrapped under the
current one. The context is authenticated: a wrapped key opens only with the context that it was wrapped with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shellwego.core.envelope import Context
from shellwego.core.sensitive import Sensitive


@dataclass(frozen=True, slots=True)
class WrappedKey:
    master_key: str
    blob: bytes


class Kms(Protocol):
    """Raises `UnavailableError` where the KMS does not answer, refuses us, or has no such master key: try again or mend the
    settings. `ConflictError` (`seal-broken`) where a wrapped key or its context is not what was wrapped."""

    async def current(self) -> str:
        """Name of the master key's version under which new keys are wrapped."""

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey: ...

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive: ...

    async def close(self) -> None: ...


@runtime_checkable
class RotatingKms(Kms, Protocol):
    """One whose master key this platform may rotate."""

    async def rotate(self) -> str:
        """Make a new current version; the older ones still unwrap. Returns its name."""

    async def retire(self, master_key: str) -> None:
        """Let a version unwrap nothing any more. One that is gone already is left alone.

        Raises:
            ConflictError: it is the current one.
        """
