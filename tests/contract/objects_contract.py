"""What every store of objects must do."""

from __future__ import annotations

import asyncio
import os

import pytest

from shellwego.core.errors import InvalidError, NotFoundError
from shellwego.ports.objects import Objects


async def every(objects: Objects, prefix: str) -> list[str]:
    return sorted([path async for path in objects.paths(prefix)])


class ObjectsContract:
    """Derive a class, give it the fixture `objects`: an empty store."""

    async def test_what_was_put_is_got_whole(self, objects: Objects) -> None:
        for size in (0, 1, 1 << 20):
            data = os.urandom(size)
            await objects.put("prj_1/chunks/ab/abcd", data)
            assert await objects.get("prj_1/chunks/ab/abcd") == data

    async def test_the_last_that_was_put_is_there(self, objects: Objects) -> None:
        await objects.put("a", b"first, and longer")
        await objects.put("a", b"again")
        assert await objects.get("a") == b"again"
        assert await every(objects, "") == ["a"]

    async def test_what_is_not_there_is_told_so(self, objects: Objects) -> None:
        await objects.put("a/b", b"")
        for path in ("b", "a/c", "a/b/c", "a"):
            assert not await objects.has(path)
            with pytest.raises(NotFoundError) as caught:
                await objects.get(path)
            assert caught.value.code == "object-not-found"
        assert await objects.has("a/b")

    async def test_removing_twice_is_fine(self, objects: Objects) -> None:
        await objects.put("a/b", b"x")
        for _ in range(2):
            await objects.delete("a/b")
        assert not await objects.has("a/b")
        assert await every(objects, "") == []
        await objects.put("a/b", b"y")
        assert await objects.get("a/b") == b"y"

    async def test_all_below_a_prefix_are_listed_and_no_others(self, objects: Objects) -> None:
        for path in ("prj_1/chunks/ab/1", "prj_1/chunks/cd/2", "prj_1/backups/bak_1", "prj_11/chunks/ab/3"):
            await objects.put(path, b"x")
        assert await every(objects, "prj_1/chunks/") == ["prj_1/chunks/ab/1", "prj_1/chunks/cd/2"]
        assert len(await every(objects, "prj_1/")) == 3
        assert len(await every(objects, "")) == 4
        assert await every(objects, "prj_2/") == []

    async def test_many_at_once_do_not_meet(self, objects: Objects) -> None:
        data = {f"a/{number}": os.urandom(1000) for number in range(20)}
        await asyncio.gather(*(objects.put(path, content) for path, content in data.items()))
        assert await asyncio.gather(*map(objects.get, data)) == list(data.values())

    @pytest.mark.parametrize("bad", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", ".a", "a b", "a\0", "a\n", "ä"])
    async def test_paths_are_from_an_allow_list(self, objects: Objects, bad: str) -> None:
        for attempt in (objects.put(bad, b""), objects.get(bad), objects.has(bad), objects.delete(bad)):
            with pytest.raises(InvalidError):
                await attempt
        if bad not in ("", "a/"):
            with pytest.raises(InvalidError):
                await every(objects, bad)
