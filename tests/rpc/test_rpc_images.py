"""ImageService over a real server: uploads, a registry, names, scopes, and what may not be removed."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import grpc
import pytest

from plasmavmc.backends import GuestKind
from plasmavmc.errors import (
    CapacityError,
    ConflictError,
    ForbiddenError,
    ImageError,
    InvalidSpecError,
    NotFoundError,
    UnavailableError,
)
from plasmavmc.rpc import images as image_service
from plasmavmc.rpc.api import Image, ImageOrder, ImageProgress, RegistryLogin, Upload
from plasmavmc.rpc.client import EngineClient
from plasmavmc.rpc.v1 import image_pb2
from plasmavmc.rpc.v1.image_pb2_grpc import ImageServiceStub
from plasmavmc.server import images as images_of_the_server
from plasmavmc.types import SYSTEM_SCOPE, Scope
from tests.contract.images_samples import chunked, digest_of, docker_save, entry, hello, layer, oci_layout
from tests.contract.registry_server import RegistryServer, registry_server
from tests.rpc.rpc_rig import ACME, OTHER, TOKENS, RpcRig, running
from tests.waiting import until

METADATA = (("authorization", f"Bearer {TOKENS['operator']}"),)
OURS = Scope("", "")
"""The caller's only one."""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with registry_server(tmp_path / "registry") as server:
        yield server


async def register(client: EngineClient, order: ImageOrder, data: bytes = b"") -> Image:
    """Register an image; returns what was told last."""
    last: ImageProgress | Image | None = None
    async for told in client.images.register(order, chunked(data)):
        last = told
    assert isinstance(last, Image)
    return last


def upload(name: str = "", scope: Scope = OURS) -> ImageOrder:
    return ImageOrder(scope, Upload.TAR, name)


@pytest.mark.parametrize("form", ["oci", "docker"])
async def test_a_tar_is_uploaded_and_its_image_told(rig: RpcRig, form: str) -> None:
    data = oci_layout(hello()) if form == "oci" else docker_save([layer(entry("a", b"x" * 3_000_000))])
    async with rig.client("operator") as client:
        told = [each async for each in client.images.register(upload("app:v1"), chunked(data))]
        assert isinstance(told[0], ImageProgress)
        assert told[0].stage == "upload"
        image = told[-1]
        assert isinstance(image, Image)
        assert (image.scope, image.names, image.kind) == (ACME, ("app:v1",), GuestKind.LINUX)
        assert image.size_bytes > 0
        if form == "oci":
            assert image.digest == hello().digest
            assert (image.entrypoint, image.command, image.exposed_ports) == (("/bin/hello",), ("x",), (8080,))
        assert await client.images.get("app:v1") == await client.images.get(image.digest) == image


