"""Taking images from a file: a bare WebAssembly module, or a tar. Of tars: what `docker save` writes, an OCI image layout,
or both in one (Docker 25 and later).

The stream is spooled first (its index may come last), then read in place. An OCI index brings its own manifests. For the
older form a manifest is built from configuration and layers, always the same for the same content, so that loading a tar
twice gives one digest.

A tar of either form may itself be compressed. Layers may be named through links within the tar (older Docker and skopeo
write such); they are followed by name only. Blobs are checked by their digests, and the layers of each image are read once,
for what is malformed or hostile must not count as loaded, to be told at a deploy only.

A manifest may name a blob again and again, by other names too. It is taken once per archive, and what an image names
altogether is bounded before anything of it is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from io import FileIO, RawIOBase
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import BinaryIO, TypeVar, cast

from plasmavmc.errors import ImageError
from plasmavmc.host.threads import in_thread
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.config import check_platform, parse_config, parse_diff_ids
from plasmavmc.images.digests import check_digest, mismatch
from plasmavmc.images.documents import as_list, as_object, as_text, as_texts, parse_list
from plasmavmc.images.files import check_room, disk_errors, write_all
from plasmavmc.images.layers import Budget, Layer, LayerStream, media_suffix, too_large
from plasmavmc.images.limits import CONFIG_BYTES, LAYERS, MANIFEST_BYTES, ImageLimits
from plasmavmc.images.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Platform,
    build_manifest,
    choose,
    is_index,
    parse_document,
    parse_index,
    parse_manifest,
)
from plasmavmc.images.merge import check
from plasmavmc.images.pull import check_packed_size
from plasmavmc.images.reference import parse_loaded_name
from plasmavmc.images.source import BlobRef, ImageConfig, Manifest
from plasmavmc.images.stepping import stepwise
from plasmavmc.images.tarindex import Extent, TarIndex
from plasmavmc.images.wasm import (
    MAGIC,
    MODULE_BYTES,
    WASM_LAYER,
    check_module,
    is_wasm,
    module_of,
    wrapping_config,
)
from plasmavmc.types import MIB

T = TypeVar("T")

_IMAGES = 64
_NAMES = 256
_CHUNKS = 16
"""Decompressed between two chances to stop; one may be a few bytes, or a quarter of a mebibyte."""
_NESTING = 3
"""Indexes within indexes."""
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One image of an archive, now in the blob store."""

    manifest: Manifest
    config: ImageConfig
    names: tuple[str, ...]
    """As the archive names it, each with a tag."""


async def load_archive(
    chunks: AsyncIterator[bytes], store: BlobStore, platform: Platform, limits: ImageLimits
) -> tuple[ArchivedImage, ...]:
    """Store every image of a tar stream that runs on `platform`; others are passed over.

    Raises:
        ImageError: `image-archive` (neither form, or parts are missing), `image-tar`, `image-document`,
            `image-platform` (none runs on it), `image-too-large`, `digest-mismatch`, or as `merge` for what is in a
            layer. Blobs that came in before stay until collected.
        CapacityError: `disk-full`.
    """
    with ExitStack() as files:
        spool = files.enter_context(_open_spool(store.spool))
        size = await _spool(chunks, spool, store.spool, limits)
        if _is_module(spool):
            return (await _load_module(spool, size, store),)
        if _is_compressed(spool):
            plain = files.enter_context(_open_spool(store.spool))
            layer = Layer(cast(BinaryIO, spool), size, diff_id="")
            await _run(_inflate(layer, plain, store.spool, limits))
            spool = plain
        index = TarIndex(cast(BinaryIO, spool))
        await _run(index.scan())
        return await _Loader(index, store, platform, limits).load()


def _open_spool(directory: Path) -> FileIO:
    """An unbuffered file without a name; gone when it is closed, or with the process."""
    with disk_errors(directory):
        return TemporaryFile(dir=directory, buffering=0)


async def _run(work: Generator[T, None, None]) -> None:
    """Do work in steps, for its effects."""
    async with aclosing(stepwise(work)) as steps:
        async for _ in steps:
            pass


