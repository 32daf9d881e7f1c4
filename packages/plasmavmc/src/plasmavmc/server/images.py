"""This host's images for the gRPC services. Implements `ImageApi` over registry client, archive reader and image store.

Theory. An image is brought into the blob store (from a registry, or from an uploaded tar), built, and entered in the
catalogue; so what is registered boots without asking anybody. Blobs stay beside the built root file system, for a later
builder makes it anew from them. A removed image takes along all blobs without an entry, and one that is refused takes those
that it brought, unless another is being brought in: they may be its own for that while, and go the next time. While blobs
are collected, none begins to come in. What a pull that broke off has brought is there for the next, whoever else's image is
refused meanwhile; with a budget for an hour.

Bytes come as slowly as who sends them likes, so nothing that others need is held meanwhile: an upload lies in a file of its
own, without a name, and takes one of the few slots for reading and building only when it is whole; a pull takes one when
all its blobs are here. Who has some under way waits with more, in a line of his own;
with too many he is refused.

What a manifest names is no proof that its maker has it. So a blob of a pulled image is taken from the store only where
the scope has it already, in an image of its own or of everybody's; else it comes from the registry, whole.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice

import structlog

from plasmavmc.deadlines import within
from plasmavmc.errors import (
    ConflictError,
    ImageError,
    InvalidSpecError,
    NotFoundError,
    PlasmaError,
    UnavailableError,
)
from plasmavmc.images.archive import ArchivedImage, load_archive
from plasmavmc.images.auth import Credentials
from plasmavmc.images.blobs import Asker, BlobStore
from plasmavmc.images.budget import StoredImage, surplus
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import host_platform
from plasmavmc.images.policy import RegistryPolicy
from plasmavmc.images.pull import pull
from plasmavmc.images.reference import names_registry, parse_loaded_name, parse_reference
from plasmavmc.images.registry import Repository
from plasmavmc.images.source import BlobRef, BlobSource
from plasmavmc.images.store import BuiltImage, ImageStore
from plasmavmc.images.wasm import is_wasm
from plasmavmc.rpc.access import Reach
from plasmavmc.rpc.api import Image, ImageOrder, ImageProgress, Upload, key_of_image
from plasmavmc.rpc.shares import Lines
from plasmavmc.server.catalogue import Catalogue
from plasmavmc.types import SYSTEM_SCOPE, Scope, Vm

RESOLVE_S = 10.0
TOLD_EVERY_S = 0.2
COLLECT_EVERY_S = 600.0
UPLOADS_EACH, UPLOADS = 2, 16
"""At once, of one principal and of all: each may take as much of the disk as an image may."""
PULLS_EACH, PULLS = 4, 32
UPLOADS_WAITING, PULLS_WAITING = 8, 512
"""Of one principal, until it has less under way."""
UNWANTED_S = 3600.0
"""What no image needs, and nobody came back for in that time, goes with the next look at the budget."""
_AT_ONCE = 4
"""Images that are read and built: each takes a core."""
_LIMITS = ImageLimits()
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

log = structlog.get_logger("plasmavmc.images")


@dataclass(slots=True)
class _Report:
    """How far a registration is."""

    latest: ImageProgress
    brought: set[str] = field(default_factory=set)
    """Digests of the blobs that it brought into the store."""

    def stage(self, name: str, total_bytes: int = 0) -> None:
        self.latest = ImageProgress(name, 0, total_bytes)

    def came(self, count: int) -> None:
        now = self.latest
        self.latest = ImageProgress(now.stage, now.done_bytes + count, now.total_bytes)


@dataclass(frozen=True, slots=True)
class _Counted:
    """A `BlobSource` whose bytes are counted."""

    source: BlobSource
    report: _Report

    async def manifest(self, digest: str) -> bytes:
        return await self.source.manifest(digest)

    async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        async for chunk in self.source.blob(ref, offset):
            self.report.came(len(chunk))
            yield chunk


class EngineImages:
    """See the module's head. `vms` are all VMs there are: an image that one is made from stays."""

    def __init__(
        self,
        store: ImageStore,
        blobs: BlobStore,
        catalogue: Catalogue,
        *,
        vms: Callable[[], Sequence[Vm]],
        policy: RegistryPolicy,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._catalogue = catalogue
        self._vms = vms
        self._policy = policy
        self._platform = host_platform()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._uploads = Lines("uploads", each=UPLOADS_EACH, most=UPLOADS, waiting=UPLOADS_WAITING)
        self._pulls = Lines("pulls", each=PULLS_EACH, most=PULLS, waiting=PULLS_WAITING)
        self._intakes = 0
        self._collecting = asyncio.Lock()
        self._refused: set[str] = set()
        """Digests of blobs that refused images brought, and that are still here."""
        self._disk_bytes: dict[str, int] = {}
        self._came = asyncio.Event()

    # ImageApi

    async def register(self, order: ImageOrder, chunks: AsyncIterator[bytes]) -> AsyncGenerator[ImageProgress | Image]:
        """Raises besides `CapacityError`: `too-many`, the principal has as many waiting as it may, or all have under way."""
        is_upload = isinstance(order.source, Upload)
        report = _Report(ImageProgress("upload" if is_upload else "resolve"))
        async with (
            (self._uploads if is_upload else self._pulls).one(order.principal),
            aclosing(_followed(self._take(order, chunks, report), report)) as told,
        ):
            async for each in told:
                yield each

    async def get_image(self, scope: Scope, image: str) -> Image:
        return self._measured(self._catalogue.find(scope, image))

    async def list_images(self, scope: Scope | None, reach: Reach, *, after: str, limit: int) -> Sequence[Image]:
        matching = (
            image
            for image in self._catalogue.all()
            if key_of_image(image) > after and reach.covers(image.scope) and scope in (None, image.scope)
        )
        return tuple(self._measured(image) for image in islice(matching, limit))

    async def delete_image(self, scope: Scope, image: str) -> None:
        entry = self._catalogue.find_own(scope, image)
        if entry is None:
            raise NotFoundError("image-not-found", f"there is no image {image}")
        if image in entry.names and len(entry.names) > 1:
            self._catalogue.take_name(entry, image)
            return
        self._check_unused(entry)
        self._catalogue.remove(entry)
        await self._collect(entry.digest)

    # Bringing in

    async def _take(self, order: ImageOrder, chunks: AsyncIterator[bytes], report: _Report) -> Image:
        try:
            match order.source:
                case Upload.TAR | Upload.WASM:
                    return await self._take_file(order, chunks, report)
                case reference:
                    return await self._take_reference(order, reference, report)
        except BaseException as error:
            if isinstance(order.source, Upload) or (isinstance(error, ImageError) and report.latest.stage == "build"):
                await self._let_go(report.brought)
            raise

    async def _take_reference(self, order: ImageOrder, reference: str, report: _Report) -> Image:
        if not names_registry(reference):
            raise InvalidSpecError(
                "start.reference",
                f"{reference[:100]!r} names no registry",
                resolution="Write HOST[:PORT]/NAME[:TAG], such as registry.example/app:v1.",
            )
        parsed = parse_reference(reference)
        name = _checked_name(order.name or str(parsed))
        login = None if order.login is None else Credentials(order.login.username, order.login.password)
        async with self._intake():
            async with Repository(parsed, self._policy, login) as source:
                try:
                    async with within(RESOLVE_S):
                        manifest = await source.resolve(self._platform)
                except TimeoutError:
                    raise UnavailableError(
                        "registry-unreachable", f"the registry did not answer within {RESOLVE_S:g} s"
                    ) from None
                report.stage("fetch", manifest.config.size + sum(layer.size for layer in manifest.layers))
                asker = await self._asker(order.scope)
                store = self._blobs.noting(report.brought)
                await pull(manifest.digest, _Counted(source, report), store, _LIMITS, asker)
                report.brought.add(manifest.digest)  # also where an earlier try has left it
            async with self._slots:
                return await self._enter(order.scope, manifest.digest, name, report)

    async def _take_file(self, order: ImageOrder, chunks: AsyncIterator[bytes], report: _Report) -> Image:
        name = _checked_name(order.name) if order.name else ""

        async with AsyncExitStack() as held:

            async def whole() -> AsyncIterator[bytes]:
                """The reader spools all of it before it looks at any; so what it needs then is taken at the end."""
                async for chunk in chunks:
                    report.came(len(chunk))
                    yield chunk
                await held.enter_async_context(self._slots)
                await held.enter_async_context(self._intake())

            found = await self._load(order, whole(), self._blobs.noting(report.brought))
            if len(found) != 1:
                raise ImageError(
                    "image-archive",
                    f"the archive holds {len(found)} images; one at a time is taken",
                    resolution="Save one image: docker save NAME",
                )
            _check_is(order.source, found[0])
            return await self._enter(order.scope, found[0].manifest.digest, name, report)

    async def _load(
        self, order: ImageOrder, chunks: AsyncIterator[bytes], store: BlobStore
    ) -> tuple[ArchivedImage, ...]:
        """As `load_archive`; who said that it is a module is not told what is wrong with it as a tar."""
        try:
            return await load_archive(chunks, store, self._platform, _LIMITS)
        except ImageError as error:
            if order.source is Upload.WASM and error.code in ("image-tar", "image-archive"):
                raise ImageError(
                    "image-wasm",
                    "the file is no WebAssembly module",
                    resolution="Build it for the target wasm32-wasip1.",
                ) from error
            raise

    async def _enter(self, scope: Scope, digest: str, name: str, report: _Report) -> Image:
        report.stage("build")
        built = await self._store.ensure(digest, self._blobs)
        self._came.set()
        return self._measured(self._catalogue.add(_image_of(built, scope, time.time()), name))

    async def _asker(self, scope: Scope) -> Asker:
        """A scope, with the blobs of its own images and of everybody's: those need not come again."""
        usable = [image.digest for image in self._catalogue.all() if image.scope in (scope, SYSTEM_SCOPE)]
        return Asker(f"{scope.org}/{scope.project}", await self._blobs.parts(usable))

    @asynccontextmanager
    async def _intake(self) -> AsyncIterator[None]:
        """Within it blobs without an entry stay."""
        async with self._collecting:
            self._intakes += 1
        try:
            yield
        finally:
            self._intakes -= 1

    def _measured(self, image: Image) -> Image:
        """With what it takes on the disk, and when it was used."""
        size = self._disk_bytes.get(image.digest)
        if size is None:
            size = self._disk_bytes[image.digest] = image.size_bytes + self._blobs.size_of(image.digest)
        return replace(image, disk_bytes=size, used_at=self._store.used_at(image.digest))

    # Taking out

    async def keep_within(self, budget_bytes: int) -> None:
        """Keep all images within a budget, for ever: look when one came, and from time to time, for VMs go too."""
        while True:
            self._came.clear()
            try:
                for image in await self.collect(budget_bytes):
                    log.info("image.collected", image=image.digest, names=image.names, bytes=image.disk_bytes)
            except (PlasmaError, OSError) as error:  # the disk may be better the next time
                log.warning("images.not_collected", reason=str(error))
            with suppress(TimeoutError):
                async with within(COLLECT_EVERY_S):
                    await self._came.wait()

    async def collect(self, budget_bytes: int) -> tuple[Image, ...]:
        """Remove images that no VM is made from, longest unused first, until the rest is within the budget; returns those
        that went. One that came or was used in the last minute stays."""
        entries = {image.digest: self._measured(image) for image in self._catalogue.all()}
        used = {vm.spec.image for vm in self._vms()}
        stored = [
            StoredImage(each.digest, each.disk_bytes, each.used_at, each.digest in used) for each in entries.values()
        ]
        gone = [digest for digest in surplus(stored, budget_bytes, time.time()) if await self._drop(digest)]
        await self._collect_blobs(time.time() - UNWANTED_S)
        return tuple(entries[digest] for digest in gone)

    async def _drop(self, digest: str) -> bool:
        """Remove an image from all scopes. False where a VM was made from it since."""
        if any(vm.spec.image == digest for vm in self._vms()):
            return False
        for entry in [image for image in self._catalogue.all() if image.digest == digest]:
            self._catalogue.remove(entry)
        await self._collect(digest)
        return True

    def _check_unused(self, entry: Image) -> None:
        shared = entry.scope == SYSTEM_SCOPE
        users = [
            vm.spec.id
            for vm in self._vms()
            if vm.spec.image == entry.digest and (shared or vm.spec.scope == entry.scope)
        ]
        if users:
            who = f"VM {users[0]}" if not shared else f"{len(users)} VMs"
            raise ConflictError(
                "image-in-use", f"{who} is made from image {entry.digest}", resolution="Delete the VMs first."
            )

    async def _collect(self, digest: str) -> None:
        """Remove from the disk what no entry needs any more."""
        if digest not in self._catalogue.digests():
            self._disk_bytes.pop(digest, None)
            await self._store.remove(digest)
        await self._collect_blobs()

    async def _let_go(self, brought: set[str]) -> None:
        """Remove what a refused image has brought, and nothing else: the rest may be a pull's that others go on with."""
        self._refused |= brought
        if brought:
            await self._collect_blobs(among=frozenset(self._refused))

    async def _collect_blobs(self, unused_since: float | None = None, *, among: frozenset[str] | None = None) -> None:
        refused = frozenset(self._refused)
        try:
            async with self._collecting:
                if not self._intakes:
                    await self._blobs.collect(self._catalogue.digests(), unused_since, among=among)
                    if unused_since is None:
                        self._refused -= refused
        except (PlasmaError, OSError) as error:  # they go the next time; it is nobody's error who asks for his own
            log.warning("blobs.not_collected", reason=str(error))


async def _followed(work: Coroutine[None, None, Image], report: _Report) -> AsyncGenerator[ImageProgress | Image, None]:
    """Do the work, and tell how far it is, and last its result."""
    task = asyncio.create_task(work, name="register image")
    told: ImageProgress | None = None
    try:
        while not task.done():
            if report.latest != told:
                told = report.latest
                yield told
            await asyncio.wait({task}, timeout=TOLD_EVERY_S)
        yield task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _checked_name(name: str) -> str:
    """A name for an image. Raises `InvalidSpecError`: it would be taken for a digest, or is none."""
    if _DIGEST.fullmatch(name):
        raise InvalidSpecError("start.name", "a digest is no name")
    if "@" in name:
        return str(parse_reference(name))
    return parse_loaded_name(name)


def _check_is(announced: str | Upload, found: ArchivedImage) -> None:
    """Refuse a file that is not what it was said to be: a module and a root file system run in different ways."""
    if (announced is Upload.WASM) != is_wasm(found.manifest):
        raise ImageError(
            "image-archive",
            "the file is no WebAssembly module" if announced is Upload.WASM else "the file is a WebAssembly module",
            resolution="Say what it is: a module, or the tar of an image.",
        )


def _image_of(built: BuiltImage, scope: Scope, now: float) -> Image:
    config = built.config
    return Image(
        scope=scope,
        digest=built.digest,
        names=(),
        kind=built.kind,
        size_bytes=built.size_bytes,
        created=now,
        entrypoint=config.entrypoint,
        command=config.command,
        user=config.user,
        workdir=config.workdir,
        exposed_ports=config.exposed_ports,
        labels=config.labels,
    )
