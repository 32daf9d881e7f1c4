"""The images loop: one fetch a digest, reasons kept, blobs of deleted images collected, nothing collected in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from shellwego.control.bootstrap import bootstrap
from shellwego.control.images import KEPT, ChosenImage, choose_image, delete_image, note_image
from shellwego.control.imagework import ImageWork
from shellwego.control.loops.images import AT_ONCE, AT_ONCE_EACH, ImagesLoop
from shellwego.control.loops.imagestore import LOOK_AGAIN_S, ImageStoreLoop
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import AppConfig, Release
from shellwego.core.errors import ForbiddenError, QuotaError
from shellwego.core.images import EVERYBODY, Image, ImageState, LoginRule
from shellwego.core.tenancy import Organization, Project
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.store.memory import MemoryStore
from shellwego.ports.bus import Hint
from shellwego.ports.images import STRANGER, Asker, LoadedImage, ResolvedImage
from shellwego.wire import subjects
from tests.contract.images_samples import chunked, docker_save, entry, layer
from tests.core.app_builder import app

REFERENCE = "registry.example/hello:v1"
SHOP = app(id="app_x", project_id="prj_a")


def run_image(unit: Unit, image: Image) -> None:
    """Have an app whose release needs it."""
    release = Release(
        id="rel_x",
        app_id=SHOP.id,
        number=1,
        config=AppConfig(),
        image_digest=image.digest,
        content_hash="hash",
        created_at=0.0,
        created_by="usr_x",
    )
    unit.tx.releases.insert(release)
    unit.tx.apps.insert(replace(SHOP, release_id=release.id))


class CountingImages(MemoryImages):
    """Counts fetches, and holds them while told to."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.fetches = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.endless: set[str] = set()
        """Registries whose blobs never end."""
        self.asked: list[str] = []
        """References that fetches are under way of."""

    async def fetch(self, reference: str, digest: str, asker: Asker = STRANGER) -> ResolvedImage:
        self.fetches += 1
        self.asked.append(reference)
        try:
            await self.gate.wait()
            if reference.partition("/")[0] in self.endless:
                await asyncio.Event().wait()
            return await super().fetch(reference, digest, asker)
        finally:
            self.asked.remove(reference)


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.control = Control(MemoryStore(self.clock), MemoryBus(), self.clock)
        self.images = CountingImages(self.clock.now)
        self.work = ImageWork(self.images, self.clock)

    async def order(self, digest: str, project_id: str = "prj_a", reference: str = REFERENCE) -> Image:
        chosen = ChosenImage(reference=reference, digest=digest)
        return await self.control.commit(lambda unit: note_image(unit, project_id, chosen))

    async def project(self, name: str) -> str:
        """A project of an organization of its own; returns its id."""

        def found(unit: Unit) -> Project:
            organization = Organization(id=unit.new_id("org"), name=name, plan="free", created_at=0.0)
            unit.tx.organizations.insert(organization)
            return unit.tx.projects.insert(
                Project(
                    id=unit.new_id("prj"),
                    organization_id=organization.id,
                    name=name,
                    network_id=unit.new_id("net"),
                    first=True,
                    created_at=0.0,
                )
            )

        return (await self.control.commit(found)).id

    async def states(self) -> list[ImageState]:
        return [image.state for image in await self.control.read(lambda tx: tx.images.select())]

    async def until(self, condition: Callable[[], Awaitable[bool]], timeout: float = 1000.0) -> None:
        deadline = self.clock.monotonic() + timeout
        while not await condition():
            assert self.clock.monotonic() < deadline, await self.states()
            await self.clock.advance(0.25)

    async def is_state(self, image: Image, state: ImageState) -> bool:
        stored = await self.control.read(lambda tx: tx.images.get(image.id))
        return stored is not None and stored.state is state

    async def until_state(self, *states: ImageState) -> None:
        async def reached() -> bool:
            return await self.states() == list(states)

        await self.until(reached)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.control.commit(lambda unit: bootstrap(unit, "pat_x"))
    loops = (ImagesLoop(world.control, world.work), ImageStoreLoop(world.control, world.work))
    tasks = [asyncio.ensure_future(loop.run()) for loop in loops]
    yield world
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_ordered_image_is_fetched(world: World) -> None:
    digest = world.images.publish(REFERENCE, size_bytes=5, exposed_ports=(80,))
    await world.order(digest)
    await world.until_state(ImageState.READY)
    image = (await world.control.read(lambda tx: tx.images.select()))[0]
    assert (image.size_bytes, image.exposed_ports, image.reason) == (5, (80,), "")
    assert await world.images.has(digest)