async def _spool(chunks: AsyncIterator[bytes], spool: RawIOBase, directory: Path, limits: ImageLimits) -> int:
    """Write the stream to the spool; returns its size."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limits.packed_bytes:
            raise too_large(f"the archive has more than {limits.packed_bytes >> 20} MiB")
        check_room(directory, len(chunk))
        with disk_errors(directory):
            await in_thread(write_all, spool, chunk)
    return size


def _is_module(spool: FileIO) -> bool:
    spool.seek(0)
    return spool.read(len(MAGIC)) == MAGIC


async def _load_module(spool: FileIO, size: int, store: BlobStore) -> ArchivedImage:
    """Wrap a bare WebAssembly module into an image."""
    check_module(cast(BinaryIO, spool))
    if size > MODULE_BYTES:
        raise too_large(f"the module has more than {MODULE_BYTES >> 20} MiB")
    module = await in_thread(spool.readall)
    layer = BlobRef(await store.put(module), size, WASM_LAYER)
    raw = wrapping_config(layer.digest)
    manifest = build_manifest(BlobRef(await store.put(raw), len(raw), OCI_CONFIG), (layer,))
    await store.put(manifest)
    return ArchivedImage(parse_manifest(manifest), parse_config(raw), ())


def _is_compressed(spool: FileIO) -> bool:
    spool.seek(0)
    return bool(media_suffix(spool.read(8)))


def _inflate(packed: Layer, plain: FileIO, directory: Path, limits: ImageLimits) -> Generator[None, None, None]:
    """Decompress an archive into another spool, within the bounds of a layer."""
    stream, count = LayerStream(packed, Budget(limits), verify=False), 0
    while chunk := stream.read(MIB):
        check_room(directory, len(chunk))
        with disk_errors(directory):
            write_all(plain, chunk)
        count += 1
        if count % _CHUNKS == 0:
            yield


class _Loader:
    """Carries the images of one archive into the store."""

    def __init__(self, index: TarIndex, store: BlobStore, platform: Platform, limits: ImageLimits) -> None:
        self._index = index
        self._store = store
        self._platform = platform
        self._limits = limits
        self._loaded: list[ArchivedImage] = []
        self._passed_over: list[ImageError] = []
        self._taken: dict[Extent, BlobRef] = {}

    async def load(self) -> tuple[ArchivedImage, ...]:
        if "index.json" in self._index:
            await self._load_layout()
        elif "manifest.json" in self._index:
            await self._load_all_saved()
        else:
            raise _neither_form()
        if not self._loaded:
            raise self._passed_over[0]
        return tuple(self._loaded)

    @contextmanager
    def _only_ours(self) -> Iterator[None]:
        """Within it, an image for another machine is passed over."""
        try:
            yield
        except ImageError as error:
            if error.code != "image-platform":
                raise
            self._passed_over.append(error)

    # OCI layout

    async def _load_layout(self) -> None:
        tags = self._tags_by_config()
        names: dict[str, list[str]] = {}
        for entry in _bounded(parse_index(self._read("index.json", MANIFEST_BYTES))):
            with self._only_ours():
                names.setdefault(self._descend(entry, _NESTING), []).extend(_names_of(entry))
        for digest, found in names.items():
            with self._only_ours():
                self._loaded.append(await self._load_manifest(digest, found, tags))

    def _descend(self, entry: Descriptor, nesting: int) -> str:
        """The manifest for our platform below an entry of an index."""
        raw = self._read_blob(entry.digest, MANIFEST_BYTES)
        if not is_index(parse_document(raw)):
            return entry.digest
        if not nesting:
            raise ImageError("image-archive", "the indexes of the archive are nested too deeply")
        return self._descend(choose(parse_index(raw), self._platform), nesting - 1)

    async def _load_manifest(self, digest: str, names: list[str], tags: Mapping[str, list[str]]) -> ArchivedImage:
        manifest = parse_manifest(self._read_blob(digest, MANIFEST_BYTES))
        check_packed_size(manifest.layers, self._limits)
        raw = self._read_blob(manifest.config.digest, CONFIG_BYTES)
        if is_wasm(manifest):
            return await self._load_artifact(manifest, raw, names)
        config = self._check_config(raw, len(manifest.layers))
        await self._take_all((manifest.config, *manifest.layers))
        clean = _clean(tags.get(manifest.config.digest) or names)
        await self._check_layers(manifest.layers, parse_diff_ids(raw), clean)
        await self._store.put(manifest.raw)
        return ArchivedImage(manifest, config, clean)

    async def _load_artifact(self, manifest: Manifest, config: bytes, names: list[str]) -> ArchivedImage:
        module = module_of(manifest, config)
        await self._take_all((manifest.config, module))
        with self._store.path(module.digest).open("rb") as file:
            check_module(file)
        await self._store.put(manifest.raw)
        return ArchivedImage(manifest, parse_config(config), _clean(names))

    def _tags_by_config(self) -> Mapping[str, list[str]]:
        """Names from the manifest.json that Docker writes beside an index: they are what people typed."""
        if "manifest.json" not in self._index:
            return {}
        tags: dict[str, list[str]] = {}
        for entry in self._saved_entries():
            digest = "sha256:" + as_text(entry.get("Config"), "Config").rpartition("/")[2].removesuffix(".json")
            tags.setdefault(digest, []).extend(as_texts(entry.get("RepoTags"), "RepoTags"))
        return tags

    # docker save

    def _saved_entries(self) -> tuple[Mapping[str, object], ...]:
        entries = parse_list(self._read("manifest.json", MANIFEST_BYTES), "manifest.json", MANIFEST_BYTES)
        return _bounded(tuple(as_object(entry, "an entry of manifest.json") for entry in entries))

    async def _load_all_saved(self) -> None:
        for entry in self._saved_entries():
            with self._only_ours():
                self._loaded.append(await self._load_saved(entry))

    async def _load_saved(self, entry: Mapping[str, object]) -> ArchivedImage:
        names = _clean(as_texts(entry.get("RepoTags"), "RepoTags"))
        paths = as_texts(as_list(entry.get("Layers"), "Layers"), "Layers")
        raw = self._read(as_text(entry.get("Config"), "Config"), CONFIG_BYTES)
        if len(paths) > LAYERS:
            raise too_large(f"it has more than {LAYERS} layers")
        config = self._check_config(raw, len(paths))
        extents = [self._index.find(path) for path in paths]
        check_packed_size(extents, self._limits)
        layers = tuple([await self._take(extent) for extent in extents])
        await self._check_layers(layers, parse_diff_ids(raw), names)
        manifest = build_manifest(BlobRef(await self._store.put(raw), len(raw), OCI_CONFIG), layers)
        await self._store.put(manifest)
        return ArchivedImage(parse_manifest(manifest), config, names)

    # Parts

    def _check_config(self, raw: bytes, layers: int) -> ImageConfig:
        config = parse_config(raw)
        check_platform(config, self._platform)
        if len(parse_diff_ids(raw)) != layers:
            raise ImageError("image-document", "the image configuration and the manifest name different layers")
        return config

    async def _check_layers(self, refs: tuple[BlobRef, ...], diff_ids: tuple[str, ...], names: tuple[str, ...]) -> None:
        with ExitStack() as files:
            layers = [
                Layer(files.enter_context(self._store.path(ref.digest).open("rb")), ref.size, diff_id)
                for ref, diff_id in zip(refs, diff_ids, strict=True)
            ]
            try:
                await _run(check(layers, self._limits))
            except ImageError as error:
                told = f"the image {names[0] if names else 'of the archive'} is refused: {error.brief}"
                raise ImageError(error.code, told, details=error.details, resolution=error.resolution) from error

    def _read(self, name: str, limit: int) -> bytes:
        return self._index.read(name, limit)

    def _read_blob(self, digest: str, limit: int) -> bytes:
        return check_digest(self._read(_blob_path(digest), limit), digest, f"blob {digest} of the archive")

    async def _take_all(self, refs: Sequence[BlobRef]) -> None:
        """Move blobs of a layout into the store; none of them where one has another size than its manifest says."""
        extents = [self._index.find(_blob_path(ref.digest)) for ref in refs]
        for ref, extent in zip(refs, extents, strict=True):
            if ref.size != extent.size:
                raise mismatch(f"blob {ref.digest} of the archive", f"{ref.size} bytes")
        for ref, extent in zip(refs, extents, strict=True):
            await self._take(extent, ref.digest)

    async def _take(self, extent: Extent, expected: str = "") -> BlobRef:
        """Move a member into the store, once; returns what it is."""
        found = self._taken.get(extent)
        if found is None:
            with _scratch(self._store.spool) as scratch, disk_errors(self._store.spool):
                found = await self._copy(extent, scratch)
                if expected in ("", found.digest):
                    await self._store.adopt(scratch, found.digest)
                    self._taken[extent] = found
        if expected not in ("", found.digest):
            raise mismatch(f"blob {expected} of the archive", expected)
        return found

    async def _copy(self, extent: Extent, target: Path) -> BlobRef:
        hasher, size, magic = hashlib.sha256(), 0, b""

        def write(file: FileIO) -> Generator[None, None, None]:
            nonlocal size, magic
            for chunk in self._index.content(extent):
                check_room(target.parent, len(chunk))
                hasher.update(chunk)
                write_all(file, chunk)
                size, magic = size + len(chunk), magic or chunk[:8]
                yield

        with target.open("wb", buffering=0) as file:
            await _run(write(file))
        return BlobRef(f"sha256:{hasher.hexdigest()}", size, OCI_LAYER + media_suffix(magic))


def _neither_form() -> ImageError:
    return ImageError(
        "image-archive",
        "the tar has neither an index.json (OCI layout) nor a manifest.json (docker save)",
        resolution="write the archive with `docker save` or `skopeo copy … oci-archive:FILE`",
    )


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A file name of our own, gone afterwards."""
    with NamedTemporaryFile(dir=directory, delete=False) as file:
        path = Path(file.name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _names_of(entry: Descriptor) -> list[str]:
    name = entry.annotations.get(_IMAGE_NAME) or entry.annotations.get(_REF_NAME)
    return [name] if name else []


def _clean(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > _NAMES:
        raise too_large(f"it has more than {_NAMES} names")
    return tuple(dict.fromkeys(parse_loaded_name(name) for name in names))


def _bounded(entries: tuple[T, ...]) -> tuple[T, ...]:
    if not entries:
        raise ImageError("image-archive", "the index of the archive names no image")
    if len(entries) > _IMAGES:
        raise too_large(f"the archive has more than {_IMAGES} images")
    return entries
