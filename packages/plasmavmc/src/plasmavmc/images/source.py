"""Port: where blobs of images come from, and what an image says about itself.

A node asks a `BlobSource` by digest: a registry (stand-alone) or the platform's own blob store. Everything that comes
from a source is hostile until its digest was checked, and its meaning stays hostile after that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from plasmavmc.host.architecture import PACKAGE_NAME


@dataclass(frozen=True, slots=True)
class BlobRef:
    digest: str
    size: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of the OCI image configuration that a VM needs (image-spec, config.md)."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    exposed_ports: tuple[int, ...] = ()
    stop_signal: str = "SIGTERM"
    labels: Mapping[str, str] = field(default_factory=dict)
    architecture: str = PACKAGE_NAME
    os: str = "linux"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's manifest, its bytes checked against `digest`."""

    digest: str
    media_type: str
    config: BlobRef
    layers: tuple[BlobRef, ...]
    raw: bytes


class BlobSource(Protocol):
    """Raises `ImageError` (permanent: unknown, refused) or `UnavailableError` (try again)."""

    async def manifest(self, digest: str) -> bytes:
        """The manifest with this digest, as stored."""

    def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a blob from `offset` on; the reader checks digest and size."""
