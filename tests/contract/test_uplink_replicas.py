"""A node downloads what differs of a volume that it keeps a copy of, by the road of memories."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shellwego.api.uplink import server
from shellwego.core.errors import ForbiddenError, MalformedError, NotFoundError, ThrottledError, UnavailableError
from shellwego.core.plans import Rate
from shellwego.core.replicas import marker
from shellwego.drivers.uplink.downloads import Downloads
from shellwego.wire.tls import Credentials
from tests.contract.node_port import Port, Rig

REPLICA = "rep_01j00000000000000000000000"
SNAPSHOT = "snap_01j00000000000000000000000"
CONTENT = bytes(range(256)) * 1024


class Shelf:
    """A server's end."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.breaks = False

    async def replica(self, node_id: str, replica_id: str, snapshot_id: str, since: str) -> AsyncGenerator[bytes]:
        self.asked.append((node_id, replica_id, snapshot_id, since))
        yield CONTENT[:1000]
        if self.breaks:
            raise UnavailableError("stream-closed", "the link to the node was cut")
        yield CONTENT[1000:]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def downloads(credentials: Credentials, *ports: Port) -> Downloads:
    return Downloads(lambda: [port.url for port in ports], lambda: credentials, jitter=lambda: 0.0)


async def fetched(source: Downloads, *names: str) -> bytes:
    replica_id, snapshot_id, since = (*names, "")[:3]
    async with aclosing(source.replica("node_1", replica_id, snapshot_id, since)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_it_comes_whole_for_the_node_whose_key_it_is_and_says_what_it_differs_from(
    rig: Rig, shelf: Shelf
) -> None:
    source = downloads(rig.identities.node("node_7"), rig.port(replicas=shelf))
    assert await fetched(source, REPLICA, SNAPSHOT) == CONTENT
    assert await fetched(source, REPLICA, marker(REPLICA, 2), marker(REPLICA, 1)) == CONTENT
    assert shelf.asked == [
        ("node_7", REPLICA, SNAPSHOT, ""),
        ("node_7", REPLICA, marker(REPLICA, 2), marker(REPLICA, 1)),
    ]


async def test_one_that_breaks_off_is_told_and_not_gone_on_with_elsewhere(rig: Rig, shelf: Shelf) -> None:
    shelf.breaks, other = True, Shelf()
    source = downloads(rig.identities.node(), rig.port(replicas=shelf), rig.port(replicas=other))
    with pytest.raises(UnavailableError):
        await fetched(source, REPLICA, SNAPSHOT)
    assert (len(shelf.asked), other.asked) == (1, [])


@pytest.mark.parametrize(
    "names",
    [
        ("rep_1", SNAPSHOT),
        (REPLICA, "../secrets"),
        (REPLICA, "vol_01j00000000000000000000000"),
        (REPLICA, f"{REPLICA}_0"),
        (REPLICA, SNAPSHOT, "x"),
    ],
)
async def test_what_names_none_is_malformed(rig: Rig, shelf: Shelf, names: tuple[str, ...]) -> None:
    with pytest.raises((MalformedError, NotFoundError)) as caught:
        await fetched(downloads(rig.identities.node(), rig.port(replicas=shelf)), *names)
    assert caught.value.code in ("uplink-bad-replica", "uplink-method-unknown")
    assert shelf.asked == []


async def test_an_edge_and_a_retired_key_get_nothing_and_a_server_without_them_says_so(rig: Rig, shelf: Shelf) -> None:
    port, retired = rig.port(replicas=shelf), rig.identities.node()
    rig.identities.retire(retired)
    for credentials in (rig.identities.edge(), retired):
        with pytest.raises(ForbiddenError):
            await fetched(downloads(credentials, port), REPLICA, SNAPSHOT)
    with pytest.raises(NotFoundError) as unknown:
        await fetched(downloads(rig.identities.node(), rig.port()), REPLICA, SNAPSHOT)
    assert (unknown.value.code, shelf.asked) == ("uplink-method-unknown", [])


async def test_it_is_asked_for_so_often_only(rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REPLICAS", Rate(per_minute=1, burst=1))
    source = downloads(rig.identities.node(), rig.port(replicas=shelf))
    await fetched(source, REPLICA, SNAPSHOT)
    with pytest.raises(ThrottledError):
        await fetched(source, REPLICA, SNAPSHOT)
