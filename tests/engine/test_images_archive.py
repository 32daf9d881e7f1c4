"""Images from a tar: every form that tools write, the same digest for the same content, and named errors for the rest."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from plasmavmc.errors import ImageError
from plasmavmc.images import tarindex
from plasmavmc.images.archive import ArchivedImage, load_archive
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import Platform
from plasmavmc.images.tarindex import TarIndex
from tests.contract.images_samples import (
    Sample,
    chunked,
    descriptor,
    digest_of,
    docker_save,
    entry,
    hard_link,
    hello,
    image,
    layer,
    oci_layout,
    pack,
    symlink,
)

AMD64 = Platform("linux", "amd64")
LAYER = layer(entry("a", b"x"))
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path, grace_s=0)


async def load(store: BlobStore, data: bytes, limits: ImageLimits = ImageLimits()) -> tuple[ArchivedImage, ...]:  # noqa: B008
    try:
        return await load_archive(chunked(data), store, AMD64, limits)
    finally:
        assert list(store.spool.iterdir()) == [], "something was left in the spool"


async def refusal(store: BlobStore, data: bytes, limits: ImageLimits = ImageLimits()) -> str:  # noqa: B008
    with pytest.raises(ImageError) as caught:
        await load(store, data, limits)
    return caught.value.code


def files(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}


def archive_of(contents: Mapping[str, bytes]) -> bytes:
    return layer(*(entry(name, data) for name, data in contents.items()))


def layout_with(sample: Sample, index: object) -> bytes:
    blobs = {f"blobs/{digest.replace(':', '/')}": data for digest, data in sample.blobs.items()}
    return archive_of({"oci-layout": b"{}", "index.json": json.dumps(index).encode(), **blobs})


class TestDockerSave:
    async def test_it_becomes_an_image_with_its_names(self, store: BlobStore) -> None:
        [found] = await load(store, docker_save([LAYER], names=["hello:v1", "registry.example/team/hello:v2"]))
        assert found.names == ("hello:v1", "registry.example/team/hello:v2")
        assert store.has_image(found.manifest.digest)
        assert [ref.digest for ref in found.manifest.layers] == [digest_of(LAYER)]

    async def test_the_same_content_gives_the_same_digest(self, store: BlobStore, tmp_path: Path) -> None:
        saved = files(docker_save([LAYER]))
        [first] = await load(store, archive_of(saved))
        [second] = await load(BlobStore(tmp_path / "other"), archive_of(dict(reversed(saved.items()))))
        assert first.manifest.digest == second.manifest.digest

    async def test_a_compressed_archive_is_the_same(self, store: BlobStore) -> None:
        digests = {
            (await load(store, pack(docker_save([LAYER]), how)))[0].manifest.digest for how in ("none", "gzip", "zstd")
        }
        assert len(digests) == 1

    async def test_several_images_share_layers(self, store: BlobStore) -> None:
        saved = files(docker_save([LAYER]))
        [first] = json.loads(saved["manifest.json"])
        saved["manifest.json"] = json.dumps([first, {**first, "RepoTags": ["other:v1"]}]).encode()
        assert [found.names for found in await load(store, archive_of(saved))] == [("hello:v1",), ("other:v1",)]

    @pytest.mark.parametrize("link", [symlink("0/layer.tar", "../layer"), hard_link("0/layer.tar", "layer")])
    async def test_layers_may_be_named_through_links(
        self, store: BlobStore, link: tuple[tarfile.TarInfo, bytes]
    ) -> None:
        saved = files(docker_save([LAYER]))
        del saved["0/layer.tar"]
        entries = [entry(name, data) for name, data in saved.items()]
        [found] = await load(store, layer(*entries, entry("layer", LAYER), link))
        assert found.manifest.layers[0].digest == digest_of(LAYER)

    async def test_of_several_images_those_for_our_machine_are_taken(self, store: BlobStore) -> None:
        ours, theirs = (files(docker_save([LAYER], architecture=name)) for name in ("amd64", "arm64"))
        listed = [json.loads(saved["manifest.json"])[0] for saved in (theirs, ours)]
        listed[0]["RepoTags"] = ["hello:arm"]
        both = {**theirs, **ours, "manifest.json": json.dumps(listed).encode()}
        assert [found.names for found in await load(store, archive_of(both))] == [("hello:v1",)]

    async def test_a_layer_that_is_no_tar_is_refused_before_the_image_counts_as_loaded(self, store: BlobStore) -> None:
        with pytest.raises(ImageError) as caught:
            await load(store, docker_save([layer(entry("a", bytes(1000)))[:700]], names=["shop:v1"]))
        assert caught.value.code == "image-tar"
        assert "shop:v1" in caught.value.brief, "not the archive itself, which is also a tar"

    async def test_an_image_without_a_name_has_none(self, store: BlobStore) -> None:
        saved = files(docker_save([LAYER]))
        index = json.loads(saved["manifest.json"])
        index[0]["RepoTags"] = None
        [found] = await load(store, archive_of({**saved, "manifest.json": json.dumps(index).encode()}))
        assert found.names == ()

    async def test_a_corrupt_layer_is_refused(self, store: BlobStore) -> None:
        saved = files(docker_save([LAYER]))
        saved["0/layer.tar"] = layer(entry("a", b"y"))
        assert await refusal(store, archive_of(saved)) == "digest-mismatch"

    async def test_a_count_of_layers_unlike_the_configuration_is_refused(self, store: BlobStore) -> None:
        saved = files(docker_save([LAYER]))
        index = json.loads(saved["manifest.json"])
        index[0]["Layers"] *= 2
        assert (
            await refusal(store, archive_of({**saved, "manifest.json": json.dumps(index).encode()})) == "image-document"
        )

    @pytest.mark.parametrize("missing", ["0/layer.tar", "config"])
    async def test_missing_parts_are_told(self, store: BlobStore, missing: str) -> None:
        saved = files(docker_save([LAYER]))
        name = next(name for name in saved if name == missing or (missing == "config" and len(name) == 69))
        del saved[name]
        assert await refusal(store, archive_of(saved)) == "image-archive"

    @pytest.mark.parametrize("name", ["Hello:v1", "a b", "x:y:z", "-", "h;rm -rf", "a" * 600])
    async def test_a_name_that_is_none_is_refused(self, store: BlobStore, name: str) -> None:
        assert await refusal(store, docker_save([LAYER], names=[name])) == "image-reference"


class TestOciLayout:
    async def test_it_keeps_its_digest(self, store: BlobStore) -> None:
        sample = hello()
        [found] = await load(store, oci_layout(sample))
        assert (found.manifest.digest, found.names) == (sample.digest, ("hello:v1",))
        assert found.config.exposed_ports == (8080,)
        assert store.has_image(sample.digest)

    async def test_docker_writes_both_forms_and_its_names_win(self, store: BlobStore) -> None:
        sample = image(LAYER, compress="none")
        config = digest_of(sample.config).removeprefix("sha256:")
        saved = [{"Config": f"blobs/sha256/{config}", "RepoTags": ["shop:v7"], "Layers": ["whatever"]}]
        contents = files(oci_layout(sample, name="v7"))
        [found] = await load(store, archive_of({**contents, "manifest.json": json.dumps(saved).encode()}))
        assert (found.manifest.digest, found.names) == (sample.digest, ("shop:v7",))

    async def test_of_an_index_within_the_index_our_platform_is_taken(self, store: BlobStore) -> None:
        ours, theirs = hello(), image(LAYER, architecture="arm64")
        inner = {
            "schemaVersion": 2,
            "manifests": [
                descriptor(b"attestation", MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
                descriptor(theirs.manifest, MANIFEST, platform={"os": "linux", "architecture": "arm64"}),
                descriptor(ours.manifest, MANIFEST, platform={"os": "linux", "architecture": "amd64"}),
            ],
        }
        raw = json.dumps(inner).encode()
        outer = {"schemaVersion": 2, "manifests": [descriptor(raw, INDEX)]}
        sample = Sample(ours.layers, ours.config, ours.manifest, {**ours.blobs, digest_of(raw): raw})
        [found] = await load(store, layout_with(sample, outer))
        assert found.manifest.digest == ours.digest

    async def test_an_image_for_another_machine_is_refused(self, store: BlobStore) -> None:
        assert await refusal(store, oci_layout(image(LAYER, architecture="arm64"))) == "image-platform"

    async def test_of_several_images_those_for_our_machine_are_taken(self, store: BlobStore) -> None:
        ours, theirs = hello(), image(LAYER, architecture="arm64")
        names = [{"org.opencontainers.image.ref.name": f"hello:{tag}"} for tag in ("arm", "v1", "latest")]
        index = {
            "schemaVersion": 2,
            "manifests": [
                descriptor(sample.manifest, MANIFEST, annotations=name)
                for sample, name in zip((theirs, ours, ours), names, strict=True)
            ],
        }
        both = Sample(ours.layers, ours.config, ours.manifest, {**theirs.blobs, **ours.blobs})
        [found] = await load(store, layout_with(both, index))
        assert (found.manifest.digest, found.names) == (ours.digest, ("hello:v1", "hello:latest"))

    async def test_endless_nesting_is_refused(self, store: BlobStore) -> None:
        blobs, raw = {}, hello().manifest
        for _ in range(6):
            blobs[digest_of(raw)] = raw
            raw = json.dumps({"schemaVersion": 2, "manifests": [descriptor(raw, INDEX)]}).encode()
        sample = Sample((), b"", b"", {**hello().blobs, **blobs})
        assert await refusal(store, layout_with(sample, json.loads(raw))) == "image-archive"

    async def test_a_corrupt_blob_is_refused(self, store: BlobStore) -> None:
        sample = hello()
        for digest in sample.blobs:
            contents = files(oci_layout(sample))
            contents[f"blobs/{digest.replace(':', '/')}"] += b" "
            assert await refusal(store, archive_of(contents)) in ("digest-mismatch", "image-document")
        assert not store.has_image(sample.digest)

    async def test_an_index_without_images_is_refused(self, store: BlobStore) -> None:
        assert await refusal(store, layout_with(hello(), {"schemaVersion": 2, "manifests": []})) == "image-archive"


@pytest.mark.parametrize("archive", [docker_save([LAYER]), oci_layout(image(LAYER))], ids=["saved", "layout"])
async def test_an_image_loaded_again_mends_a_layer_that_the_disk_damaged(store: BlobStore, archive: bytes) -> None:
    [found] = await load(store, archive)
    blob = store.path(found.manifest.layers[0].digest)
    whole = blob.read_bytes()
    blob.write_bytes(bytes(len(whole)))
    await load(store, archive)
    assert blob.read_bytes() == whole


class TestHostileArchives:
    @pytest.mark.parametrize("data", [b"", b"hello", bytes(10_000), layer(entry("readme", b"x"))])
    async def test_what_is_no_image_is_refused(self, store: BlobStore, data: bytes) -> None:
        assert await refusal(store, data) in ("image-archive", "image-tar")

    async def test_names_that_lead_upwards_are_refused(self, store: BlobStore) -> None:
        assert await refusal(store, layer(entry("../../etc/cron.d/x", b"x"))) == "image-path"

    async def test_links_never_leave_the_archive(self, store: BlobStore) -> None:
        saved = [{"Config": "c", "RepoTags": ["x:1"], "Layers": []}]
        data = layer(entry("manifest.json", json.dumps(saved).encode()), symlink("c", "/etc/hostname"))
        assert await refusal(store, data) == "image-archive"
        loop = layer(entry("manifest.json", json.dumps(saved).encode()), symlink("c", "d"), symlink("d", "c"))
        assert await refusal(store, loop) == "image-archive"

    async def test_an_archive_beyond_the_limit_is_refused_as_it_comes(self, store: BlobStore) -> None:
        data = docker_save([layer(entry("a", bytes(1 << 20)))])
        assert await refusal(store, data, ImageLimits(packed_bytes=1 << 19)) == "image-too-large"

    async def test_a_compressed_bomb_is_stopped(self, store: BlobStore) -> None:
        data = pack(layer(entry("zeros", bytes(8 << 20))), "gzip")
        assert await refusal(store, data, ImageLimits(unpacked_bytes=1 << 20)) == "image-too-large"

    @pytest.mark.parametrize(
        "index",
        [
            b"[",
            b"{}",
            b"null",
            b"[]",
            b'"x"',
            b"[1]",
            b'[{"Config":1}]',
            b"[" * 99_999,
            b'[{"Layers":"x"}]',
            b'{"a":' * 5000,
        ],
    )
    async def test_a_malformed_index_is_refused(self, store: BlobStore, index: bytes) -> None:
        for name in ("manifest.json", "index.json"):
            assert (await refusal(store, layer(entry(name, index)))).startswith("image-")


class Watched(BlobStore):
    """Writes down what it takes in from files."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, grace_s=0)
        self.adopted: list[str] = []

    async def adopt(self, file: Path, digest: str) -> None:
        self.adopted.append(digest)
        await super().adopt(file, digest)


