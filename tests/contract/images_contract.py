"""What every driver of the images port must do, with the registry it asks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import pytest

from shellwego.core.errors import ForbiddenError, InvalidError, NotFoundError, UnavailableError
from shellwego.core.images import ImageKind
from shellwego.ports.images import Asker, Download, ImageBlobs, Images
from tests.contract.images_samples import chunked, docker_save, entry, layer


class Registry(Protocol):
    """A registry that the driver can reach, and what a test does to it."""

    host: str

    async def publish(self, name: str, *ports: int, content: bytes = b"") -> str:
        """Push an image as `<name>:<tag>`, listening on these ports; returns the digest of its manifest."""

    async def corrupt(self, name: str) -> None:
        """Change a layer of a published image behind the registry's back."""

    async def go_away(self) -> None:
        """Answer nobody any more."""


LATER = 1e12
"""A moment since which nothing was used."""
Damage = Callable[[str], None]
"""Change a layer of this image in the driver's store, as a failing disk does."""


class Store(Images, ImageBlobs, Protocol):
    """A driver that also gives out what it has."""


class ImagesContract:
    """Derive a class, give it fixtures `images`, `registry`, `damage` and `forbidden` (a host that may not be asked)."""

    async def test_a_reference_means_a_digest(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("team/app:v1", 8080, 9090)
        found = await images.resolve(f"{registry.host}/team/app:v1")
        assert (found.digest, found.exposed_ports) == (digest, (8080, 9090))
        assert found.size_bytes > 0

    async def test_a_reference_without_a_tag_means_latest(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:latest")
        assert (await images.resolve(f"{registry.host}/app")).digest == digest

    async def test_a_reference_may_carry_the_digest_itself(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        assert (await images.resolve(f"{registry.host}/app@{digest}")).digest == digest

    async def test_a_tag_means_what_it_means_now(self, images: Images, registry: Registry) -> None:
        first = await registry.publish("app:v1", content=b"first")
        assert (await images.resolve(f"{registry.host}/app:v1")).digest == first
        second = await registry.publish("app:v1", content=b"second")
        assert (await images.resolve(f"{registry.host}/app:v1")).digest == second != first

    async def test_resolving_stores_nothing(self, images: Images, registry: Registry) -> None:
        found = await images.resolve(f"{registry.host}/{await named(registry)}")
        assert not await images.has(found.digest)

    @pytest.mark.parametrize("name", ["app:v2", "other:v1", "app@sha256:" + "0" * 64])
    async def test_what_the_registry_does_not_have_is_not_found(
        self, images: Images, registry: Registry, name: str
    ) -> None:
        await registry.publish("app:v1")
        with pytest.raises(NotFoundError) as caught:
            await images.resolve(f"{registry.host}/{name}")
        assert caught.value.code == "image-not-found"

    async def test_a_name_without_a_host_was_never_loaded(self, images: Images) -> None:
        with pytest.raises(NotFoundError) as caught:
            await images.resolve("hello:v1")
        assert caught.value.code == "image-not-found"

    @pytest.mark.parametrize("reference", ["registry.example/a b", "registry.example/a:v 1", "registry.example/ "])
    async def test_a_malformed_reference_is_invalid(self, images: Images, reference: str) -> None:
        with pytest.raises(InvalidError) as caught:
            await images.resolve(reference)
        assert caught.value.code == "image-reference"

    async def test_a_registry_that_is_not_allowed_is_not_asked(self, images: Images, forbidden: str) -> None:
        with pytest.raises(ForbiddenError) as caught:
            await images.resolve(f"{forbidden}/app:v1")
        assert caught.value.code == "registry-forbidden"

    async def test_a_registry_that_does_not_answer_may_later(self, images: Images, registry: Registry) -> None:
        await registry.publish("app:v1")
        await registry.go_away()
        with pytest.raises(UnavailableError) as caught:
            await images.resolve(f"{registry.host}/app:v1")
        assert caught.value.temporary

    async def test_what_was_fetched_is_here(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1", 8080)
        found = await images.fetch(f"{registry.host}/app:v1", digest)
        assert (found.digest, found.exposed_ports) == (digest, (8080,))
        assert await images.has(digest)

    async def test_what_is_here_can_be_looked_at_and_nothing_else(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1", 8080)
        assert await images.look(digest) is None
        fetched = await images.fetch(f"{registry.host}/app:v1", digest)
        await registry.go_away()
        assert await images.look(digest) == fetched
        assert fetched.kind is ImageKind.LINUX

    async def test_what_is_here_needs_no_registry(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        first = await images.fetch(f"{registry.host}/app:v1", digest)
        await registry.go_away()
        owner = Asker(project_id="prj_a", images=frozenset({digest}))
        assert await images.fetch(f"{registry.host}/app:v1", digest, owner) == first

    async def test_what_is_here_opens_to_nobody_who_merely_names_it(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        await images.fetch(f"{registry.host}/app:v1", digest, Asker(project_id="prj_a"))
        await registry.go_away()
        with pytest.raises(UnavailableError):
            await images.fetch(f"{registry.host}/app:v1", digest, Asker(project_id="prj_b"))

    async def test_a_digest_is_fetched_although_its_tag_moved_on(self, images: Images, registry: Registry) -> None:
        first = await registry.publish("app:v1", content=b"first")
        await registry.publish("app:v1", content=b"second")
        assert (await images.fetch(f"{registry.host}/app:v1", first)).digest == first

    async def test_fetching_what_does_not_exist_is_not_found(self, images: Images, registry: Registry) -> None:
        await registry.publish("app:v1")
        with pytest.raises(NotFoundError):
            await images.fetch(f"{registry.host}/app:v1", "sha256:" + "0" * 64)

    async def test_a_corrupt_layer_is_refused_and_not_here(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        await registry.corrupt("app:v1")
        with pytest.raises(InvalidError) as caught:
            await images.fetch(f"{registry.host}/app:v1", digest)
        assert caught.value.code == "digest-mismatch"
        assert not await images.has(digest)

    async def test_an_image_is_copied_from_another_store_and_is_what_it_was(self, images: Store) -> None:
        digest, blobs = await taken_out(images)
        assert not await images.has(digest)
        copied = await images.copy(digest, from_shelf(blobs))
        assert copied.digest == digest
        assert await images.check(digest)
        again = await images.copy(digest, from_shelf({}))
        assert again == copied, "nobody is asked for what is here"

    async def test_what_the_other_store_got_wrong_is_not_kept(self, images: Store) -> None:
        digest, blobs = await taken_out(images)
        with pytest.raises(InvalidError) as caught:
            await images.copy(digest, from_shelf({part: bytes(len(blob)) for part, blob in blobs.items()}))
        assert caught.value.code == "digest-mismatch"
        assert not await images.has(digest)

    async def test_what_the_other_store_lacks_is_not_found(self, images: Store) -> None:
        digest, _ = await taken_out(images)
        with pytest.raises(NotFoundError):
            await images.copy(digest, from_shelf({}))

    async def test_a_tar_is_loaded_with_its_names(self, images: Images) -> None:
        data = docker_save([layer(entry("a", b"x"))], names=["hello:v1", "hello:v2"])
        [loaded] = await images.load(chunked(data))
        assert loaded.names == ("hello:v1", "hello:v2")
        assert await images.has(loaded.image.digest)

    async def test_the_same_tar_gives_the_same_digest(self, images: Images) -> None:
        data = docker_save([layer(entry("a", b"x"))])
        [first] = await images.load(chunked(data))
        [second] = await images.load(chunked(data, size=1000))
        [other] = await images.load(chunked(docker_save([layer(entry("a", b"y"))])))
        assert first.image.digest == second.image.digest != other.image.digest

    @pytest.mark.parametrize("data", [b"", b"not a tar", layer(entry("readme", b"x")), docker_save([b""])[:1500]])
    async def test_what_is_no_image_is_refused(self, images: Images, data: bytes) -> None:
        with pytest.raises(InvalidError):
            await images.load(chunked(data))

    async def test_what_is_as_it_was_passes_its_check(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        assert not await images.check(digest)
        await images.fetch(f"{registry.host}/app:v1", digest)
        assert await images.check(digest)
        assert await images.has(digest)

    async def test_what_a_disk_damaged_is_dropped_by_its_check_and_can_be_fetched_again(
        self, images: Images, registry: Registry, damage: Damage
    ) -> None:
        digest = await registry.publish("app:v1")
        await images.fetch(f"{registry.host}/app:v1", digest)
        damage(digest)
        assert not await images.check(digest)
        assert not await images.has(digest)
        await images.fetch(f"{registry.host}/app:v1", digest)
        assert await images.check(digest)

    async def test_collecting_removes_what_nothing_keeps(self, images: Images, registry: Registry) -> None:
        kept = await registry.publish("app:v1", content=b"kept")
        await images.fetch(f"{registry.host}/app:v1", kept)
        [loaded] = await images.load(chunked(docker_save([layer(entry("a", b"x"))])))
        assert await images.collect(frozenset({kept}), LATER) > 0
        assert (await images.has(kept), await images.has(loaded.image.digest)) == (True, False)
        assert await images.collect(frozenset({kept}), LATER) == 0

    async def test_collecting_spares_what_was_used_since_a_moment(self, images: Images, registry: Registry) -> None:
        began = time.time() - 1
        digest = await registry.publish("app:v1")
        await images.fetch(f"{registry.host}/app:v1", digest)
        assert await images.collect(frozenset(), began) == 0
        assert await images.has(digest)

    async def test_what_was_collected_can_be_fetched_again(self, images: Images, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        for _ in range(2):
            await images.fetch(f"{registry.host}/app:v1", digest)
            assert await images.has(digest)
            await images.collect(frozenset(), LATER)
            assert not await images.has(digest)

    async def test_the_blobs_of_an_image_are_what_their_digests_say(self, images: Store, registry: Registry) -> None:
        digest = await registry.publish("app:v1", content=b"content")
        await images.fetch(f"{registry.host}/app:v1", digest)
        parts = await images.parts(digest)
        assert digest in parts
        for part in parts:
            whole = b"".join([chunk async for chunk in images.blob(part)])
            assert f"sha256:{hashlib.sha256(whole).hexdigest()}" == part
            assert await images.size(part) == len(whole)
            assert b"".join([chunk async for chunk in images.blob(part, 5)]) == whole[5:]

    async def test_a_blob_that_is_not_here_is_not_found(self, images: Store, registry: Registry) -> None:
        digest = await registry.publish("app:v1")
        for asking in (images.parts(digest), images.size(digest), anext(aiter(images.blob(digest)))):
            with pytest.raises(NotFoundError):
                await asking


async def taken_out(images: Store) -> tuple[str, dict[str, bytes]]:
    """An image that is not in the store any more, and its blobs."""
    [loaded] = await images.load(chunked(docker_save([layer(entry("a", b"x"))])))
    digest = loaded.image.digest
    parts = await images.parts(digest)
    blobs = {part: b"".join([chunk async for chunk in images.blob(part)]) for part in parts}
    await images.collect(frozenset(), LATER)
    return digest, blobs


def from_shelf(blobs: Mapping[str, bytes]) -> Download:
    """Another store with these blobs."""

    async def download(digest: str, offset: int) -> AsyncIterator[bytes]:
        if digest not in blobs:
            raise NotFoundError("blob-not-found", f"no blob {digest}")
        yield blobs[digest][offset:]

    return download


async def named(registry: Registry) -> str:
    await registry.publish("app:v1")
    return "app:v1"
