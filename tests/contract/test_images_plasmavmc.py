"""The images contract on the plasmavmc driver, against a registry that other people wrote."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.errors import ImageError
from plasmavmc.images.manifest import parse_manifest
from plasmavmc.images.store import ImageStore
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.images import ImageKind, blames_image
from shellwego.drivers.images.plasmavmc import PlasmaImages
from tests.contract.images_contract import Damage, ImagesContract
from tests.contract.images_samples import chunked, hello
from tests.contract.registry_server import RegistryServer, free_port, registry_server, run, write_layout
from tests.contract.wasm_modules import SAY

pytestmark = pytest.mark.real


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    with registry_server(tmp_path / "registry") as server:
        yield server


@pytest.fixture
def images(tmp_path: Path) -> PlasmaImages:
    return PlasmaImages(tmp_path / "blobs", allow=("127.0.0.1:*",))


class TestPlasmaImages(ImagesContract):
    @pytest.fixture
    def damage(self, images: PlasmaImages) -> Damage:
        def change_a_layer(digest: str) -> None:
            manifest = parse_manifest(images.blobs.path(digest).read_bytes())
            path = images.blobs.path(manifest.layers[0].digest)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)

        return change_a_layer

    async def test_a_node_that_builds_from_a_damaged_layer_blames_the_image(
        self, images: PlasmaImages, registry: RegistryServer, damage: Damage, tmp_path: Path
    ) -> None:
        digest = await registry.publish("app:v1", content=b"x" * 10_000)
        await images.fetch(f"{registry.host}/app:v1", digest)
        damage(digest)
        with pytest.raises(ImageError) as caught:
            await ImageStore(tmp_path / "images").ensure(digest, images.blobs)
        assert blames_image(caught.value.code)
        assert not caught.value.temporary

    @pytest.fixture
    def forbidden(self) -> str:
        return f"127.0.0.2:{free_port()}"


class TestWithOtherPeoplesTools:
    async def test_an_image_in_dockers_old_format_is_pulled(
        self, images: PlasmaImages, registry: RegistryServer
    ) -> None:
        registry.push(hello(), "app:v2s2", "--format", "v2s2")
        found = await images.resolve(f"{registry.host}/app:v2s2")
        assert found.digest != hello().digest
        await images.fetch(f"{registry.host}/app:v2s2", found.digest)
        assert await images.has(found.digest)

    async def test_zstd_layers_are_pulled_and_built(
        self, images: PlasmaImages, registry: RegistryServer, tmp_path: Path
    ) -> None:
        registry.push(hello(), "app:zstd", "--format", "oci", "--dest-compress", "--dest-compress-format", "zstd")
        found = await images.resolve(f"{registry.host}/app:zstd")
        await images.fetch(f"{registry.host}/app:zstd", found.digest)
        assert (await ImageStore(tmp_path / "images").ensure(found.digest, images.blobs)).size_bytes > 0

    @pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
    async def test_archives_that_skopeo_wrote_are_loaded(self, images: PlasmaImages, tmp_path: Path, kind: str) -> None:
        layout = write_layout(tmp_path / "layout", hello())
        archive = tmp_path / "image.tar"
        run("skopeo", "copy", "--insecure-policy", f"oci:{layout}:image", f"{kind}:{archive}:hello:v7")
        [loaded] = await images.load(chunked(archive.read_bytes()))
        assert [name.rpartition("/")[2] for name in loaded.names] == ["hello:v7"]
        assert loaded.image.exposed_ports == (8080,)
        assert await images.has(loaded.image.digest)

    async def test_what_skopeo_inspects_is_what_we_resolve(
        self, images: PlasmaImages, registry: RegistryServer
    ) -> None:
        digest = await registry.publish("app:v1")
        seen = run(
            "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{registry.host}/app:v1"
        )
        assert (await images.resolve(f"{registry.host}/app:v1")).digest == seen.strip() == digest


async def test_a_bare_module_is_an_image_of_its_own_kind(images: PlasmaImages) -> None:
    [loaded] = await images.load(chunked(SAY))
    assert loaded.image.kind is ImageKind.WASM
    assert await images.look(loaded.image.digest) == loaded.image


class TestLimits:
    async def test_a_registry_that_accepts_and_says_nothing_is_given_up(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host = f"127.0.0.1:{silent.getsockname()[1]}"
            images = PlasmaImages(tmp_path / "blobs", allow=("127.0.0.1:*",), resolve_timeout_s=0.3)
            with pytest.raises(UnavailableError) as caught:
                await images.resolve(f"{host}/app:v1")
        assert caught.value.code == "registry-unreachable"

    async def test_a_registry_that_is_not_there_is_told_in_the_kernels_words(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            host = f"127.0.0.1:{closed.getsockname()[1]}"
        images = PlasmaImages(tmp_path / "blobs", allow=("127.0.0.1:*",))
        with pytest.raises(UnavailableError) as caught:
            await images.resolve(f"{host}/app:v1")
        assert str(caught.value).endswith("does not answer (Connection refused)")

    def test_a_malformed_pattern_is_refused_at_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidError):
            PlasmaImages(tmp_path / "blobs", allow=("http://everywhere",))

    async def test_what_a_crash_left_in_the_spool_is_gone_after_a_start(self, tmp_path: Path) -> None:
        PlasmaImages(tmp_path / "blobs")
        (tmp_path / "blobs" / "spool" / "half").write_bytes(b"x")
        PlasmaImages(tmp_path / "blobs")
        assert list((tmp_path / "blobs" / "spool").iterdir()) == []