class TestBlobsThatAreNamedAgainAndAgain:
    LARGE = layer(entry("a", bytes(100_000)))

    @pytest.mark.parametrize("form", ["saved", "layout"])
    async def test_each_is_taken_once(self, tmp_path: Path, form: str) -> None:
        store = Watched(tmp_path)
        many = [self.LARGE] * 20
        if form == "saved":
            saved = files(docker_save(many))
            [index] = json.loads(saved["manifest.json"])
            index["Layers"] = ["0/layer.tar", "./0/./layer.tar"] * 10
            data = archive_of({**saved, "manifest.json": json.dumps([index, {**index, "RepoTags": ["b:1"]}]).encode()})
        else:
            data = oci_layout(image(*many, compress="none"))
        [found, *_] = await load(store, data)
        assert [ref.digest for ref in found.manifest.layers] == [digest_of(self.LARGE)] * 20
        assert store.adopted.count(digest_of(self.LARGE)) == 1

    @pytest.mark.parametrize("form", ["saved", "layout"])
    async def test_what_an_image_names_altogether_is_bounded_before_anything_is_taken(
        self, tmp_path: Path, form: str
    ) -> None:
        store = Watched(tmp_path)
        saved = files(docker_save([self.LARGE] * 20))
        [index] = json.loads(saved["manifest.json"])
        index["Layers"] = ["0/layer.tar"] * 20
        one = {name: data for name, data in saved.items() if name[0] not in "123456789" or name.endswith(".json")}
        data = archive_of({**one, "manifest.json": json.dumps([index]).encode()})
        if form == "layout":
            data = oci_layout(image(*[self.LARGE] * 20, compress="none"))
        assert len(data) < 300_000
        assert await refusal(store, data, ImageLimits(packed_bytes=1_000_000)) == "image-too-large"
        assert store.adopted == []

    async def test_a_size_that_is_not_the_blobs_own_is_refused_before_anything_is_taken(self, tmp_path: Path) -> None:
        store = Watched(tmp_path)
        sample = image(self.LARGE, compress="none")
        document = json.loads(sample.manifest)
        document["layers"][0]["size"] += 1
        raw = json.dumps(document).encode()
        lying = Sample(sample.layers, sample.config, raw, {**sample.blobs, digest_of(raw): raw})
        assert await refusal(store, oci_layout(lying)) == "digest-mismatch"
        assert store.adopted == []


