"""The images contract on the memory driver, and wrong drivers that it rejects."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from shellwego.core.errors import NotFoundError
from shellwego.drivers.images.memory import MemoryImages
from shellwego.ports.images import STRANGER, Asker, LoadedImage, ResolvedImage
from tests.contract.images_contract import Damage, ImagesContract, Registry


class MemoryRegistry:
    """The registry within the memory driver."""

    host = "registry.example"

    def __init__(self, images: MemoryImages) -> None:
        self._images = images

    async def publish(self, name: str, *ports: int, content: bytes = b"") -> str:
        return self._images.publish(f"{self.host}/{name}", size_bytes=1000 + sum(content), exposed_ports=ports)

    async def corrupt(self, name: str) -> None:
        self._images.corrupt(f"{self.host}/{name}")

    async def go_away(self) -> None:
        self._images.unreachable.add(self.host)


@pytest.fixture
def images() -> MemoryImages:
    made = MemoryImages(time.time)
    made.forbidden.add("forbidden.example")
    return made


@pytest.fixture
def registry(images: MemoryImages) -> Registry:
    return MemoryRegistry(images)


class TestMemoryImages(ImagesContract):
    @pytest.fixture
    def damage(self, images: MemoryImages) -> Damage:
        return images.rotten.add

    @pytest.fixture
    def forbidden(self) -> str:
        return "forbidden.example"


class RememberingImages(MemoryImages):
    """Wrong: what a tag meant once, it means for ever."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self._known: dict[str, ResolvedImage] = {}

    async def resolve(self, reference: str, *, login: bool = False) -> ResolvedImage:
        if reference not in self._known:
            self._known[reference] = await super().resolve(reference, login=login)
        return self._known[reference]


class TrustingImages(MemoryImages):
    """Wrong: takes whatever the registry sends, and says that it is here."""

    async def fetch(self, reference: str, digest: str, asker: Asker = STRANGER) -> ResolvedImage:
        return ResolvedImage(digest=digest)

    async def has(self, digest: str) -> bool:
        return True

    async def check(self, digest: str) -> bool:
        return True


class RandomImages(MemoryImages):
    """Wrong: the same tar is a new image each time, and collecting forgets what is kept."""

    _count = 0

    async def load(self, chunks: AsyncIterator[bytes]) -> tuple[LoadedImage, ...]:
        [loaded] = await super().load(chunks)
        self._count += 1
        return (LoadedImage(image=ResolvedImage(digest=f"sha256:{self._count:064x}"), names=loaded.names),)

    async def collect(self, keep: frozenset[str], unused_since: float) -> int:
        return await super().collect(frozenset(), unused_since)


class HastyImages(MemoryImages):
    """Wrong: collects what somebody is about to use."""

    async def collect(self, keep: frozenset[str], unused_since: float) -> int:
        return await super().collect(keep, unused_since + 1e6)


class OpenImages(MemoryImages):
    """Wrong: gives what is here to everybody who knows its digest."""

    async def fetch(self, reference: str, digest: str, asker: Asker = STRANGER) -> ResolvedImage:
        return await super().fetch(reference, digest, replace(asker, images=frozenset({digest})))


class DeafImages(MemoryImages):
    """Wrong: gives a blob from its beginning, wherever it was asked to begin."""

    async def blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        async for chunk in super().blob(digest):
            yield chunk


class VagueImages(MemoryImages):
    """Wrong: everything that goes wrong is a missing image."""

    async def resolve(self, reference: str, *, login: bool = False) -> ResolvedImage:
        try:
            return await super().resolve(reference, login=login)
        except Exception:  # noqa: BLE001 - this is what is wrong
            raise NotFoundError("image-not-found", "something went wrong") from None


Behaviour = Callable[[ImagesContract, MemoryImages, Registry], Awaitable[None]]


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (RememberingImages, ImagesContract.test_a_tag_means_what_it_means_now),
        (TrustingImages, ImagesContract.test_a_corrupt_layer_is_refused_and_not_here),
        (TrustingImages, ImagesContract.test_resolving_stores_nothing),
        (TrustingImages, ImagesContract.test_fetching_what_does_not_exist_is_not_found),
        (TrustingImages, ImagesContract.test_what_is_as_it_was_passes_its_check),
        (RandomImages, ImagesContract.test_collecting_removes_what_nothing_keeps),
        (HastyImages, ImagesContract.test_collecting_spares_what_was_used_since_a_moment),
        (OpenImages, ImagesContract.test_what_is_here_opens_to_nobody_who_merely_names_it),
        (DeafImages, ImagesContract.test_the_blobs_of_an_image_are_what_their_digests_say),
        (VagueImages, ImagesContract.test_a_registry_that_does_not_answer_may_later),
    ],
)
async def test_a_wrong_driver_is_rejected(wrong: type[MemoryImages], behaviour: Behaviour) -> None:
    images = wrong(time.time)
    with pytest.raises((AssertionError, pytest.fail.Exception, NotFoundError)):
        await behaviour(ImagesContract(), images, MemoryRegistry(images))


async def test_a_driver_that_does_not_look_again_is_rejected() -> None:
    images = TrustingImages(time.time)
    behaviour = ImagesContract.test_what_a_disk_damaged_is_dropped_by_its_check_and_can_be_fetched_again
    with pytest.raises(AssertionError):
        await behaviour(ImagesContract(), images, MemoryRegistry(images), images.rotten.add)


async def test_a_driver_with_random_digests_is_rejected() -> None:
    with pytest.raises(AssertionError):
        await ImagesContract().test_the_same_tar_gives_the_same_digest(RandomImages(time.time))
