"""An image that is refused: what it takes along of the server's blobs, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from plasmavmc.errors import ImageError, InvalidSpecError, PlasmaError, UnavailableError
from plasmavmc.images.archive import load_archive
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import host_platform
from plasmavmc.rpc.api import ImageOrder, Upload
from plasmavmc.rpc.client import EngineClient
from plasmavmc.types import Scope
from tests.contract.images_samples import chunked, docker_save, entry, hello, layer, oci_layout
from tests.contract.registry_server import RegistryServer, registry_server
from tests.rpc.rpc_rig import RpcRig

OURS = Scope("", "")
"""The caller's only one."""
SHARED = [layer(entry("base", b"base"))]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with registry_server(tmp_path / "registry") as server:
        yield server


async def register(client: EngineClient, order: ImageOrder, data: bytes = b"") -> None:
    async for _ in client.images.register(order, chunked(data)):
        pass


async def a_broken_off_pull_of_another(rig: RpcRig, data: bytes) -> set[Path]:
    """The files that it leaves: whole blobs of no image yet, and the beginning of one."""
    await load_archive(chunked(data), rig.images._blobs, host_platform(), ImageLimits())
    (rig.engine.directory / "blobs" / "partial" / f"{'a' * 64}.{'b' * 32}").write_bytes(b"the first half")
    return files_of(rig)


def files_of(rig: RpcRig) -> set[Path]:
    blobs = rig.engine.directory / "blobs"
    return {*blobs.glob("sha256/*/*"), *blobs.glob("partial/*")}


def refuse_to_build(monkeypatch: pytest.MonkeyPatch, rig: RpcRig, error: Exception) -> None:
    async def refuses(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(rig.images._store, "ensure", refuses)


@pytest.mark.parametrize(
    ("name", "data", "refusal"),
    [
        pytest.param("sha256:" + "0" * 64, oci_layout(hello()), InvalidSpecError, id="before a byte came"),
        pytest.param("app", b"no tar", ImageError, id="before a blob was brought"),
        pytest.param("app", docker_save([*SHARED, layer(entry("own", b"own"))]), ImageError, id="as it was built"),
    ],
)
async def test_a_refused_upload_takes_along_what_it_brought_and_nothing_of_others(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, refusal: type[PlasmaError]
) -> None:
    there = await a_broken_off_pull_of_another(rig, docker_save(SHARED))
    refuse_to_build(monkeypatch, rig, ImageError("image-tar", "a layer is no tar"))
    async with rig.client("operator") as client:
        with pytest.raises(refusal):
            await register(client, ImageOrder(OURS, Upload.TAR, name), data)
    assert files_of(rig) == there


async def test_a_refused_pull_takes_along_what_it_brought_in_all_its_tries_and_nothing_of_others(
    rig: RpcRig, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push(hello(), "app:v1")
    order = ImageOrder(OURS, f"{registry.host}/app:v1")
    there = await a_broken_off_pull_of_another(rig, docker_save(SHARED))
    async with rig.client("operator") as client:
        refuse_to_build(monkeypatch, rig, UnavailableError("registry-unreachable", "it went away"))
        with pytest.raises(UnavailableError):
            await register(client, order)
        assert files_of(rig) > there
        refuse_to_build(monkeypatch, rig, ImageError("image-tar", "a layer is no tar"))
        with pytest.raises(ImageError):
            await register(client, order)
    assert files_of(rig) == there


async def test_what_a_refused_image_brought_while_another_came_in_goes_with_the_next_refused_one(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = await a_broken_off_pull_of_another(rig, docker_save(SHARED))
    refuse_to_build(monkeypatch, rig, ImageError("image-tar", "a layer is no tar"))
    order = ImageOrder(OURS, Upload.TAR, "app")
    async with rig.client("operator") as client:
        async with rig.images._intake():
            with pytest.raises(ImageError):
                await register(client, order, oci_layout(hello()))
        assert files_of(rig) > there, "some may be the other's"
        with pytest.raises(ImageError):
            await register(client, order, docker_save([layer(entry("own", b"own"))]))
    assert files_of(rig) == there


async def test_why_an_image_is_refused_is_told_also_where_anothers_manifest_is_damaged(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ImageOrder(OURS, Upload.TAR, "app")
    async with rig.client("operator") as client:
        await register(client, ImageOrder(OURS, Upload.TAR, "kept"), docker_save(SHARED))
        kept = await client.images.get("kept")
        rig.images._blobs.path(kept.digest).write_bytes(b"no manifest any more")
        refuse_to_build(monkeypatch, rig, ImageError("image-tar", "a layer is no tar"))
        with pytest.raises(ImageError, match="a layer is no tar"):
            await register(client, order, oci_layout(hello()))