async def test_registering_twice_changes_nothing(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        first = await register(client, upload(), oci_layout(hello()))
        assert first.names == ()
        assert await register(client, upload(), oci_layout(hello())) == first
        named = await register(client, upload("app"), oci_layout(hello()))
        assert named == replace(first, names=("app:latest",))
        assert (await client.images.get("app")).digest == first.digest


async def test_a_reference_is_pulled_with_progress_and_keeps_its_name(rig: RpcRig, registry: RegistryServer) -> None:
    registry.push(hello(), "app:v1")
    reference = f"{registry.host}/app:v1"
    async with rig.client("operator") as client:
        told = [each async for each in client.images.register(ImageOrder(OURS, reference))]
        assert told[-1] == await client.images.get(reference)
        assert isinstance(told[-1], Image)
        assert told[-1].digest == hello().digest
        assert {each.stage for each in told[:-1] if isinstance(each, ImageProgress)} <= {"resolve", "fetch", "build"}
        with pytest.raises(ImageError, match="there is no image") as refused:
            await register(client, ImageOrder(OURS, f"{registry.host}/absent:v1"))
        assert refused.value.code == "image-not-found"


async def test_a_registry_on_a_private_address_must_be_allowed(registry: RegistryServer) -> None:
    registry.push(hello(), "app:v1")
    async with running(registries=()) as rig, rig.client("operator") as client:
        with pytest.raises(ImageError, match="not a public address") as refused:
            await register(client, ImageOrder(OURS, f"{registry.host}/app:v1", login=RegistryLogin("me", "canary")))
        assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (ImageOrder(OURS, "hello:v1"), "start.reference"),
        (ImageOrder(OURS, Upload.TAR, "sha256:" + "0" * 64), "start.name"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(rig: RpcRig, order: ImageOrder, field: str) -> None:
    async with rig.client("operator") as client:
        with pytest.raises(InvalidSpecError) as refused:
            await register(client, order)
        assert refused.value.field == field


MODULE = b"\0asm\x01\0\0\0"


async def test_a_module_is_uploaded_as_what_it_is(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        taken = await register(client, ImageOrder(OURS, Upload.WASM, "empty:v1"), MODULE)
        assert (taken.kind, taken.names) == (GuestKind.WASM, ("empty:v1",))
        for announced, data in ((Upload.WASM, oci_layout(hello())), (Upload.TAR, MODULE)):
            with pytest.raises(ImageError) as refused:
                await register(client, ImageOrder(OURS, announced, "wrong:v1"), data)
            assert refused.value.code == "image-archive"


@pytest.mark.parametrize("data", [b"", b"no tar", layer(entry("a", b"b")), oci_layout(hello())[:2000]])
async def test_what_is_no_image_is_refused_and_leaves_nothing(rig: RpcRig, data: bytes) -> None:
    async with rig.client("operator") as client:
        with pytest.raises(ImageError):
            await register(client, upload("app"), data)
        assert [image.names async for image in client.images.list_images()] == [("sample:latest",)]


async def test_an_archive_of_several_images_is_refused(rig: RpcRig) -> None:
    one, two = oci_layout(hello()), docker_save([layer(entry("a", b"b"))])
    assert one != two
    index = docker_save([layer(entry("a", b"b"))], names=("a:1", "b:2"))
    async with rig.client("operator") as client:
        assert (await register(client, upload(), index)).names == (), "names of the archive are its maker's"


async def test_an_uploads_messages_are_bounded_and_in_order(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    start = image_pb2.RegisterImageRequest(start=image_pb2.RegisterImageStart(tar_upload=True))
    cases = [
        ([image_pb2.RegisterImageRequest(chunk=b"x")], "start"),
        ([start, start], "chunk"),
        ([start, image_pb2.RegisterImageRequest(chunk=bytes((1 << 20) + 1))], "chunk"),
        ([image_pb2.RegisterImageRequest(start=image_pb2.RegisterImageStart())], "start"),
    ]
    async with grpc.aio.insecure_channel(rig.address) as channel:
        for messages, field in cases:
            call = ImageServiceStub(channel).RegisterImage(iter(messages), metadata=METADATA)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                [answer async for answer in call]
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert str(error.value.details()).startswith(f"{field}: ")
        monkeypatch.setattr(image_service, "CHUNK_DEADLINE_S", 0.1)
        stalls = ImageServiceStub(channel).RegisterImage(metadata=METADATA)
        await stalls.write(start)
        with pytest.raises(grpc.aio.AioRpcError, match="no chunk came"):
            [answer async for answer in stalls]


async def test_an_empty_chunk_is_none(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such is the last that some clients read of a file; who sends nothing else sends nothing."""
    start = image_pb2.RegisterImageRequest(start=image_pb2.RegisterImageStart(tar_upload=True))
    empty = image_pb2.RegisterImageRequest(chunk=b"")
    whole = [start, image_pb2.RegisterImageRequest(chunk=oci_layout(hello())), empty]

    async def for_ever() -> AsyncIterator[image_pb2.RegisterImageRequest]:
        yield start
        while True:
            yield empty
            await asyncio.sleep(0.01)

    async with grpc.aio.insecure_channel(rig.address) as channel:
        call = ImageServiceStub(channel).RegisterImage(iter(whole), metadata=METADATA)
        assert [answer async for answer in call][-1].HasField("image")
        monkeypatch.setattr(image_service, "CHUNK_DEADLINE_S", 0.1)
        with pytest.raises(grpc.aio.AioRpcError, match="no chunk came"):
            async with asyncio.timeout(10):
                [answer async for answer in ImageServiceStub(channel).RegisterImage(for_ever(), metadata=METADATA)]


async def test_an_upload_that_trickles_is_given_up(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_service, "PATIENCE_S", 0.1)

    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    async with rig.client("operator") as client:
        with pytest.raises(UnavailableError) as refused:
            async with asyncio.timeout(10):
                [told async for told in client.images.register(upload("app"), drops())]
        assert refused.value.code == "upload-slow"


@asynccontextmanager
async def uploading(client: EngineClient) -> AsyncIterator[None]:
    """An upload that has begun, and of which no more comes."""
    never = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"x"
        await never.wait()

    async with aclosing(client.images.register(upload("stalled"), stalled())) as told:
        await anext(told)
        yield


async def test_uploads_that_stall_keep_nobody_elses_image_out(rig: RpcRig) -> None:
    async with AsyncExitStack() as stack:
        for who in ("operator", "stranger"):
            client = await stack.enter_async_context(rig.client(who))
            for _ in range(2):
                await stack.enter_async_context(uploading(client))
        root = await stack.enter_async_context(rig.client())
        async with asyncio.timeout(20):
            assert (await register(root, upload("app", ACME), oci_layout(hello()))).digest == hello().digest


async def test_a_principal_has_two_uploads_at_a_time_and_some_more_that_wait(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        async with uploading(client), uploading(client):
            waiting = [asyncio.create_task(register(client, upload("later"), oci_layout(hello()))) for _ in range(8)]

            async def refused() -> bool:
                """With its reason, that is: gRPC hides it at times from who is still sending."""
                with pytest.raises((CapacityError, UnavailableError)) as told:
                    async with asyncio.timeout(10):
                        await register(client, upload("more"), oci_layout(hello()))
                return (told.value.code, told.value.temporary) == ("too-many", True)

            await until(lambda: _true(rig.images._uploads._lines["operator"].length == 10), "all wait")
            await until(refused, "one more is refused with its reason")
            assert not any(each.done() for each in waiting)
        async with asyncio.timeout(20):
            assert {image.digest for image in await asyncio.gather(*waiting)} == {hello().digest}


async def _true(value: bool) -> bool:
    return value


async def test_an_image_that_comes_while_another_is_collected_keeps_its_layers(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, listing, came = rig.images._blobs, threading.Event(), threading.Event()
    list_files = blobs._all_files

    def late() -> tuple[Path, ...]:
        """What is kept was looked up already; what is there is listed once another image came, or cannot come."""
        listing.set()
        came.wait(1.0)
        return list_files()

    async with rig.client("operator") as client:
        await register(client, upload("old"), oci_layout(hello()))
        monkeypatch.setattr(blobs, "_all_files", late)
        removal = asyncio.create_task(client.images.delete("old"))
        await asyncio.to_thread(listing.wait, 10.0)
        image = await register(client, upload("new"), docker_save([layer(entry("new", b"new"))]))
        came.set()
        await removal
        assert blobs.has_image(image.digest)


async def test_an_upload_that_is_broken_off_leaves_nothing(rig: RpcRig) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield oci_layout(hello())[:1000]
        await asyncio.sleep(60)

    async with rig.client("operator") as client:
        told = client.images.register(upload("app"), half())
        assert isinstance(await anext(told), ImageProgress)
        await told.aclose()  # type: ignore[attr-defined]

        async def gone() -> bool:
            return all(task.get_name() != "register image" for task in asyncio.all_tasks())

        await until(gone, "the upload is given up")
        assert [image.names async for image in client.images.list_images()] == [("sample:latest",)]


def blobs_of(rig: RpcRig) -> list[Path]:
    return list((rig.engine.directory / "blobs" / "sha256").glob("*/*"))


@pytest.mark.parametrize("left", [False, True])
async def test_an_upload_whose_image_is_refused_leaves_no_blobs(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    building = asyncio.Event()

    async def refuses(*_: object) -> NoReturn:
        assert blobs_of(rig), "they are here, and not yet an image's"
        building.set()
        if left:
            await asyncio.Event().wait()
        raise ImageError("image-tar", "a layer is no tar")

    async with rig.client("operator") as client:
        await register(client, upload("kept"), docker_save([layer(entry("a", b"kept"))]))
        kept = sorted(blobs_of(rig))
        monkeypatch.setattr(rig.images._store, "ensure", refuses)
        told = asyncio.create_task(register(client, upload("app"), oci_layout(hello())))
        await building.wait()
        if left:
            told.cancel()
        with pytest.raises(asyncio.CancelledError if left else ImageError):
            await told

        async def gone() -> bool:
            return sorted(blobs_of(rig)) == kept

        await until(gone, "what it brought in is gone")


async def test_a_pulled_image_that_is_refused_leaves_no_blobs_and_one_that_broke_off_goes_on(
    rig: RpcRig, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push(hello(), "app:v1")
    order = ImageOrder(OURS, f"{registry.host}/app:v1")

    def fails(error: Exception) -> None:
        async def refuses(*_: object) -> NoReturn:
            raise error

        monkeypatch.setattr(rig.images._store, "ensure", refuses)

    async with rig.client("operator") as client:
        fails(UnavailableError("registry-unreachable", "it went away"))
        with pytest.raises(UnavailableError):
            await register(client, order)
        assert blobs_of(rig)
        fails(ImageError("image-tar", "a layer is no tar"))
        with pytest.raises(ImageError):
            await register(client, order)
        assert not blobs_of(rig)


async def test_within_a_budget_what_no_image_needs_and_nobody_comes_back_for_goes(rig: RpcRig) -> None:
    blobs = rig.images._blobs
    long_ago, just_now = await blobs.put(b"long ago"), await blobs.put(b"just now")
    then = time.time() - 2 * images_of_the_server.UNWANTED_S
    os.utime(blobs.path(long_ago), (then, then))
    assert await rig.images.collect(1 << 40) == ()
    assert (blobs.has(long_ago), blobs.has(just_now)) == (False, True)


async def test_chunks_that_cannot_be_read_are_the_callers_own_error(rig: RpcRig) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("the disk is gone")

    async with rig.client("operator") as client:
        with pytest.raises(OSError, match="the disk is gone"):
            [told async for told in client.images.register(upload("app"), broken())]


async def test_a_name_moves_to_the_image_that_got_it_last(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        first = await register(client, upload("app:v1"), oci_layout(hello()))
        second = await register(client, upload("app:v1"), docker_save([layer(entry("a", b"b"))]))
        assert (await client.images.get("app:v1")).digest == second.digest != first.digest
        assert (await client.images.get(first.digest)).names == ()


async def test_what_one_project_registered_another_cannot_use(rig: RpcRig) -> None:
    async with rig.client("operator") as ours, rig.client("stranger") as theirs:
        image = await register(ours, upload("app:v1"), oci_layout(hello()))
        for wanted in ("app:v1", image.digest):
            with pytest.raises(NotFoundError):
                await theirs.images.get(wanted)
            with pytest.raises(NotFoundError):
                await theirs.vms.create(replace(rig.spec("thief", OTHER), image=wanted))
            with pytest.raises(NotFoundError):
                await theirs.images.delete(wanted)
        await ours.images.get("app:v1")


async def test_an_image_that_names_anothers_layer_does_not_get_it(
    rig: RpcRig, registry: RegistryServer, tmp_path: Path
) -> None:
    """A registry is its owner's: it may serve a manifest whose layers it has not."""
    reference = f"{registry.host}/app:v1"
    registry.push(hello(), "app:v1")
    async with rig.client("operator") as ours, rig.client("stranger") as theirs:
        image = await register(ours, ImageOrder(OURS, reference))
        for data in hello().layers:
            name = digest_of(data).removeprefix("sha256:")
            next((tmp_path / "registry").glob(f"data/**/{name}/data")).unlink()
        with pytest.raises((ImageError, UnavailableError)):
            await register(theirs, ImageOrder(OURS, reference))
        with pytest.raises(NotFoundError):
            await theirs.images.get(image.digest)
        assert (await register(ours, ImageOrder(OURS, reference, "app:v2"))).digest == image.digest, "his own he has"


async def test_what_two_projects_have_each_from_its_registry_is_stored_once(
    rig: RpcRig, registry: RegistryServer
) -> None:
    registry.push(hello(), "app:v1")
    blobs = rig.engine.directory / "blobs"
    async with rig.client("operator") as ours, rig.client("stranger") as theirs:
        await register(ours, ImageOrder(OURS, f"{registry.host}/app:v1"))
        before = sorted(path.name for path in blobs.rglob("*") if path.is_file())
        image = await register(theirs, ImageOrder(OURS, f"{registry.host}/app:v1"))
        assert sorted(path.name for path in blobs.rglob("*") if path.is_file()) == before
        assert (await theirs.images.get(image.digest)).digest == hello().digest


async def test_an_image_that_cannot_be_removed_for_now_does_not_end_the_budget(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_of_the_server, "COLLECT_EVERY_S", 0.0)
    tries = 0

    async def collect(budget_bytes: int) -> tuple[Image, ...]:
        nonlocal tries
        tries += 1
        raise FileNotFoundError("gone")

    monkeypatch.setattr(rig.images, "collect", collect)
    keeping = asyncio.create_task(rig.images.keep_within(1))

    async def tried_again() -> bool:
        return tries > 1 or keeping.done()

    await until(tried_again, "the budget is looked at again")
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_the_systems_images_are_everybodys_to_use_and_nobodys_to_change(rig: RpcRig) -> None:
    async with rig.client("stranger") as client:
        assert (await client.images.get("sample", SYSTEM_SCOPE)).names == ("sample:latest",)
        await client.vms.create(rig.spec("theirs", OTHER))
        with pytest.raises(NotFoundError):
            await client.images.delete("sample", SYSTEM_SCOPE)
        with pytest.raises(NotFoundError):
            await register(client, upload("sample", SYSTEM_SCOPE), oci_layout(hello()))
    async with rig.client("viewer") as client:
        with pytest.raises(ForbiddenError):
            await register(client, upload("app"), oci_layout(hello()))


async def test_an_image_stays_while_a_vm_is_made_from_it(rig: RpcRig) -> None:
    async with rig.client() as root:
        await root.vms.create(rig.spec())
        for wanted in ("sample", rig.engine.sample.digest):
            with pytest.raises(ConflictError, match="made from image") as refused:
                await root.images.delete(wanted, SYSTEM_SCOPE)
            assert refused.value.code == "image-in-use"
        await root.vms.delete("vm_one")
        await root.images.delete("sample", SYSTEM_SCOPE)
        with pytest.raises(NotFoundError):
            await root.images.get("sample", SYSTEM_SCOPE)


async def test_a_removed_image_leaves_the_disk_with_its_last_entry(rig: RpcRig) -> None:
    blobs = rig.engine.directory / "blobs" / "sha256"
    built = rig.engine.directory / "images" / "images"
    async with rig.client() as root:
        for scope in (ACME, OTHER):
            await register(root, upload("app", scope), oci_layout(hello()))
        await root.images.delete("app", ACME)
        assert list(built.iterdir())
        assert list(blobs.glob("*/*"))
        await root.images.delete("app", OTHER)
        assert list(built.iterdir()) == []
        assert list(blobs.glob("*/*")) == []


async def test_a_name_alone_is_taken_away_while_others_point_to_the_image(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        for name in ("app:v1", "app:v2"):
            image = await register(client, upload(name), oci_layout(hello()))
        assert image.names == ("app:v1", "app:v2")
        await client.images.delete("app:v1")
        assert (await client.images.get(image.digest)).names == ("app:v2",)
        await client.images.delete(image.digest)
        with pytest.raises(NotFoundError):
            await client.images.get("app:v2")


async def test_the_catalogue_outlives_the_server(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        image = await register(client, upload("app:v1"), oci_layout(hello()))
    async with running(engine=rig.engine) as after, after.client("operator") as client:
        assert await client.images.get("app:v1") == image


async def test_images_come_in_pages(rig: RpcRig) -> None:
    async with rig.client() as root:
        for number in range(3):
            scope = Scope("acme", f"p{number}")
            await register(root, upload(f"app{number}", scope), oci_layout(hello()))
        names = [image.names async for image in root.images.list_images(page_size=1)]
        assert names == [("app0:latest",), ("app1:latest",), ("app2:latest",), ("sample:latest",)]
        one = [image.names async for image in root.images.list_images(Scope("acme", "p1"))]
        assert one == [("app1:latest",)]


def age(rig: RpcRig, image: Image, seconds: float) -> None:
    """Let an image have been used so long ago."""
    then = time.time() - seconds
    (directory,) = (rig.engine.directory / "images" / "images").glob(f"{image.digest.removeprefix('sha256:')}-*")
    os.utime(directory / "rootfs.squashfs", (then, then))


async def test_beyond_a_budget_the_longest_unused_image_goes_with_its_layers_and_one_in_use_stays(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        used = await register(client, upload("used"), oci_layout(hello()))
        old, new = [
            await register(client, upload(name), docker_save([layer(entry(name, os.urandom(100_000)))]))
            for name in ("old", "new")
        ]
        for image, seconds in ((used, 500.0), (old, 400.0), (new, 300.0)):
            assert image.disk_bytes >= image.size_bytes
            age(rig, image, seconds)
        await client.vms.create(replace(rig.spec(), image="used"))
        whole = sum(each.disk_bytes for each in await everything(client))
        assert await rig.images.collect(whole) == ()
        assert [each.names for each in await rig.images.collect(whole - 1)] == [("sample:latest",)]
        assert [each.names for each in await rig.images.collect(0)] == [("old:latest",), ("new:latest",)]
        assert [each.names for each in await everything(client)] == [("used:latest",)]
        stored = sum(path.stat().st_size for path in (rig.engine.directory / "blobs" / "sha256").rglob("*/*"))
        assert stored + used.size_bytes == used.disk_bytes, "nothing is left of those that went"


async def everything(client: EngineClient) -> list[Image]:
    return [image async for image in client.images.list_images(None)]


async def test_a_budget_is_kept_as_images_come(rig: RpcRig) -> None:
    keeping = asyncio.create_task(rig.images.keep_within(1))
    try:
        async with rig.client("operator") as client:
            first = await register(client, upload("first"), oci_layout(hello()))
            age(rig, first, 100)
            await register(client, upload("second"), docker_save([layer(entry("second", b"2"))]))

            async def only_the_second() -> bool:
                return [image.names for image in await everything(client)] == [("second:latest",)]

            await until(only_the_second, "the first and the sample went, and the fresh one stays", 60.0)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
