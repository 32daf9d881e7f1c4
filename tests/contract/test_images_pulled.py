"""A node pulls images from servers: by digest, resumed, verified, and no image but its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc import errors as engine
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.pull import pull
from plasmavmc.images.store import ImageStore
from shellwego.api.uplink import blobs
from shellwego.control.nodeimages import NodeImages
from shellwego.control.unit import Control
from shellwego.core.apps import Release
from shellwego.core.errors import ForbiddenError, MalformedError, NotFoundError, UnavailableError
from shellwego.core.instances import Phase
from shellwego.core.nodes import Node, NodeFacts
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.images.pulled import PulledBlobs
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.uplink import downloads
from shellwego.drivers.uplink.downloads import ABSENT_S, Downloads
from shellwego.drivers.uplink.tls import TlsNodeUplink
from shellwego.ports.store import Transaction
from tests.agent.test_agent_with_control import _INSTANCE, _insert_app
from tests.contract.images_samples import digest_of, entry, image, layer
from tests.contract.node_port import Port, Rig

ABSENT = "sha256:" + "0" * 64


LARGE = os.urandom(3 << 20)
MINE = image(layer(entry("large", LARGE)), compress="none")
OTHER = image(layer(entry("a", b"other")), compress="none")


class Shelf:
    """A server's blobs, which break off where a test says so, and how they were asked for."""

    def __init__(self) -> None:
        self.samples = {digest_of(sample.manifest): sample for sample in (MINE, OTHER)}
        self.asked: list[tuple[str, int]] = []
        self.breaks: asyncio.Event | None = None
        """While set: after the first piece of a blob, wait for it, then fail."""
        self.lies = False

    async def parts(self, digest: str) -> frozenset[str]:
        self.content(digest)
        return frozenset(self.samples[digest].blobs)

    async def size(self, digest: str) -> int:
        return len(self.content(digest))

    async def blob(self, digest: str, offset: int = 0) -> AsyncIterator[bytes]:
        self.asked.append((digest, offset))
        content = self.content(digest)
        for start in range(offset, len(content), 1 << 20):
            chunk = content[start : start + (1 << 20)]
            yield bytes(len(chunk)) if self.lies else chunk
            if self.breaks is not None:
                await self.breaks.wait()
                raise OSError("the disk has a bad day")

    def content(self, digest: str) -> bytes:
        for sample in self.samples.values():
            if digest in sample.blobs:
                return sample.blobs[digest]
        raise NotFoundError("image-not-found", f"blob {digest} is not in the store")


