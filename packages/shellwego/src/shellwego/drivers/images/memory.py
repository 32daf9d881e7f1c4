"""Driver `memory`: registries and the store as dictionaries. For tests and simulation; obeys the port's contract.

A test publishes images, and takes registries away; layers are counted, not kept, so an image has one blob, of what its
digest was made of. Tars are read with the standard library:
this driver is for archives that the test made itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from shellwego.core.errors import ForbiddenError, InvalidError, NotFoundError, UnavailableError
from shellwego.core.images import ImageKind
from shellwego.ports.images import STRANGER, Asker, Download, LoadedImage, ResolvedImage

_LONGEST = 64 * 1024 * 1024


class MemoryImages:
    """`Images` in memory, with the registries it asks."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: seconds since the epoch, by which it knows what was used since when."""
        self._now = now
        self.unreachable: set[str] = set()
        """Hosts (as in references) that do not answer."""
        self.private: set[str] = set()
        """Hosts that tell nothing without a login."""
        self.forbidden: set[str] = set()
        """Hosts that may not be asked."""
        self.rotten: set[str] = set()
        """Digests of which a failing disk damaged a layer in the store."""
        self._tags: dict[str, ResolvedImage] = {}
        self._manifests: dict[str, ResolvedImage] = {}
        self._corrupt: set[str] = set()
        self._stored: dict[str, ResolvedImage] = {}
        self._used: dict[str, float] = {}
        self._contents: dict[str, bytes] = {}

    def publish(
        self,
        reference: str,
        *,
        size_bytes: int = 1000,
        exposed_ports: tuple[int, ...] = (),
        kind: ImageKind = ImageKind.LINUX,
    ) -> str:
        """Put an image into a registry under a tag; returns its digest, which follows from the arguments."""
        content = f"{reference}\0{size_bytes}\0{exposed_ports}\0{kind}".encode()
        digest = _digest(content)
        self._contents[digest] = content
        image = ResolvedImage(digest=digest, size_bytes=size_bytes, exposed_ports=exposed_ports, kind=kind)
        self._tags[reference] = self._manifests[digest] = image
        return digest

    def corrupt(self, reference: str) -> None:
        """Damage a layer of a published image."""
        self._corrupt.add(self._tags[reference].digest)

    def is_whole(self, digest: str) -> bool:
        """Whether a node could build from what is in the store."""
        return digest in self._stored and digest not in self.rotten

    async def resolve(self, reference: str, *, login: bool = False) -> ResolvedImage:
        return self._find(reference, login)

    async def look(self, digest: str) -> ResolvedImage | None:
        return self._stored.get(digest) if self.is_whole(digest) else None

    async def fetch(self, reference: str, digest: str, asker: Asker = STRANGER) -> ResolvedImage:
        if digest not in self._stored or digest not in asker.images:
            found = self._find(f"{reference.partition('@')[0]}@{digest}", asker.login)
            if digest in self._corrupt:
                raise InvalidError("digest-mismatch", f"a layer of {reference} is corrupt")
            self._store(found)
        return self._stored[digest]

    async def copy(self, digest: str, download: Download) -> ResolvedImage:
        if digest not in self._stored:
            content = b"".join([chunk async for chunk in download(digest, 0)])
            if _digest(content) != digest:
                raise InvalidError("digest-mismatch", f"what came for {digest} is something else")
            self._contents[digest] = content
            self._store(ResolvedImage(digest=digest, size_bytes=len(content)))
        return self._stored[digest]

    async def load(self, chunks: AsyncIterator[bytes]) -> tuple[LoadedImage, ...]:
        data = bytearray()
        async for chunk in chunks:
            data += chunk
            if len(data) > _LONGEST:
                raise InvalidError("image-too-large", "the archive is too large")
        found = _read_archive(bytes(data))
        for loaded, content in found:
            self._store(loaded.image)
            self._contents[loaded.image.digest] = content
        return tuple(loaded for loaded, _ in found)

    async def has(self, digest: str) -> bool:
        return digest in self._stored

    async def check(self, digest: str) -> bool:
        if digest in self.rotten:
            self.rotten.discard(digest)
            self._stored.pop(digest, None)
        return digest in self._stored

    async def collect(self, keep: frozenset[str], unused_since: float) -> int:
        used = {digest for digest, moment in self._used.items() if moment > unused_since}
        unused = [digest for digest in self._stored if digest not in keep | used]
        return sum(self._stored.pop(digest).size_bytes for digest in unused)

    async def parts(self, digest: str) -> frozenset[str]:
        self._content(digest)
        return frozenset({digest})

    async def size(self, digest: str) -> int:
        return len(self._content(digest))

    async def blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        yield self._content(digest)[offset:]

    def _store(self, image: ResolvedImage) -> None:
        self._stored[image.digest] = image
        self._used[image.digest] = self._now()

    def _content(self, digest: str) -> bytes:
        if digest not in self._stored:
            raise NotFoundError("image-not-found", f"blob {digest} is not in the store")
        return self._contents[digest]

    def _find(self, reference: str, login: bool) -> ResolvedImage:
        host, slash, rest = reference.partition("/")
        if any(character.isspace() for character in reference):
            raise InvalidError("image-reference", f"{reference!r} is not an image reference")
        if host in self.forbidden:
            raise ForbiddenError("registry-forbidden", f"the registry {host} is not allowed")
        if host in self.private and not login:
            raise ForbiddenError("registry-unauthorized", f"the registry {host} wants a login")
        if host in self.unreachable:
            raise UnavailableError("registry-unreachable", f"the registry {host} does not answer")
        name, at, digest = reference.partition("@")
        tagged = name if ":" in rest.partition("@")[0] or not slash else f"{name}:latest"
        found = self._manifests.get(digest) if at else self._tags.get(tagged)
        if found is None:
            raise NotFoundError("image-not-found", f"there is no image {reference}")
        return found


def _read_archive(data: bytes) -> tuple[tuple[LoadedImage, bytes], ...]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            opened = ((member.name, archive.extractfile(member)) for member in archive)
            files = {name: file.read() for name, file in opened if file is not None}
        return tuple(_read_entry(entry, files) for entry in json.loads(files["manifest.json"]))
    except (tarfile.TarError, KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise InvalidError("image-archive", f"the tar is not one of docker save: {error}") from error


def _read_entry(entry: dict[str, Any], files: dict[str, bytes]) -> tuple[LoadedImage, bytes]:
    config = files[entry["Config"]]
    layers = [files[path] for path in entry["Layers"]]
    ports = json.loads(config).get("config", {}).get("ExposedPorts", {})
    content = config + b"".join(hashlib.sha256(layer).digest() for layer in layers)
    image = ResolvedImage(
        digest=_digest(content),
        size_bytes=sum(map(len, layers)),
        exposed_ports=tuple(sorted(int(port.partition("/")[0]) for port in ports)),
    )
    return LoadedImage(image=image, names=tuple(entry.get("RepoTags") or ())), content


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
