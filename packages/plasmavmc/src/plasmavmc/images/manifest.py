"""OCI and Docker v2 manifests and indexes (image-spec, manifest.md and image-index.md). Pure.

Both families have the same shape for what we need; only media types differ. Trap: an image index made by buildx lists
attestation manifests (platform `unknown/unknown`) beside the real ones; they never match a platform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from plasmavmc.errors import ImageError
from plasmavmc.host.architecture import PACKAGE_NAME
from plasmavmc.images.digests import digest_of, parse_digest
from plasmavmc.images.documents import as_list, as_object, as_size, as_text, as_text_map, parse_object
from plasmavmc.images.limits import CONFIG_BYTES, LAYERS, MANIFEST_BYTES
from plasmavmc.images.source import BlobRef, Manifest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest was built for, in the words of Go (`linux`, `amd64`)."""

    os: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An entry of an index: a manifest, or another index."""

    digest: str
    size: int
    media_type: str
    platform: Platform | None
    annotations: Mapping[str, str]


WASM_PLATFORMS = (Platform("wasip1", "wasm"), Platform("wasi", "wasm"))
"""Of WebAssembly modules that are WASI commands, as indexes name it."""


def host_platform() -> Platform:
    """What this machine runs."""
    return Platform("linux", PACKAGE_NAME)


def is_index(document: Mapping[str, object]) -> bool:
    """True for an index or manifest list. The media type may be absent in OCI documents; the content decides."""
    return "manifests" in document and "layers" not in document


def parse_document(raw: bytes) -> Mapping[str, object]:
    """A manifest or index of schema version 2.

    Raises:
        ImageError: `image-document`; `image-schema` for Docker's old schema 1 and unknown kinds.
    """
    document = parse_object(raw, "the manifest", MANIFEST_BYTES)
    if document.get("schemaVersion") != 2 or not ("manifests" in document or "layers" in document):
        raise ImageError(
            "image-schema",
            "the manifest is neither an OCI manifest, an OCI index nor their Docker v2 forms",
            resolution="push the image again with a current tool",
        )
    return document


def parse_manifest(raw: bytes) -> Manifest:
    """One platform's manifest.

    Raises:
        ImageError: `image-document`, `image-schema`, `image-digest`, `image-too-large` (too many layers).
    """
    document = parse_document(raw)
    if is_index(document):
        raise ImageError("image-schema", "an index was given where a manifest of one platform is needed")
    layers = tuple(_reference(item, "a layer") for item in as_list(document.get("layers"), "layers"))
    if len(layers) > LAYERS:
        raise ImageError("image-too-large", f"the image has {len(layers)} layers; at most {LAYERS} are taken")
    config = _reference(document.get("config"), "the configuration")
    if config.size > CONFIG_BYTES:
        raise ImageError("image-too-large", f"the image configuration has {config.size} bytes")
    media_type = as_text(document.get("mediaType"), "mediaType", OCI_MANIFEST)
    return Manifest(digest_of(raw), media_type, config, layers, raw)


def parse_index(raw: bytes) -> tuple[Descriptor, ...]:
    """The entries of an index or manifest list. Raises `ImageError` as `parse_manifest`."""
    return tuple(_descriptor(item) for item in as_list(parse_document(raw).get("manifests"), "manifests"))


def choose(entries: tuple[Descriptor, ...], wanted: Platform) -> Descriptor:
    """The first entry for a platform, else one for WebAssembly, which runs anywhere; an entry that names none serves where
    it is the only one.

    Raises:
        ImageError: `image-platform`, with what there is.
    """
    for platform in (wanted, *WASM_PLATFORMS):
        for entry in entries:
            if entry.platform == platform:
                return entry
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    offered = sorted({str(entry.platform) for entry in entries if entry.platform})[:20]
    raise ImageError(
        "image-platform",
        f"the image has no manifest for {wanted}",
        details=f"it has: {', '.join(offered) or 'none'}",
        resolution=f"build the image for {wanted}",
    )


def build_manifest(config: BlobRef, layers: tuple[BlobRef, ...]) -> bytes:
    """The manifest of an image that came without one. The same parts give the same bytes."""
    document = {
        "config": _encode(config),
        "layers": [_encode(layer) for layer in layers],
        "mediaType": OCI_MANIFEST,
        "schemaVersion": 2,
    }
    return msgspec.json.encode(document, order="sorted")


def _encode(ref: BlobRef) -> dict[str, object]:
    return {"digest": ref.digest, "mediaType": ref.media_type, "size": ref.size}


def _reference(value: object, what: str) -> BlobRef:
    item = as_object(value, what)
    return BlobRef(
        parse_digest(item.get("digest"), f"the digest of {what}"),
        as_size(item.get("size"), f"the size of {what}"),
        as_text(item.get("mediaType"), f"the media type of {what}"),
    )


def _descriptor(value: object) -> Descriptor:
    item = as_object(value, "an entry of the index")
    ref = _reference(item, "an entry of the index")
    return Descriptor(
        ref.digest,
        ref.size,
        ref.media_type,
        _platform(item.get("platform")),
        as_text_map(item.get("annotations"), "annotations"),
    )


def _platform(value: object) -> Platform | None:
    if value is None:
        return None
    item = as_object(value, "platform")
    return Platform(as_text(item.get("os"), "platform.os"), as_text(item.get("architecture"), "platform.architecture"))
