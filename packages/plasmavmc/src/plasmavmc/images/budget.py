"""Which images have to go so that the rest keeps a budget. Pure.

Images that are needed stay, whatever they take; of the others the longest unused goes first. An image that came or was used
a moment ago stays too: whoever brought it in is about to use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image on the disk, as much as matters here."""

    digest: str
    disk_bytes: int
    used_at: float
    """Seconds since the epoch: when it came, or a VM was last started from it."""
    needed: bool
    """A VM is made from it, or it may not be removed."""


def surplus(images: Iterable[StoredImage], budget_bytes: int, now: float) -> tuple[str, ...]:
    """Digests of those that have to go, in the order to remove them. What is left may still be above the budget."""
    known = sorted(images, key=lambda image: (image.used_at, image.digest))
    total = sum(image.disk_bytes for image in known)
    gone = []
    for image in known:
        if total <= budget_bytes:
            break
        if not image.needed and now - image.used_at >= FRESH_S:
            total -= image.disk_bytes
            gone.append(image.digest)
    return tuple(gone)
