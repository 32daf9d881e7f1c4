"""Driver `memory`: objects in a dictionary. Fault: `fails_with`, which the next calls meet while it is set."""

from __future__ import annotations

from collections.abc import AsyncIterator

from shellwego.core.errors import ShellWeGoError
from shellwego.drivers.objects.errors import no_object
from shellwego.ports.objects import check_path, check_prefix


class MemoryObjects:
    """See `ports.objects.Objects`."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.puts: list[str] = []
        """All that were put, in order."""
        self.fails_with: ShellWeGoError | None = None

    async def put(self, path: str, data: bytes) -> None:
        self._may_fail()
        self.kept[check_path(path)] = bytes(data)
        self.puts.append(path)

    async def get(self, path: str) -> bytes:
        self._may_fail()
        if check_path(path) not in self.kept:
            raise no_object(path)
        return self.kept[path]

    async def has(self, path: str) -> bool:
        self._may_fail()
        return check_path(path) in self.kept

    async def delete(self, path: str) -> None:
        self._may_fail()
        self.kept.pop(check_path(path), None)

    async def paths(self, prefix: str) -> AsyncIterator[str]:
        self._may_fail()
        check_prefix(prefix)
        for path in [path for path in self.kept if path.startswith(prefix)]:
            yield path

    def _may_fail(self) -> None:
        if self.fails_with is not None:
            raise self.fails_with
