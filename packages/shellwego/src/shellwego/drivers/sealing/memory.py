"""Sealing without a file: what was sealed is kept here and known by a number."""

from __future__ import annotations

from shellwego.core.errors import InvalidError


class MemorySealer:
    """See `ports.sealing.Sealer`."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, str, bytes]] = {}

    async def seal(self, value: bytes, *, purpose: str, id_: str) -> str:
        sealed = f"kept:{len(self._kept)}"
        self._kept[sealed] = (purpose, id_, value)
        return sealed

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        kept = self._kept.get(sealed)
        if kept is None or kept[:2] != (purpose, id_):
            raise InvalidError("not-sealed-here", f"what was sealed for {purpose} of {id_} does not open")
        return kept[2]
