"""Each server's own image store: what was loaded at one is at all of them, and what nothing needs is at none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest

from shellwego.control.images import delete_image
from shellwego.control.imagework import ImageWork
from shellwego.control.loops.images import ImagesLoop
from shellwego.control.loops.imagestore import LOOK_AGAIN_S, ImageStoreLoop
from shellwego.control.unit import Control, Unit
from shellwego.core.errors import NotFoundError, UnavailableError
from shellwego.core.images import Image, ImageState
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.store.memory import MemoryStore
from tests.contract.images_samples import chunked, docker_save, entry, layer


class Servers:
    """Some servers with a store of blobs each; one that is gone answers nobody."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.control = Control(MemoryStore(self.clock), MemoryBus(), self.clock)
        self.stores = [MemoryImages(self.clock.now) for _ in range(3)]
        self.gone: set[int] = set()
        self.works = [ImageWork(store, self.clock, self.download) for store in self.stores]
        self.tasks = [asyncio.ensure_future(ImageStoreLoop(self.control, work).run()) for work in self.works]

    async def download(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        for number, store in enumerate(self.stores):
            if number not in self.gone and await store.has(digest):
                async for chunk in store.blob(digest, offset):
                    yield chunk
                return
        raise UnavailableError("gone", "one is gone") if self.gone else NotFoundError("blob-not-found", "none has it")

    async def load(self, number: int, state: ImageState = ImageState.READY) -> Image:
        """An image of a tar comes to one of them."""
        [loaded] = await self.stores[number].load(chunked(docker_save([layer(entry("a", b"x"))])))

        def note(unit: Unit) -> Image:
            image = Image(
                id=unit.new_id("img"),
                project_id="prj_x",
                reference="hello:v1",
                digest=loaded.image.digest,
                state=state,
                loaded=True,
                created_at=unit.now(),
            )
            return unit.tx.images.insert(image)

        return await self.control.commit(note)

    async def have(self, image: Image) -> list[bool]:
        await self.clock.advance(LOOK_AGAIN_S + 1)
        return [await store.has(image.digest) for store in self.stores]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers()
    yield servers
    await servers.end()


async def test_what_was_loaded_at_one_server_is_at_all_of_them(servers: Servers) -> None:
    image = await servers.load(1)
    assert await servers.have(image) == [True, True, True]
    servers.gone.add(1)
    assert b"".join([chunk async for chunk in servers.download(image.digest, 0)]), "it is had without the first one"


async def test_it_is_copied_once_a_server_that_is_away_comes_back(servers: Servers) -> None:
    servers.gone.add(1)
    image = await servers.load(1)
    assert await servers.have(image) == [False, True, False]
    servers.gone.clear()
    assert await servers.have(image) == [True, True, True]


async def test_blobs_of_a_deleted_image_go_at_all_servers(servers: Servers) -> None:
    image = await servers.load(1)
    assert await servers.have(image) == [True, True, True]
    await servers.control.commit(lambda unit: delete_image(unit, image))
    assert await servers.have(image) == [False, False, False]


async def test_an_image_that_one_disk_damaged_is_mended_from_another_server(servers: Servers) -> None:
    image = await servers.load(0)
    await servers.have(image)
    servers.stores[2].rotten.add(image.digest)
    await servers.control.commit(lambda unit: doubt(unit, image))
    await ImagesLoop(servers.control, servers.works[2]).step()
    assert await servers.have(image) == [True, True, True]
    assert await state_of(servers, image) is ImageState.READY
    assert servers.stores[2].is_whole(image.digest)


async def test_a_server_that_never_had_it_condemns_no_image(servers: Servers) -> None:
    """Whoever leads checks what a node could not build from, and may not be who took the tar."""
    image = await servers.load(0, ImageState.PENDING)
    await ImagesLoop(servers.control, servers.works[2]).step()
    await servers.clock.advance(1)
    assert await state_of(servers, image) is ImageState.READY


async def test_an_image_that_no_server_has_whole_has_to_be_loaded_again(servers: Servers) -> None:
    image = await servers.load(0, ImageState.PENDING)
    servers.stores[0].rotten.add(image.digest)
    await ImagesLoop(servers.control, servers.works[0]).step()
    await servers.clock.advance(1)
    assert await state_of(servers, image) is ImageState.FAILED


def doubt(unit: Unit, image: Image) -> None:
    row = unit.tx.images.get(image.id)
    assert row is not None
    unit.tx.images.update(replace(row, state=ImageState.PENDING))


async def state_of(servers: Servers, image: Image) -> ImageState:
    row = await servers.control.read(lambda tx: tx.images.get(image.id))
    assert row is not None
    return row.state