class World:
    """Two servers that have two images, and a node that should run the first."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        clock = SystemClock()
        self._store = MemoryStore(clock)
        self._control = Control(self._store, MemoryBus(), clock)
        self.shelves = [Shelf() for _ in range(2)]
        self.ports: list[Port] = [rig.port(images=NodeImages(self._control, shelf)) for shelf in self.shelves]
        self.rig = rig
        self.node = rig.identities.node()
        self.store = BlobStore(directory / "node")
        self.mine, self.other, self.large = map(digest_of, (MINE.manifest, OTHER.manifest, MINE.layers[0]))

    async def open(self) -> None:
        await self.transact(self._place)

    async def transact(self, work: Callable[[Transaction], None]) -> None:
        await self._store.transact(work)

    def _place(self, tx: Transaction) -> None:
        _insert_app(tx)
        release = tx.releases.get("rel_1")
        assert isinstance(release, Release)
        tx.releases.delete("rel_1")
        tx.releases.insert(replace(release, image_digest=self.mine))
        facts = NodeFacts(hostname="one", version="1", cpu_milli=1, memory_bytes=1, disk_bytes=1)
        tx.nodes.insert(Node(id="node_1", name="one", facts=facts, epoch=1, last_heard_at=0.0, created_at=0.0))
        tx.instances.insert(replace(_INSTANCE, node_id="node_1", phase=Phase.ASSIGNED))

    def downloads(self, *ports: Port, stall_s: float = 20.0) -> Downloads:
        return Downloads(lambda: [port.url for port in ports], lambda: self.node, stall_s=stall_s, jitter=lambda: 0.5)

    async def pull(self, *ports: Port, digest: str = "") -> None:
        """As a node does before it builds."""
        source = PulledBlobs(self.downloads(*ports).blob)
        await pull(digest or self.mine, source, self.store, ImageLimits())


@pytest.fixture
async def world(rig: Rig, tmp_path: Path) -> World:
    world = World(rig, tmp_path)
    await world.open()
    return world


async def test_an_image_is_pulled_whole_and_verified(world: World) -> None:
    await world.pull(world.ports[0])
    assert world.store.has_image(world.mine)
    assert await world.store.check(world.mine)


@pytest.mark.real
async def test_a_node_builds_from_what_it_pulls(world: World, tmp_path: Path) -> None:
    source = PulledBlobs(world.downloads(*world.ports).blob)
    assert (await ImageStore(tmp_path / "images").ensure(world.mine, source)).size_bytes > 0


@pytest.mark.parametrize("which", ["another image", "nothing", "a layer of another image"])
async def test_what_is_not_the_nodes_is_not_there(world: World, which: str) -> None:
    digest = {"another image": world.other, "nothing": ABSENT}.get(which)
    digest = digest or digest_of(OTHER.layers[0])
    with pytest.raises(NotFoundError) as caught:
        await anext(world.downloads(*world.ports).blob(digest))
    assert caught.value.message.replace(digest, "") == "this server has no blob '' for this node"
    with pytest.raises(engine.ImageError) as refused:
        await world.pull(*world.ports, digest=digest)
    assert refused.value.code == "image-not-found"


async def test_a_node_has_nothing_any_more_when_it_should_run_nothing(world: World) -> None:
    def take_away(tx: Transaction) -> None:
        instance = tx.instances.get("ins_1")
        assert instance
        tx.instances.update(replace(instance, node_id="node_2"))

    await world.transact(take_away)
    with pytest.raises(NotFoundError):
        await anext(world.downloads(world.ports[0]).blob(world.mine))


async def test_a_download_that_breaks_goes_on_at_the_next_server(world: World) -> None:
    first = world.shelves[0]
    first.breaks = asyncio.Event()
    got = bytearray()
    async with aclosing(world.downloads(*world.ports).blob(world.large)) as chunks:
        async for chunk in chunks:
            got += chunk
            first.breaks.set()
    assert bytes(got) == MINE.layers[0]
    [(_, offset)] = world.shelves[1].asked
    assert 0 < offset < len(got)


async def test_a_pull_that_broke_goes_on_where_it_was(world: World) -> None:
    only = world.shelves[0]
    only.breaks = asyncio.Event()
    pulling = asyncio.ensure_future(world.pull(world.ports[0]))
    partial = world.store.spool.parent / "partial" / world.large.removeprefix("sha256:")
    async with asyncio.timeout(20):
        while not partial.exists() or not partial.stat().st_size:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
    only.breaks.set()
    with pytest.raises(engine.UnavailableError):
        await pulling
    only.breaks = None
    only.asked.clear()
    while not world.store.has_image(world.mine):
        await world.pull(world.ports[0])
    assert dict(only.asked)[world.large] > 0


async def test_what_a_server_got_wrong_is_not_kept(world: World) -> None:
    world.shelves[0].lies = True
    with pytest.raises(engine.ImageError) as caught:
        await world.pull(world.ports[0])
    assert caught.value.code == "digest-mismatch"
    assert not world.store.has_image(world.mine)
    await world.pull(world.ports[1])
    assert world.store.has_image(world.mine)


async def test_a_server_that_has_no_blobs_is_not_the_last_word(rig: Rig, world: World) -> None:
    assert [chunk async for chunk in world.downloads(rig.port(), world.ports[0]).blob(world.mine)]


async def test_a_server_that_stalls_is_given_up(world: World) -> None:
    world.shelves[0].breaks = asyncio.Event()
    downloads = world.downloads(*world.ports, stall_s=0.2)
    whole = b"".join([chunk async for chunk in downloads.blob(world.large)])
    assert whole == MINE.layers[0]
    world.shelves[0].breaks.set()


async def test_where_no_server_is_it_may_be_had_later(world: World) -> None:
    nobody = Downloads(lambda: ["https://127.0.0.1:1"], lambda: world.node)
    with pytest.raises(UnavailableError):
        await anext(nobody.blob(world.mine))
    with pytest.raises(engine.UnavailableError):
        await pull(world.mine, PulledBlobs(nobody.blob), world.store, ImageLimits())


async def test_a_blob_that_all_who_answer_lack_is_nowhere_after_a_while_though_one_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would fetch its image again, as long as the server that died is remembered."""
    now = [0.0]
    monkeypatch.setattr(downloads, "_now", lambda: now[0])
    urls = ["https://127.0.0.1:1", world.ports[0].url]
    source = PulledBlobs(Downloads(lambda: urls, lambda: world.node, jitter=lambda: 0.5).blob)
    shelf = world.shelves[0]
    kept, shelf.samples = shelf.samples, {}
    for now[0] in (0.0, ABSENT_S / 2, ABSENT_S - 1):
        with pytest.raises(engine.UnavailableError):
            await source.manifest(world.mine)
    now[0] = ABSENT_S
    with pytest.raises(engine.ImageError) as refused:
        await source.manifest(world.mine)
    assert refused.value.code == "image-not-found"
    shelf.samples = kept
    assert await source.manifest(world.mine) == MINE.manifest
    shelf.samples = {}
    with pytest.raises(engine.UnavailableError):
        await source.manifest(world.mine)
    now[0] = 1000 * ABSENT_S
    with pytest.raises(engine.UnavailableError):
        await source.manifest(world.mine)