def in_index(*entries: tuple[tarfile.TarInfo, bytes]) -> TarIndex:
    index = TarIndex(io.BytesIO(layer(*entries)))
    list(index.scan())
    return index


class TestArchiveIndex:
    def test_names_that_need_too_much_memory_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tarindex, "_INDEX_BYTES", 100_000)
        in_index(*(entry(f"{number}") for number in range(100)))
        names = (entry(f"{number:03}" + "/nnn" * 1000) for number in range(50))
        links = (symlink(f"{number}", "l" * 4000) for number in range(50))
        for many in (names, links, (entry(f"{number}") for number in range(1000))):
            with pytest.raises(ImageError) as caught:
                in_index(*many)
            assert caught.value.code == "image-too-large"

    def test_what_is_not_asked_for_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tarindex, "_INDEX_BYTES", 100_000)
        attributes = {f"SCHILY.xattr.user.{number}": "v" * 50_000 for number in range(5)}
        target = {"linkpath": "l" * 500_000}
        members = (entry(f"{number}", pax_headers={**attributes, **target}) for number in range(10))
        assert "5" in in_index(*members)

    def test_many_small_members_are_found_in_steps(self) -> None:
        steps = list(TarIndex(io.BytesIO(layer(*(entry(f"{number}") for number in range(5000))))).scan())
        assert len(steps) >= 5
