"""Built root file systems of a node, by manifest digest.

    images/<digest>-<builder>/{rootfs.squashfs, config.json, built.json}     whole images, by one rename; the file
                                                                             module.wasm where the image is a module
    building/                                                                work under way; emptied at start
    blobs/                                                                   layers on their way (`blobs.py`)

Layers are needed only until the image is built, and where the source has them on this host they are read in place.
What was fetched is kept after a failed build, so that the next try does not fetch it again.

An image in use is *held* by the key of its VM. Holders live in memory: after a restart the engine holds again for each
VM that it adopts. `collect` never removes a held image, nor one given out in the last minute, which its caller may be
about to hold. The builder's version is part of the name: images of an older builder are built anew, and collected.

A root file system is hashed when it is built and once more when a process first gives it out, so that a disk that
lost bytes is told, not booted.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import msgspec

from plasmavmc.backends import GuestKind
from plasmavmc.errors import ConflictError, ImageError
from plasmavmc.host.threads import in_thread
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.config import check_platform, parse_config, parse_diff_ids
from plasmavmc.images.digests import check_digest, hex_of
from plasmavmc.images.fanout import fan_out
from plasmavmc.images.files import disk_errors, empty_directory, make_private, publish, sync_file
from plasmavmc.images.layers import Layer
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.locks import KeyedLocks
from plasmavmc.images.manifest import Platform, host_platform, parse_manifest
from plasmavmc.images.merge import merge
from plasmavmc.images.pull import check_packed_size
from plasmavmc.images.source import BlobRef, BlobSource, ImageConfig, Manifest
from plasmavmc.images.squashfs import pack
from plasmavmc.images.stepping import reading, stepwise
from plasmavmc.images.wasm import MODULE_NAME, check_module, is_wasm, module_config, module_of

BUILDER = 1
"""Rises when the same layers would give another root file system."""
_FETCHES = 3
_BUILDS = 2
"""Builds at once; each holds an index of its image in memory and keeps a core busy."""
_FRESH_S = 60.0
_READABLE = 0o444
"""Of what is given out. The directories above are ours alone, whatever our umask; but a jail takes a file that all may read
as it is, and copies any other (`host.helper.jails`)."""
_ROOTFS = "rootfs.squashfs"
_MODULE = MODULE_NAME
_CONFIG = "config.json"
_BUILT = "built.json"


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A root file system ready to boot, or a module ready to run."""

    digest: str
    """Of the OCI manifest."""
    rootfs: Path
    """The squashfs; of an image of kind `wasm` the module."""
    config: ImageConfig
    size_bytes: int
    kind: GuestKind = GuestKind.LINUX


@runtime_checkable
class LocalBlobs(Protocol):
    """Optional ability of a `BlobSource`: its blobs lie on this host."""

    def local_path(self, ref: BlobRef) -> Path | None:
        """The file of a whole, checked blob; None where it is not here."""


class _Record(msgspec.Struct, frozen=True):
    """`built.json`."""

    rootfs_sha256: str
    config_sha256: str


