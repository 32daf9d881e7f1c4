"""Port: named objects in a store elsewhere, where backups lie: put, got, listed, removed.

An object is there whole or not at all, and is durable when `put` returns. Paths are parts of letters, digits and `._-`,
parted by `/`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from shellwego.core.backups import RepositoryPlace
from shellwego.core.errors import InvalidError

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,7}")
_PREFIX = re.compile(rf"({_PATH.pattern}/)?")


class Objects(Protocol):
    """Raises `UnavailableError` where the store does not answer, has no room, or refuses us (`objects-unavailable`), and
    `InvalidError` for what is no path."""

    async def put(self, path: str, data: bytes) -> None:
        """Store an object; one that is there is replaced."""

    async def get(self, path: str) -> bytes:
        """What was stored. `NotFoundError`: `object-not-found`."""

    async def has(self, path: str) -> bool: ...

    async def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""

    def paths(self, prefix: str) -> AsyncIterator[str]:
        """All paths that begin so, in no order; a prefix is empty or ends with `/`. What is put or removed meanwhile may be
        among them or not."""


OpenObjects = Callable[[RepositoryPlace], Objects]
"""Raises `InvalidError` for a place that cannot be one. Nothing is asked of the store yet."""


def without_objects(_place: RepositoryPlace) -> Objects:
    """The way to the stores of one who has none."""
    raise InvalidError("no-repository", "this host has no way to a store of backups")


def check_path(path: str) -> str:
    """The path itself; raises `InvalidError` where it is none."""
    if not _PATH.fullmatch(path):
        raise InvalidError("bad-object-path", f"{path[:200]!r} is no path of an object")
    return path


def check_prefix(prefix: str) -> str:
    """As `check_path`."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidError("bad-object-path", f"{prefix[:200]!r} is no prefix of objects")
    return prefix
