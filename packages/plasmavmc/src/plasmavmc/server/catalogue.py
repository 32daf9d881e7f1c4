"""Which images are registered, in which scope and under which names: one small file, written whole and swapped in.

Theory. Content is one thing on the disk, whoever registered it, known by its digest. What a tenant may use is another:
an entry (scope, digest). So a digest that was learned elsewhere opens nothing, and an image goes from the disk with its
last entry. A name belongs to a scope, and points to one image; given anew, it moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from plasmavmc.errors import HostError, NotFoundError
from plasmavmc.images.files import write_durably
from plasmavmc.rpc.api import Image, key_of_image
from plasmavmc.types import SYSTEM_SCOPE, Scope


class Catalogue:
    """See the module's head."""

    def __init__(self, path: Path) -> None:
        """Raises `HostError`: `bad-catalogue`."""
        self._path = path
        self._images = {(image.scope, image.digest): image for image in _read(path)}

    def all(self) -> Iterator[Image]:
        """All entries, by their keys."""
        return iter(sorted(self._images.values(), key=key_of_image))

    def digests(self) -> frozenset[str]:
        return frozenset(digest for _, digest in self._images)

    def find(self, scope: Scope, image: str) -> Image:
        """The image that a digest or name means in a scope: the scope's own, else the one that all may use.

        Raises:
            NotFoundError: none.
        """
        found = self.find_own(scope, image) or self.find_own(SYSTEM_SCOPE, image)
        if found is None:
            raise NotFoundError(
                "image-not-found", f"there is no image {image}", resolution="Register it: plasmavmc image pull"
            )
        return found

    def find_own(self, scope: Scope, image: str) -> Image | None:
        """The scope's own."""
        by_digest = self._images.get((scope, image))
        named = (
            each
            for spelling in (image, f"{image}:latest")
            for each in self._images.values()
            if each.scope == scope and spelling in each.names
        )
        return by_digest or next(named, None)

    def add(self, image: Image, name: str) -> Image:
        """Enter an image, with a name where it gets one; returns the entry with all its names."""
        changed = dict(self._images)
        for key, other in self._images.items():
            if other.scope == image.scope and name in other.names:
                changed[key] = _without(other, name)
        key = (image.scope, image.digest)
        present = changed.get(key, image)
        names = tuple(sorted({*present.names, name} - {""}))
        entry = replace(image, names=names, created=present.created)
        changed[key] = entry
        self._store(changed)
        return entry

    def take_name(self, image: Image, name: str) -> None:
        """Take a name away; the image stays."""
        self._store({**self._images, (image.scope, image.digest): _without(image, name)})

    def remove(self, image: Image) -> None:
        """Take an entry out."""
        self._store({key: each for key, each in self._images.items() if key != (image.scope, image.digest)})

    def _store(self, images: dict[tuple[Scope, str], Image]) -> None:
        write_durably(self._path, msgspec.json.encode(list(images.values())))
        self._images = images


def _without(image: Image, name: str) -> Image:
    return replace(image, names=tuple(each for each in image.names if each != name))


def _read(path: Path) -> list[Image]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Image])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # msgspec tells bad UTF-8 by a plain ValueError
        raise HostError("bad-catalogue", f"the images' catalogue {path} cannot be read: {error}") from error