async def test_whose_key_is_retired_and_who_is_an_edge_pulls_nothing(world: World) -> None:
    world.rig.identities.retire(world.node)
    with pytest.raises(engine.UnavailableError):
        await world.pull(world.ports[0])
    for credentials in (world.node, world.rig.identities.edge()):
        world.node = credentials
        with pytest.raises(ForbiddenError):
            await anext(world.downloads(world.ports[0]).blob(world.mine))


async def test_another_server_may_have_all_blobs_and_calls_nothing_else(world: World) -> None:
    node, world.node = world.node, world.rig.identities.authority.server()
    for digest in (world.mine, world.other):
        await world.pull(world.ports[0], digest=digest)
        assert world.store.has_image(digest)
    with pytest.raises(NotFoundError):
        await anext(world.downloads(*world.ports).blob(ABSENT))
    channel = world.rig.channel(world.node, world.ports[0].url)
    with pytest.raises(ForbiddenError):
        await TlsNodeUplink(channel).assignments("node_1")
    assert await TlsNodeUplink(world.rig.channel(node, world.ports[0].url)).assignments("node_1")


async def test_whoever_only_has_a_servers_name_is_none(world: World) -> None:
    world.node = world.rig.identities.authority.member_that_names_the_server()
    with pytest.raises(ForbiddenError):
        await anext(world.downloads(world.ports[0]).blob(world.other))


async def test_a_server_whose_certificate_has_ended_has_nothing(world: World) -> None:
    world.node = world.rig.identities.authority.server(life_s=-1.0)
    with pytest.raises((ForbiddenError, UnavailableError)):
        await anext(world.downloads(world.ports[0]).blob(world.mine))


async def test_what_is_no_digest_is_malformed(world: World) -> None:
    for digest in ("", "sha256:0", "sha512:" + "0" * 128, "../etc/passwd", "sha256:" + "G" * 64):
        with pytest.raises((MalformedError, NotFoundError)) as caught:
            await anext(world.downloads(world.ports[0]).blob(digest))
        assert caught.value.code in ("uplink-bad-blob", "uplink-method-unknown")


async def test_a_range_beyond_the_end_is_refused(world: World) -> None:
    size = len(MINE.manifest)
    with pytest.raises(MalformedError) as caught:
        await anext(world.downloads(world.ports[0]).blob(world.mine, size + 1))
    assert caught.value.code == "uplink-bad-range"
    assert [chunk async for chunk in world.downloads(world.ports[0]).blob(world.mine, size)] == []


async def test_a_reader_who_takes_nothing_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "STALL_S", 0.1)
    huge = replace(MINE, blobs={**MINE.blobs, world.large: bytes(64 << 20)})
    world.shelves[0].samples[world.mine] = huge
    got = 0

    async def read_on(chunks: AsyncIterator[bytes]) -> None:
        nonlocal got
        async for chunk in chunks:
            got += len(chunk)

    async with aclosing(world.downloads(world.ports[0]).blob(world.large)) as chunks:
        got += len(await anext(chunks))
        async with asyncio.timeout(20):
            while world.ports[0].connections:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError):
            await read_on(chunks)
    assert 0 < got < 64 << 20
