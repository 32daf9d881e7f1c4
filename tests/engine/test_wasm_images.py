"""WebAssembly modules as images: loaded as a file, pulled as an artifact, built, and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from plasmavmc.backends import GuestKind
from plasmavmc.errors import ImageError
from plasmavmc.images.archive import ArchivedImage, load_archive
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import Descriptor, Platform, choose, parse_manifest
from plasmavmc.images.store import BuiltImage, ImageStore
from plasmavmc.images.wasm import module_of
from tests.contract.images_samples import MemorySource, Sample, chunked, descriptor, digest_of, oci_layout
from tests.contract.wasm_modules import SAY

AMD64 = Platform("linux", "amd64")
COMPONENT = b"\0asm\x0d\0\x01\0rest"


def artifact(
    module: bytes = SAY,
    media_type: str = "application/wasm",
    config: Mapping[str, object] | None = None,
    layers: int = 1,
) -> Sample:
    """A module as tools push it: one layer that is no tar, and a configuration of their own kind."""
    raw_config = json.dumps({"os": "wasip1", "architecture": "wasm", **(config or {})}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(raw_config, "application/vnd.wasm.config.v0+json"),
        "layers": [descriptor(module, media_type)] * layers,
    }
    raw = json.dumps(manifest).encode()
    return Sample((module,), raw_config, raw, {digest_of(data): data for data in (module, raw_config, raw)})


async def built(sample: Sample, directory: Path) -> BuiltImage:
    return await ImageStore(directory).ensure(sample.digest, MemorySource(sample))


async def loaded(data: bytes, directory: Path) -> ArchivedImage:
    [image] = await load_archive(chunked(data), BlobStore(directory), AMD64, ImageLimits())
    return image


@pytest.mark.parametrize("media_type", ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"])
async def test_an_artifact_is_built_into_its_module(tmp_path: Path, media_type: str) -> None:
    sample = artifact(media_type=media_type)
    image = await built(sample, tmp_path)
    assert (image.kind, image.rootfs.read_bytes(), image.size_bytes) == (GuestKind.WASM, SAY, len(SAY))
    assert image.config.entrypoint == ("/module.wasm",)


async def test_a_module_is_there_after_a_restart_and_rot_is_found(tmp_path: Path) -> None:
    sample = artifact()
    first = await built(sample, tmp_path)
    store = ImageStore(tmp_path)
    assert store.kind_of(sample.digest) is GuestKind.WASM
    assert store.kind_of("sha256:" + "0" * 64) is None
    assert await store.ensure(sample.digest, MemorySource()) == first
    first.rootfs.write_bytes(SAY[:-1] + b"x")
    again = await built(sample, tmp_path)
    assert again.rootfs.read_bytes() == SAY


async def test_a_bare_module_is_wrapped_and_has_one_digest(tmp_path: Path) -> None:
    first, second = await loaded(SAY, tmp_path / "a"), await loaded(SAY, tmp_path / "b")
    assert first.manifest.digest == second.manifest.digest
    assert first.names == ()
    image = await ImageStore(tmp_path / "store").ensure(first.manifest.digest, BlobStore(tmp_path / "a"))
    assert (image.kind, image.rootfs.read_bytes()) == (GuestKind.WASM, SAY)


async def test_an_artifact_in_an_oci_layout_is_loaded_with_its_name(tmp_path: Path) -> None:
    image = await loaded(oci_layout(artifact(), "tool:v1"), tmp_path)
    assert (image.names, image.manifest.layers[0].media_type) == (("tool:v1",), "application/wasm")


@pytest.mark.parametrize(
    ("sample", "code"),
    [
        (artifact(b"#!/bin/sh\n"), "image-wasm"),
        (artifact(b""), "image-wasm"),
        (artifact(SAY[:7]), "image-wasm"),
        (artifact(b"\0asm\x02\0\0\0"), "image-wasm"),
        (artifact(COMPONENT), "image-platform"),
        (artifact(config={"os": "wasip2"}), "image-platform"),
        (artifact(config={"os": "linux", "architecture": "amd64"}), "image-wasm"),
        (artifact(layers=2), "image-wasm"),
    ],
)
async def test_what_is_no_module_that_can_run_is_refused_by_name(tmp_path: Path, sample: Sample, code: str) -> None:
    with pytest.raises(ImageError) as refused:
        await built(sample, tmp_path)
    assert refused.value.code == code
    assert ImageStore(tmp_path).list() == ()


async def test_a_bare_component_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refused:
        await loaded(COMPONENT, tmp_path)
    assert (refused.value.code, "wasm32-wasip1" in refused.value.resolution) == ("image-platform", True)


def test_a_module_beyond_the_limit_is_refused_before_it_is_fetched() -> None:
    sample = artifact()
    raw = sample.manifest.replace(b'"size": %d' % len(SAY), b'"size": %d' % (1 << 30))
    with pytest.raises(ImageError) as refused:
        module_of(parse_manifest(raw), sample.config)
    assert refused.value.code == "image-too-large"


async def test_a_source_that_lies_about_the_module_is_refused(tmp_path: Path) -> None:
    sample = artifact()
    lying = Sample(sample.layers, sample.config, sample.manifest, {**sample.blobs, digest_of(SAY): SAY[:-1] + b"x"})
    with pytest.raises(ImageError) as refused:
        await built(lying, tmp_path)
    assert refused.value.code == "digest-mismatch"


def test_of_an_index_the_host_s_own_platform_comes_first_and_then_webassembly() -> None:
    def entry(platform: Platform) -> Descriptor:
        return Descriptor(digest_of(str(platform).encode()), 1, "", platform, {})

    arm, wasm, ours = (entry(each) for each in (Platform("linux", "arm64"), Platform("wasip1", "wasm"), AMD64))
    assert choose((arm, wasm, ours), AMD64) is ours
    assert choose((arm, wasm), AMD64) is wasm
