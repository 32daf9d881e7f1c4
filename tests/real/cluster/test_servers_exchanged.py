"""A server is exchanged and one is killed under load, without any node: the short form of `test_cluster_faults`."""

from __future__ import annotations

import pytest

from examples.demo.images import hello
from tests.real.cluster.faults import exchange
from tests.real.cluster.hosts import Server, running_servers
from tests.real.cluster.journal import API_CLIENTS, ApiLoad
from tests.real.platform_harness import until

pytestmark = pytest.mark.real


def stored(server: Server) -> frozenset[str]:
    """Blobs in a server's image store."""
    return frozenset(path.name for path in (server.data_dir / "blobs" / "sha256").glob("*/*"))


def test_no_request_fails_while_a_server_is_exchanged_and_few_where_one_dies() -> None:
    with running_servers("s1", "s2") as cluster:
        with ApiLoad(cluster.api, 1) as load:
            exchange(cluster.leader())
        assert not load.failed
        loaded = cluster.operator.swg("images", "load", "hello:v1", str(hello("v1")))
        assert "hello:v1" in loaded, "all parts of an upload find the same server"
        until(lambda: len({stored(server) for server in cluster.servers}) == 1, "all servers have the image")
        assert stored(cluster.servers[0])
        leader = cluster.leader()
        with ApiLoad(cluster.api, 1_000_000) as worse:
            leader.part.kill()
            until(lambda: cluster.leader() is not leader, "another one leads")
        assert len(worse.failed) <= API_CLIENTS
        assert [asked.answer.status for asked in worse.ask_again()] == [201 for each in worse.failed if each.app]
        names = [name for (name,) in cluster.sql("SELECT name FROM apps")]
        assert sorted(names) == sorted({*load.made(), *worse.made(), *(each.app for each in worse.failed if each.app)})
