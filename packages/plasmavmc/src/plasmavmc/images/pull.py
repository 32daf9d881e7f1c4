"""Bringing a whole image from a source into a blob store: manifest, configuration, layers, each checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from plasmavmc.images.blobs import Asker, BlobStore
from plasmavmc.images.digests import check_digest
from plasmavmc.images.fanout import fan_out
from plasmavmc.images.layers import too_large
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import parse_manifest
from plasmavmc.images.source import BlobRef, BlobSource, Manifest

_AT_ONCE = 3


async def pull(
    digest: str, source: BlobSource, store: BlobStore, limits: ImageLimits, asker: Asker | None = None
) -> Manifest:
    """Store the image with this manifest digest. Blobs that are here are not fetched again where `asker` has them already,
    or where nobody is named: then the source must be one that the platform trusts.

    The manifest is stored last, so a manifest in the store means that the image was whole.

    Raises:
        ImageError, UnavailableError: from the source; `digest-mismatch`, `image-too-large`.
        CapacityError: `disk-full`.
    """
    manifest = parse_manifest(check_digest(await source.manifest(digest), digest, "the manifest"))
    check_packed_size(manifest.layers, limits)

    async def fetch(ref: BlobRef) -> None:
        await store.fetch(ref, source, asker)

    blobs = {(ref.digest, ref.size): ref for ref in (manifest.config, *manifest.layers)}
    await fan_out(fetch, blobs.values(), at_once=_AT_ONCE)
    await store.put(manifest.raw)
    return manifest


class Sized(Protocol):
    @property
    def size(self) -> int:
        """Bytes."""


def check_packed_size(layers: Iterable[Sized], limits: ImageLimits) -> None:
    """Refuse an image whose layers are too large as they are stored; one that is named twice counts twice.

    Raises:
        ImageError: `image-too-large`.
    """
    if sum(layer.size for layer in layers) > limits.packed_bytes:
        raise too_large(f"its layers have more than {limits.packed_bytes >> 20} MiB")
