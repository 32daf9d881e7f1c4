"""Bringing a whole image from a source into a blob store: manifest, configuration, layers, each checked."""

from __future__ import annotations

from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.digests import check_digest
from plasmavmc.images.fanout import fan_out
from plasmavmc.images.layers import too_large
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import parse_manifest
from plasmavmc.images.source import BlobRef, BlobSource, Manifest

_AT_ONCE = 3


async def pull(digest: str, source: BlobSource, store: BlobStore, limits: ImageLimits) -> Manifest:
    """Store the image with this manifest digest. Blobs that are here are not fetched again.

    The manifest is stored last, so a manifest in the store means that the image was whole.

    Raises:
        ImageError, UnavailableError: from the source; `digest-mismatch`, `image-too-large`.
        CapacityError: `disk-full`.
    """
    manifest = parse_manifest(check_digest(await source.manifest(digest), digest, "the manifest"))
    check_packed_size(manifest, limits)

    async def fetch(ref: BlobRef) -> None:
        await store.fetch(ref, source)

    await fan_out(fetch, (manifest.config, *manifest.layers), at_once=_AT_ONCE)
    await store.put(manifest.raw)
    return manifest


def check_packed_size(manifest: Manifest, limits: ImageLimits) -> None:
    """Refuse an image whose layers are too large as they are stored.

    Raises:
        ImageError: `image-too-large`.
    """
    if sum(layer.size for layer in manifest.layers) > limits.packed_bytes:
        raise too_large(f"its layers have more than {limits.packed_bytes >> 20} MiB")