async def test_one_digest_is_fetched_once_for_all_who_want_it(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.gate.clear()
    await world.order(digest, "prj_a")
    await world.clock.advance(1)
    await world.order(digest, "prj_b")
    await world.clock.advance(20)
    world.images.gate.set()
    await world.until_state(ImageState.READY, ImageState.READY)
    assert world.images.fetches == 1


async def test_one_organizations_slow_registries_keep_no_others_image(world: World) -> None:
    slow, other = await world.project("slow"), await world.project("other")
    world.images.endless.add("slow.example")
    for number in range(3 * AT_ONCE):
        reference = f"slow.example/app:v{number}"
        await world.order(world.images.publish(reference), slow, reference)
    await world.clock.advance(10)
    assert len(world.images.asked) == AT_ONCE_EACH
    image = await world.order(world.images.publish(REFERENCE), other)
    await world.until(lambda: world.is_state(image, ImageState.READY), 20)


async def test_a_registry_that_is_away_keeps_no_other_image_of_the_same_organization(world: World) -> None:
    world.images.unreachable.add("away.example")
    for number in range(3 * AT_ONCE_EACH):
        reference = f"away.example/app:v{number}"
        await world.order(world.images.publish(reference), reference=reference)
    await world.clock.advance(30)
    image = await world.order(world.images.publish(REFERENCE))
    await world.until(lambda: world.is_state(image, ImageState.READY), 20)


async def test_a_reference_that_leads_nowhere_fails_those_who_named_it_and_nobody_else(world: World) -> None:
    """The digest of a popular image is known to everybody, and may be said to lie anywhere."""
    mean, other = await world.project("mean"), await world.project("other")
    digest = world.images.publish(REFERENCE)
    world.images.endless.add("endless.example")
    for reference in (f"endless.example/x@{digest}", f"gone.example/x@{digest}"):
        world.images.unreachable.add("gone.example")
        await world.order(digest, mean, reference)
    await world.clock.advance(400)
    assert ImageState.FAILED in await world.states()
    image = await world.order(digest, other)
    await world.until(lambda: world.is_state(image, ImageState.READY), 20)


async def test_the_operators_logins_serve_the_first_organization_alone_unless_others_are_named(world: World) -> None:
    """Whoever may have an image fetched by them can run it, and read what is in it."""
    world.images.private.add("private.example")
    reference = "private.example/app:v1"
    digest = world.images.publish(reference)
    (first,) = await world.control.read(lambda tx: tx.projects.select())
    other = await world.project("other")
    assert (await choose_image(world.control, world.work, first.id, reference)).digest == digest
    with pytest.raises(ForbiddenError):
        await choose_image(world.control, world.work, other, reference)
    images = [await world.order(digest, project, reference) for project in (first.id, other)]
    await world.until(lambda: world.is_state(images[0], ImageState.READY), 20)
    for names, allowed in (({"other"}, other), ({EVERYBODY}, other), ({"other"}, first.id)):
        named = ImageWork(world.images, world.clock, logins=LoginRule(frozenset(names)))
        if allowed == other:
            assert (await choose_image(world.control, named, allowed, reference)).digest == digest
        else:
            with pytest.raises(ForbiddenError):
                await choose_image(world.control, named, allowed, reference)


async def test_a_fetch_has_an_end_that_follows_from_the_images_size(world: World) -> None:
    world.images.endless.add("registry.example")
    digest = world.images.publish(REFERENCE)
    chosen = ChosenImage(reference=REFERENCE, digest=digest, size_bytes=100 * 2**20)
    await world.control.commit(lambda unit: note_image(unit, "prj_a", chosen))
    await world.clock.advance(450)
    assert await world.states() == [ImageState.FETCHING]
    await world.clock.advance(60)
    assert await world.states() == [ImageState.FAILED]
    assert not world.images.asked


async def test_a_fetch_that_nobody_waits_for_any_more_is_called_off(world: World) -> None:
    world.images.endless.add("registry.example")
    image = await world.order(world.images.publish(REFERENCE))
    await world.clock.advance(10)
    assert world.images.asked
    await world.control.commit(lambda unit: delete_image(unit, image))
    await world.clock.advance(10)
    assert not world.images.asked


async def test_a_corrupt_image_fails_at_once_with_the_reason(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.corrupt(REFERENCE)
    await world.order(digest)
    await world.until_state(ImageState.FAILED)
    image = (await world.control.read(lambda tx: tx.images.select()))[0]
    assert "corrupt" in image.reason
    assert world.images.fetches == 1


async def test_a_registry_that_comes_back_is_asked_again(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.unreachable.add("registry.example")
    await world.order(digest)
    await world.clock.advance(60)
    assert await world.states() == [ImageState.FETCHING]
    world.images.unreachable.clear()
    await world.until_state(ImageState.READY)


async def test_a_registry_that_stays_away_fails_the_image_after_minutes(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.unreachable.add("registry.example")
    await world.order(digest)
    await world.until_state(ImageState.FAILED)
    assert 300 <= world.clock.monotonic() < 400
    assert world.images.fetches < 30


async def test_a_failed_image_ordered_again_is_tried_again(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    world.images.corrupt(REFERENCE)
    await world.order(digest)
    await world.until_state(ImageState.FAILED)
    await world.order(digest)
    assert await world.states() == [ImageState.FETCHING]
    await world.until_state(ImageState.FAILED)
    assert world.images.fetches == 2


async def test_what_was_under_way_goes_on_after_a_restart(world: World) -> None:
    digest = world.images.publish(REFERENCE)
    await world.order(digest)
    other = World()
    other.control = world.control
    other.images.publish(REFERENCE)
    loop = ImagesLoop(other.control, ImageWork(other.images, other.clock))
    await loop.step()
    await world.until_state(ImageState.READY)


async def test_the_apps_of_the_project_are_planned_again_when_the_image_is_there(world: World) -> None:
    await world.control.commit(lambda unit: unit.tx.apps.insert(SHOP))
    digest = world.images.publish(REFERENCE)
    async with world.control.bus.subscribe(subjects.app(SHOP.id)) as hints:
        hint = asyncio.ensure_future(_first(hints))
        await world.order(digest)
        await world.until_state(ImageState.READY)
        assert (await hint).subject == subjects.app(SHOP.id)
    kinds = {event.type for event in await world.control.read(lambda tx: tx.events.select())}
    assert "image.ready" in kinds


async def _first(hints: AsyncIterator[Hint]) -> Hint:
    return await anext(hints)


async def test_old_images_from_registries_go_unless_an_app_needs_them(world: World) -> None:
    needed = await world.order(world.images.publish(REFERENCE))
    for number in range(KEPT + 3):
        await world.clock.advance(1)
        reference = f"registry.example/hello:ci-{number}"
        await world.order(world.images.publish(reference), reference=reference)
        if not number:
            await world.until(lambda: world.is_state(needed, ImageState.READY))
            await world.control.commit(lambda unit: run_image(unit, needed))
    rows = await world.control.read(lambda tx: tx.images.select())
    assert len(rows) == KEPT + 1
    assert needed.id in {row.id for row in rows}


async def test_what_an_app_may_return_to_stays_however_many_came_since(world: World) -> None:
    returned = await world.order(world.images.publish(REFERENCE))
    await world.until(lambda: world.is_state(returned, ImageState.READY))

    def released(unit: Unit) -> None:
        run_image(unit, returned)
        (release,) = unit.tx.releases.select()
        unit.tx.releases.insert(replace(release, id="rel_y", number=2, image_digest="sha256:" + "0" * 64, version=1))
        (app,) = unit.tx.apps.select()
        unit.tx.apps.update(replace(app, release_id="rel_y", stable_release_id="rel_y"))

    await world.control.commit(released)
    for number in range(KEPT + 3):
        await world.clock.advance(1)
        reference = f"registry.example/hello:ci-{number}"
        await world.order(world.images.publish(reference), reference=reference)
    assert await world.is_state(returned, ImageState.READY)


async def test_blobs_of_a_deleted_image_go_and_others_stay(world: World) -> None:
    kept = world.images.publish(REFERENCE)
    gone = world.images.publish("registry.example/other:v1")
    await world.order(kept)
    image = await world.order(gone, reference="registry.example/other:v1")
    await world.until_state(ImageState.READY, ImageState.READY)
    stored = await world.control.read(lambda tx: tx.images.get(image.id))
    assert stored is not None
    await world.control.commit(lambda unit: delete_image(unit, stored))

    async def collected() -> bool:
        return not await world.images.has(gone)

    await world.until(collected)
    assert await world.images.has(kept)


async def test_the_blobs_of_a_tar_that_nothing_became_of_go(world: World) -> None:
    """Who may have no more loads another, again and again."""

    async def refuse(loaded: tuple[LoadedImage, ...]) -> None:
        raise QuotaError("quota-exceeded", "too much")

    tar = docker_save([layer(entry("a", b"x"))])
    with pytest.raises(QuotaError):
        await world.work.load(chunked(tar), refuse)
    (loaded,) = await MemoryImages(world.clock.now).load(chunked(tar))
    assert await world.images.has(loaded.image.digest)
    await world.clock.advance(LOOK_AGAIN_S + 1)
    assert not await world.images.has(loaded.image.digest)


async def test_what_a_registry_sends_for_hours_keeps_nothing_from_being_collected(world: World) -> None:
    gone = world.images.publish(REFERENCE)
    await world.images.fetch(REFERENCE, gone)
    await world.clock.advance(10)
    world.images.endless.add("slow.example")
    await world.order(world.images.publish("slow.example/app:v1"), reference="slow.example/app:v1")
    await world.clock.advance(10)
    fresh = world.images.publish("registry.example/fresh:v1")
    await world.images.fetch("registry.example/fresh:v1", fresh)

    async def keep() -> frozenset[str]:
        return frozenset()

    await world.work.collect(keep)
    assert (await world.images.has(gone), await world.images.has(fresh)) == (False, True)


async def test_nothing_is_collected_while_a_tar_is_being_taken_in(world: World) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def register(loaded: tuple[LoadedImage, ...]) -> None:
        entered.set()
        await release.wait()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"tar"

    class Source(MemoryImages):
        async def load(self, chunks: AsyncIterator[bytes]) -> tuple[LoadedImage, ...]:
            return ()

    work = ImageWork(Source(world.clock.now), world.clock)
    asked = False

    async def keep() -> frozenset[str]:
        nonlocal asked
        asked = True
        return frozenset()

    loading = asyncio.ensure_future(work.load(chunks(), register))
    await entered.wait()
    collecting = asyncio.ensure_future(work.collect(keep))
    await asyncio.sleep(0.01)
    assert not asked
    release.set()
    await loading
    await collecting
    assert asked
