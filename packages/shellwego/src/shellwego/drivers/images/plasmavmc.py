"""Driver `plasmavmc`: the engine's registry client and archive reader over the server's blob store.

A loaded image has no registry: its names are the control plane's, and its blobs are here or nowhere. The caller keeps
intakes and collections apart (`control/imagework.py`), so the store needs no grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from plasmavmc.errors import ImageError, InvalidSpecError, PlasmaError
from plasmavmc.images import blobs
from plasmavmc.images.archive import ArchivedImage, load_archive
from plasmavmc.images.auth import Credentials
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.config import check_platform, parse_config
from plasmavmc.images.limits import CONFIG_BYTES, ImageLimits
from plasmavmc.images.manifest import host_platform, parse_manifest
from plasmavmc.images.policy import RegistryPolicy
from plasmavmc.images.pull import pull
from plasmavmc.images.reference import names_registry, parse_reference
from plasmavmc.images.registry import Repository
from plasmavmc.images.source import BlobRef, ImageConfig, Manifest
from plasmavmc.images.stepping import reading
from plasmavmc.images.wasm import is_wasm, module_of
from shellwego.core.errors import ForbiddenError, InvalidError, NotFoundError, ShellWeGoError, UnavailableError
from shellwego.core.images import ImageKind
from shellwego.drivers.images.pulled import PulledBlobs
from shellwego.ports.images import STRANGER, Asker, Download, LoadedImage, ResolvedImage

RESOLVE_TIMEOUT_S = 10.0
_RESOLVES, _FETCHES, _LOADS = 16, 32, 8
"""At once, of each kind: none keeps another waiting. Their callers share them out among tenants."""
_LOGIN = (
    "Check that the image exists. If it is private, the platform's operator gives a login for the registry, and names the"
    " organizations that it serves (registry_logins_for)."
)

__all__ = ["Credentials", "PlasmaImages"]


class PlasmaImages:
    """`Images` over a directory of blobs. `allow` and `credentials` are the operator's: see `RegistryPolicy`.

    Raises:
        InvalidError: a malformed pattern in `allow`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        allow: tuple[str, ...] = (),
        allow_setting: str = "allow",
        credentials: Mapping[str, Credentials] | None = None,
        limits: ImageLimits = ImageLimits(),  # noqa: B008 - a frozen value
        resolve_timeout_s: float = RESOLVE_TIMEOUT_S,
    ) -> None:
        with translated():
            self._policy = RegistryPolicy(allow, setting=allow_setting)
        self.blobs = BlobStore(directory, grace_s=0)
        self.blobs.sweep()
        self._credentials = credentials or {}
        self._limits = limits
        self._resolve_timeout_s = resolve_timeout_s
        self._platform = host_platform()
        self._resolving, self._fetching = asyncio.Semaphore(_RESOLVES), asyncio.Semaphore(_FETCHES)
        self._loading = asyncio.Semaphore(_LOADS)

    async def resolve(self, reference: str, *, login: bool = False) -> ResolvedImage:
        with translated():
            try:
                async with (
                    asyncio.timeout(self._resolve_timeout_s),
                    self._resolving,
                    self._repository(reference, login) as source,
                ):
                    manifest = await source.resolve(self._platform)
                    raw = await source.config(manifest)
            except TimeoutError:
                raise UnavailableError(
                    "registry-unreachable",
                    f"the registry of {reference} did not answer within {self._resolve_timeout_s:g} s",
                    resolution="Try again, or check the registry.",
                ) from None
            config = parse_config(raw)
            if is_wasm(manifest):
                module_of(manifest, raw)
            else:
                check_platform(config, self._platform)
        return _resolved(manifest, config)

    async def fetch(self, reference: str, digest: str, asker: Asker = STRANGER) -> ResolvedImage:
        with translated():
            if digest not in asker.images or not self.blobs.has_image(digest):
                async with self._fetching, self._repository(reference, asker.login) as source:
                    known = await self.blobs.parts(asker.images)
                    await pull(digest, source, self.blobs, self._limits, blobs.Asker(asker.project_id, known))
            return await self._stored(digest)

    async def copy(self, digest: str, download: Download) -> ResolvedImage:
        with translated():
            if not self.blobs.has_image(digest):
                async with self._fetching:
                    await pull(digest, PulledBlobs(download), self.blobs, self._limits)
            return await self._stored(digest)

    async def look(self, digest: str) -> ResolvedImage | None:
        if not self.blobs.has_image(digest):
            return None
        try:
            return await self._stored(digest)
        except PlasmaError:
            return None

    async def _stored(self, digest: str) -> ResolvedImage:
        manifest = parse_manifest(await self.blobs.manifest(digest))
        return _resolved(manifest, parse_config(await self.blobs.read(manifest.config.digest, CONFIG_BYTES)))

    async def load(self, chunks: AsyncIterator[bytes]) -> tuple[LoadedImage, ...]:
        with translated():
            async with self._loading:
                found = await load_archive(chunks, self.blobs, self._platform, self._limits)
        return tuple(_loaded(image) for image in found)

    async def has(self, digest: str) -> bool:
        with translated():
            return self.blobs.has_image(digest)

    async def check(self, digest: str) -> bool:
        with translated():
            return await self.blobs.check(digest)

    async def collect(self, keep: frozenset[str], unused_since: float) -> int:
        with translated():
            return await self.blobs.collect(keep, unused_since)

    async def parts(self, digest: str) -> frozenset[str]:
        with translated():
            manifest = parse_manifest(await self.blobs.manifest(digest))
        return frozenset({digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)})

    async def size(self, digest: str) -> int:
        with translated():
            path = self.blobs.path(digest)
        try:
            return path.stat().st_size
        except FileNotFoundError:
            raise NotFoundError("image-not-found", f"blob {digest} is not in the store") from None

    async def blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        with translated():
            async with reading(self.blobs.blob(BlobRef(digest, 0), offset)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _repository(self, reference: str, login: bool) -> Repository:
        if not names_registry(reference):
            raise NotFoundError(
                "image-not-found",
                f"no image “{reference[:200]}” was loaded",
                resolution="Load it from a tar, or give a reference with its registry, such as registry.example/app:v1.",
            )
        parsed = parse_reference(reference)
        return Repository(parsed, self._policy, self._credentials.get(parsed.host) if login else None)


@contextmanager
def translated() -> Iterator[None]:
    """Say the engine's errors in the platform's words."""
    try:
        yield
    except PlasmaError as error:
        raise _translate(error) from error


def _translate(error: PlasmaError) -> ShellWeGoError:
    message = f"{error.brief} ({error.details})" if error.details else error.brief
    resolution = _LOGIN if error.code == "registry-unauthorized" else error.resolution
    return _kind_of(error)(error.code, message, resolution=resolution)


def _kind_of(error: PlasmaError) -> type[ShellWeGoError]:
    match error:
        case ImageError(code="image-not-found"):
            return NotFoundError
        case ImageError(code="registry-forbidden" | "registry-unauthorized"):
            return ForbiddenError
        case ImageError() | InvalidSpecError():
            return InvalidError
        case _:
            return UnavailableError


def _resolved(manifest: Manifest, config: ImageConfig) -> ResolvedImage:
    size = sum(layer.size for layer in manifest.layers)
    kind = ImageKind.WASM if is_wasm(manifest) else ImageKind.LINUX
    return ResolvedImage(digest=manifest.digest, size_bytes=size, exposed_ports=config.exposed_ports, kind=kind)


def _loaded(image: ArchivedImage) -> LoadedImage:
    return LoadedImage(image=_resolved(image.manifest, image.config), names=image.names)
