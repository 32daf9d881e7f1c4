"""Port: images on the control plane's side: resolve a reference, fetch its blobs into the server's store, take a tar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from shellwego.core.images import ImageKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    digest: str
    size_bytes: int = 0
    """Sum of the compressed layers."""
    exposed_ports: tuple[int, ...] = ()
    kind: ImageKind = ImageKind.LINUX


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """One image found in a tar, and the names that the tar gave it."""

    image: ResolvedImage
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """For whom an image is fetched."""

    project_id: str = ""
    login: bool = False
    """With what the operator may read of a registry, and not only what everybody may."""
    images: frozenset[str] = frozenset()
    """Digests of those that he has. Blobs of others have to come from the registry that he names, though they are here:
    else whoever learned the digest of somebody's layer could have it by naming it."""


STRANGER = Asker()
Download = Callable[[str, int], AsyncIterator[bytes]]
"""The blob with this digest, from an offset on, of another server; raises `NotFoundError` where none has it,
`UnavailableError` where that cannot be known now."""


class Images(Protocol):
    """Raises `NotFoundError` (no such image or tag), `InvalidError` (malformed reference, corrupt or hostile content:
    permanent, with the reason), `ForbiddenError` (registry not allowed, or it wants a login), `UnavailableError` (try
    again). `login`: with what the operator may read of a registry, and not only what everybody may."""

    async def resolve(self, reference: str, *, login: bool = False) -> ResolvedImage:
        """Ask the registry what a reference means now, within ten seconds. Fetches the manifest only."""

    async def look(self, digest: str) -> ResolvedImage | None:
        """What an image in the store is; None where it is not all here, or not what it was."""

    async def fetch(self, reference: str, digest: str, asker: Asker = STRANGER) -> ResolvedImage:
        """Bring manifest, config and all layers into the store, each checked by its digest; what the asker has is kept."""

    async def copy(self, digest: str, download: Download) -> ResolvedImage:
        """Bring an image into the store from another one, each blob checked by its digest; keeps what it has."""

    async def load(self, chunks: AsyncIterator[bytes]) -> tuple[LoadedImage, ...]:
        """Take a `docker save` or OCI-layout tar stream."""

    async def has(self, digest: str) -> bool:
        """True where all blobs of this manifest are in the store."""

    async def check(self, digest: str) -> bool:
        """Read all blobs of this manifest again, and drop those that are not what they were; True where none is missing."""

    async def collect(self, keep: frozenset[str], unused_since: float) -> int:
        """Delete every blob that no manifest in `keep` needs, and that was not written or asked for since that moment
        (seconds since the epoch); returns the bytes won."""


class ImageBlobs(Protocol):
    """Gives out the blobs of images that are in the store. Raises `NotFoundError` where one is not."""

    async def parts(self, digest: str) -> frozenset[str]:
        """Digests of all blobs of an image: its manifest, which is the image's own, its configuration, its layers."""

    async def size(self, digest: str) -> int:
        """Bytes of a blob."""

    def blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        """A blob from `offset` on. Its reader checks the digest."""