class ImageStore:
    """All images of one node. One process owns a directory."""

    def __init__(
        self,
        root: Path,
        *,
        limits: ImageLimits = ImageLimits(),  # noqa: B008 - a frozen value
        platform: Platform | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._images = make_private(root / "images")
        self._building = make_private(root / "building")
        self._blobs = BlobStore(root / "blobs")
        self._limits = limits
        self._platform = platform or host_platform()
        self._clock = clock
        self._locks = KeyedLocks()
        self._builds = asyncio.Semaphore(_BUILDS)
        self._holders: dict[str, set[str]] = {}
        self._given: dict[str, float] = {}
        self._verified: set[str] = set()
        self._removals = 0
        self._by_use: tuple[str, ...] | None = None
        """Digests of all images, those that were given out last first; None: not known."""
        empty_directory(self._building)
        self._blobs.sweep()

    async def ensure(
        self, digest: str, source: BlobSource, *, progress: Callable[[str], None] | None = None
    ) -> BuiltImage:
        """The image with this manifest digest: as it is here, or fetched and built. Concurrent calls share one build.

        Raises:
            ImageError: the image is unknown, corrupt, hostile or for another machine.
            UnavailableError: the source does not answer; what arrived is kept for the next try.
            CapacityError: `disk-full`; nothing of the build is left.
            HostError: `squashfs-failed`, `missing-program`, `disk-error`.
        """
        async with self._locks.hold(digest):
            image = await self._present(digest)
            if image is None:
                image = await self._build(digest, source, progress or _quiet)
                self._verified.add(digest)
            self._given[digest] = self._clock()
            image.rootfs.chmod(_READABLE)
            os.utime(image.rootfs, (self._clock(), self._clock()))
            self._by_use = None
            return image

    def hold(self, digest: str, holder: str) -> None:
        """Keep an image while `holder` lives."""
        self._holders.setdefault(holder, set()).add(digest)

    def release(self, holder: str) -> None:
        """Give up all that `holder` held. Unknown holders are fine."""
        self._holders.pop(holder, None)

    def kind_of(self, digest: str) -> GuestKind | None:
        """What an image holds; None where it is not here yet."""
        directory = self._directory(digest)
        return _kind_in(directory) if directory.exists() else None

    def config_of(self, digest: str) -> ImageConfig | None:
        """What an image says of its workload; None where it is not here. Nothing of it is verified, so it is cheap to ask;
        one that an older builder made counts too, for a VM may still run from it."""
        for directory in self._images.glob(f"{hex_of(digest)}-*"):
            image = self._read(directory)
            if image is not None:
                return image.config
        return None

    def content_digest(self, digest: str) -> str:
        """sha256 of what was built of an image, as `ensure` gave it out. One manifest may have been built differently on
        hosts whose programs differ.

        Raises:
            ImageError: `image-not-built`.
        """
        try:
            return msgspec.json.decode((self._directory(digest) / _BUILT).read_bytes(), type=_Record).rootfs_sha256
        except (OSError, ValueError):
            raise ImageError("image-not-built", f"the image {digest} is not here any more") from None

    def used_at(self, digest: str) -> float:
        """When an image was last given out, in seconds since the epoch; 0 where it is not here."""
        try:
            return _content_of(self._directory(digest)).stat().st_mtime
        except OSError:
            return 0.0

    def list(self) -> tuple[BuiltImage, ...]:
        """All whole images, longest unused first."""
        found = [image for entry in self._entries() if (image := self._read(entry)) is not None]
        return tuple(sorted(found, key=lambda image: image.rootfs.stat().st_mtime))

    def recent(self, most: int) -> tuple[str, ...]:
        """Digests of so many whole images, those given out last, in the order of their text. Cheap to ask often."""
        if self._by_use is None:
            used = [(-self.used_at(digest), digest) for digest in map(_digest_in, self._entries())]
            self._by_use = tuple(digest for _, digest in sorted(used))
        return tuple(sorted(self._by_use[:most]))

    async def collect(self, budget_bytes: int) -> int:
        """Remove unused images, longest unused first, until the rest takes at most the budget; returns bytes won.

        Images of older builders and layers left by failed builds an hour ago go in any case.
        """
        won = await self._blobs.collect(frozenset())
        for directory in self._outdated():
            won += await self._remove(directory)
        images = self.list()
        total = sum(image.size_bytes for image in images)
        for image in images:
            if total <= budget_bytes:
                break
            if self._is_free(image.digest):
                total -= image.size_bytes
                won += await self._remove(self._directory(image.digest))
        return won

    async def remove(self, digest: str) -> None:
        """Remove an image now. One that is not here is fine.

        Raises:
            ConflictError: `image-in-use`, a VM holds it.
        """
        async with self._locks.hold(digest):
            if any(digest in digests for digests in self._holders.values()):
                raise ConflictError("image-in-use", f"a VM runs from image {digest}")
            if self._directory(digest).exists():
                await self._remove(self._directory(digest))

    # What is here

    def _directory(self, digest: str) -> Path:
        return self._images / f"{hex_of(digest)}-{BUILDER}"

    def _entries(self) -> Iterator[Path]:
        return (entry for entry in self._images.iterdir() if entry.name.endswith(f"-{BUILDER}"))

    def _outdated(self) -> tuple[Path, ...]:
        return tuple(entry for entry in self._images.iterdir() if not entry.name.endswith(f"-{BUILDER}"))

    def _read(self, directory: Path) -> BuiltImage | None:
        """The image in a directory; None where it is not whole, which only a failing disk or a stranger's hand does."""
        content = _content_of(directory)
        try:
            size = content.stat().st_size
            config = parse_config((directory / _CONFIG).read_bytes())
        except (OSError, ImageError):
            return None
        return _built(_digest_in(directory), content, config, size)

    async def _present(self, digest: str) -> BuiltImage | None:
        """The image as it is here; one that lost bytes on the disk is removed, and counts as absent."""
        directory = self._directory(digest)
        if not directory.exists():
            return None
        image = self._read(directory)
        if image is not None and (digest in self._verified or await in_thread(_is_intact, directory)):
            self._verified.add(digest)
            return image
        await self._remove(directory)
        return None

    def _is_free(self, digest: str) -> bool:
        held = any(digest in digests for digests in self._holders.values())
        fresh = self._clock() - self._given.get(digest, 0.0) < _FRESH_S
        return not (held or fresh or self._locks.is_held(digest))

    async def _remove(self, directory: Path) -> int:
        """Remove an image; returns its bytes. Gone by one rename for all who look, then its files."""
        try:
            aside = self._set_aside(directory)
        except FileNotFoundError:
            return 0  # another was faster
        return await in_thread(_remove_tree, aside)

    def _set_aside(self, directory: Path) -> Path:
        self._verified.discard(_digest_in(directory))
        self._given.pop(_digest_in(directory), None)
        self._by_use = None
        self._removals += 1
        return directory.rename(self._building / f"{directory.name}.{self._removals}.trash")

    # Building

    async def _build(self, digest: str, source: BlobSource, progress: Callable[[str], None]) -> BuiltImage:
        progress("fetching the manifest")
        manifest = parse_manifest(check_digest(await source.manifest(digest), digest, "the manifest"))
        check_packed_size(manifest.layers, self._limits)
        raw = await self._fetch_config(manifest.config, source)
        if is_wasm(manifest):
            return await self._build_module(manifest, raw, source, progress)
        config, diff_ids = parse_config(raw), parse_diff_ids(raw)
        check_platform(config, self._platform)
        if len(diff_ids) != len(manifest.layers):
            raise ImageError("image-document", "the image configuration and the manifest name different layers")
        with ExitStack() as files:
            layers = await self._open_layers(manifest, diff_ids, source, files, progress)
            async with self._builds:
                progress("building the root file system")
                size = await self._pack(digest, raw, layers)
        await self._blobs.remove(layer.digest for layer in manifest.layers)
        return _built(digest, self._directory(digest) / _ROOTFS, config, size)

    async def _build_module(
        self, manifest: Manifest, config: bytes, source: BlobSource, progress: Callable[[str], None]
    ) -> BuiltImage:
        ref = module_of(manifest, config)
        progress("fetching the module")
        directory = make_private(self._building / hex_of(manifest.digest))
        try:
            with await self._open_layer(ref, source) as file:
                check_module(file)
                await in_thread(_copy, file, directory / _MODULE)
            if f"sha256:{await in_thread(_hash_file, directory / _MODULE)}" != ref.digest:
                raise ImageError("digest-mismatch", "the module is not what its manifest names")
            size = await in_thread(_finish, directory, config, self._directory(manifest.digest))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        await self._blobs.remove([ref.digest])
        return _built(manifest.digest, self._directory(manifest.digest) / _MODULE, parse_config(config), size)

    async def _fetch_config(self, ref: BlobRef, source: BlobSource) -> bytes:
        data = bytearray()
        async with reading(source.blob(ref)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > ref.size:
                    break
        return check_digest(bytes(data), ref.digest, "the image configuration")

    async def _open_layers(
        self,
        manifest: Manifest,
        diff_ids: tuple[str, ...],
        source: BlobSource,
        files: ExitStack,
        progress: Callable[[str], None],
    ) -> tuple[Layer, ...]:
        async def open_layer(numbered: tuple[int, BlobRef]) -> BinaryIO:
            number, ref = numbered
            progress(f"fetching layer {number} of {len(manifest.layers)}")
            return files.enter_context(await self._open_layer(ref, source))

        opened = await fan_out(open_layer, enumerate(manifest.layers, 1), at_once=_FETCHES)
        parts = zip(opened, manifest.layers, diff_ids, strict=True)
        return tuple(Layer(file, ref.size, diff_id) for file, ref, diff_id in parts)

    async def _open_layer(self, ref: BlobRef, source: BlobSource) -> BinaryIO:
        """Open a layer in place, or once it is fetched. Opened at once, for another build may remove what it fetched."""
        if isinstance(source, LocalBlobs) and (path := source.local_path(ref)) is not None:
            with suppress(FileNotFoundError):
                return path.open("rb")
        await self._blobs.fetch(ref, source)
        return self._blobs.path(ref.digest).open("rb")

    async def _pack(self, digest: str, config: bytes, layers: tuple[Layer, ...]) -> int:
        """Build and publish; returns the size of the root file system."""
        directory = make_private(self._building / hex_of(digest))
        try:
            async with aclosing(stepwise(merge(layers, self._limits))) as tar:
                await pack(tar, directory / _ROOTFS)
            return await in_thread(_finish, directory, config, self._directory(digest))
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _finish(directory: Path, config: bytes, target: Path) -> int:
    with disk_errors(directory):
        (directory / _CONFIG).write_bytes(config)
        (directory / _BUILT).write_bytes(msgspec.json.encode(_record(directory)))
        content = _content_of(directory)
        size = content.stat().st_size
        for path in (content, directory / _CONFIG, directory / _BUILT):
            sync_file(path)
        publish(directory, target)
    return size


def _record(directory: Path) -> _Record:
    return _Record(_hash_file(_content_of(directory)), _hash_file(directory / _CONFIG))


def _is_intact(directory: Path) -> bool:
    """True where root file system and configuration are what was built."""
    try:
        return msgspec.json.decode((directory / _BUILT).read_bytes(), type=_Record) == _record(directory)
    except (OSError, ValueError):  # msgspec tells bad UTF-8 by a plain ValueError
        return False


def _content_of(directory: Path) -> Path:
    """What an image is: its module where it has one, else its root file system."""
    module = directory / _MODULE
    return module if module.exists() else directory / _ROOTFS


def _kind_in(directory: Path) -> GuestKind:
    return GuestKind.WASM if _content_of(directory).name == _MODULE else GuestKind.LINUX


def _built(digest: str, content: Path, config: ImageConfig, size: int) -> BuiltImage:
    if content.name == _MODULE:
        return BuiltImage(digest, content, module_config(config), size, GuestKind.WASM)
    return BuiltImage(digest, content, config, size)


def _copy(file: BinaryIO, target: Path) -> None:
    with disk_errors(target.parent), target.open("wb") as copy:
        shutil.copyfileobj(file, copy)


def _digest_in(directory: Path) -> str:
    """The digest in the name of an image's directory."""
    return f"sha256:{directory.name.partition('-')[0]}"


def _remove_tree(directory: Path) -> int:
    size = sum(entry.stat().st_size for entry in directory.iterdir())
    shutil.rmtree(directory, ignore_errors=True)
    return size


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quiet(_message: str) -> None:
    """Progress that nobody asked for."""
