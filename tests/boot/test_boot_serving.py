"""How the parts of a process end together."""

from __future__ import annotations

import asyncio

import pytest

from shellwego.boot.serving import serve


class Story:
    """What happened, in order."""

    name = "api"

    def __init__(self, *, part_ends: bool = False) -> None:
        self.told: list[str] = []
        self.asked = asyncio.Event()
        self._leaving = asyncio.Event()
        self._part_ends = part_ends

    async def run(self) -> None:
        await asyncio.sleep(3600)

    async def started(self) -> None: ...

    def stop(self) -> None:
        self.told.append("stopped")

    async def part(self) -> None:
        try:
            await (self._leaving if self._part_ends else asyncio.Event()).wait()
        finally:
            self.told.append("part ended")

    async def ready(self) -> None:
        self.asked.set()

    async def leave(self) -> None:
        self.told.append("leaves")
        self._leaving.set()
        if self._part_ends:
            await asyncio.Event().wait()
        for _ in range(10):
            await asyncio.sleep(0)  # whatever else would end now, does
        self.told.append("left")

    async def serve(self) -> int:
        return await serve({"part": self.part()}, (self,), self.ready(), self.asked, "stopping", leave=self.leave)


async def test_a_server_leaves_before_it_and_its_parts_end(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    assert await story.serve() == 0
    assert story.told == ["leaves", "left", "stopped", "part ended"]
    assert capsys.readouterr().err == "stopping\n"


async def test_a_part_that_ends_by_itself_while_it_leaves_ends_all_at_once() -> None:
    story = Story(part_ends=True)
    async with asyncio.timeout(10):
        assert await story.serve() == 1
    assert story.told == ["leaves", "part ended", "stopped"]
