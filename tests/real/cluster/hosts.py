"""A whole platform on one machine: three servers on PostgreSQL and NATS, three nodes with real VMs, two of them edges too,
and a host of its clients with a balancer for the API. Each host is a network namespace on one switch.
"""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from examples.cluster.network import Host, Switch
from examples.cluster.node import Joined, JoinedEdge, JoinedNode
from examples.cluster.part import Part
from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.platform import Platform
from shellwego.client.context import Context, ContextFile, save
from shellwego.drivers.busaccess.natsserver import self_signed
from tests.contract.nats_server import NatsServer, running_nats
from tests.contract.postgres_server import PostgresServer, running_postgres
from tests.real.cluster.api import Api
from tests.real.cluster.balancer import running_balancer
from tests.real.cluster.clocks import Clock, build_library
from tests.real.platform_harness import until

API, NODES, HTTP, BALANCED = 7080, 7081, 80, 7443
APP, APP_HOST = "shop", "shop.localhost"
INSTANCES = 3
LEAVE_S = 3
"""A server that is asked to end is not ready for so long first; the balancer asks twice a second."""
DISK_BYTES = 6 << 30
LIBRARY = "clock.so"


@dataclass(slots=True)
class Server:
    """A control plane, and its host."""

    host: Host
    data_dir: Path
    part: Part
    clock: Clock

    @property
    def holder(self) -> str:
        """By which name it holds leases."""
        return (self.data_dir / "installation").read_text().strip()


@dataclass
class Cluster:
    """All of it; `operator` administers it through the balancer."""

    root: Path
    switch: Switch
    store: Host
    client: Host
    postgres: PostgresServer
    nats: NatsServer
    database: str
    operator: Platform
    servers: list[Server] = field(default_factory=list)
    nodes: list[JoinedNode] = field(default_factory=list)
    clocks: list[Clock] = field(default_factory=list)
    """Those of the nodes."""
    edges: list[JoinedEdge] = field(default_factory=list)

    @property
    def api(self) -> Api:
        """The API through the balancer."""
        return Api(self.client.address, BALANCED, self.token)

    @property
    def token(self) -> str:
        return (self.servers[0].data_dir / "admin-token").read_text().strip()

    def sql(self, statement: str, *values: str) -> list[tuple[object, ...]]:
        """Ask the database, past the platform."""
        with psycopg.connect(self.postgres.url(self.database), autocommit=True) as connection:
            return connection.execute(statement.encode(), values or None).fetchall()

    def leader(self) -> Server:
        """The server that judges nodes."""
        ((holder,),) = self.sql("SELECT holder FROM leases WHERE id = 'loop.nodes'")
        return next(server for server in self.servers if server.holder == holder)

    def follower(self) -> Server:
        """One that does not."""
        leader = self.leader()
        return next(server for server in self.servers if server is not leader)

    def parts(self) -> list[Part]:
        return [*self.edges, *self.nodes, *(server.part for server in self.servers)]

    def logs(self) -> str:
        """The end of everybody's log."""
        found = [part.log for part in self.parts()] + [self.postgres.directory / "log"]
        return "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for log in found if log.exists())


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A platform that serves an app with an instance on each node. This thread is on the clients' host, within."""
    with running_servers("s1", "s2", "s3") as cluster, _disk(cluster.root / "n3"), ExitStack() as stack:
        stack.callback(_take_down, cluster)
        _join(cluster, ("n1", "n2", "n3"), edges=2)
        _deploy(cluster, INSTANCES)
        yield cluster


@contextmanager
def running_pair(*flags: str) -> Iterator[Cluster]:
    """A platform of one server and two nodes with these flags, an edge on the first, and an instance of the app on each."""
    with running_servers("s1") as cluster, ExitStack() as stack:
        stack.callback(_take_down, cluster)
        _join(cluster, ("n1", "n2"), *flags, edges=1)
        _deploy(cluster, 2)
        yield cluster


@contextmanager
def running_servers(*names: str) -> Iterator[Cluster]:
    """A platform without nodes, likewise. Its last server has a disk of its own."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swg-cluster-", ignore_cleanup_errors=True)))
        root.chmod(0o755)
        build_library(root / LIBRARY)
        stack.enter_context(_disk(root / names[-1]))
        switch = stack.enter_context(Switch())
        store, client = switch.add("store"), switch.add("client")
        with store.entered():
            postgres = stack.enter_context(running_postgres(store.address))
            nats = stack.enter_context(running_nats(store.address))
        operator = Platform(root / "operator", root / "config")
        cluster = Cluster(root, switch, store, client, postgres, nats, postgres.new_database().name, operator)
        stack.enter_context(client.entered())
        try:
            stack.enter_context(_serving(cluster, names))
            yield cluster
        except BaseException:
            print(cluster.logs())
            raise


@contextmanager
def _serving(cluster: Cluster, names: tuple[str, ...]) -> Iterator[None]:
    """All servers, behind a balancer."""
    hosts = [cluster.switch.add(name) for name in names]
    flags = _common_flags(cluster, hosts)
    cluster.servers = [_server(cluster, host, flags) for host in hosts]
    with ExitStack() as stack:
        for server in cluster.servers:
            stack.callback(server.part.kill)
            server.part.start()
        addresses = {server.host.name: f"{server.host.address}:{API}" for server in cluster.servers}
        stack.enter_context(running_balancer(cluster.root, cluster.client.address, BALANCED, addresses))
        _administer(cluster)
        yield


def _administer(cluster: Cluster) -> None:
    """Give the operator a context."""
    url, authority = f"https://{cluster.client.address}:{BALANCED}", str(cluster.root / "api.pem")
    context = Context(name="cluster", api_url=url, token=cluster.token, ca_file=authority)
    save(cluster.root / "config/shellwego/config.toml", ContextFile().put(context, make_current=True))
    until(cluster.api.answers, "the balancer has found a server")


def _server(cluster: Cluster, host: Host, flags: tuple[str, ...]) -> Server:
    data_dir = cluster.root / host.name
    words = ("server", "--data-dir", str(data_dir), "--api-listen", host.address, "--api-port", str(API))
    words += ("--node-listen", host.address, "--node-port", str(NODES), *flags)
    clock = _clock(cluster, host)
    environment = {"XDG_CONFIG_HOME": str(cluster.root / f"{host.name}-config"), **clock.environment}
    part = Part(words, b"server is ready", cluster.root / f"{host.name}.log", host.enter, environment)
    return Server(host, data_dir, part, clock)


def _clock(cluster: Cluster, host: Host) -> Clock:
    return Clock(cluster.root / LIBRARY, cluster.root / f"{host.name}.clock")


def _common_flags(cluster: Cluster, servers: list[Host]) -> tuple[str, ...]:
    """What all servers share: database, bus, master key, and the certificate of the API."""
    root = cluster.root
    names = [cluster.client.address, *(host.address for host in servers)]
    certificate, key = self_signed(names, time.time())
    (root / "api.pem").write_bytes(certificate)
    (root / "api.key").write_bytes(key)
    (root / "api.key").chmod(0o644)  # the platform's own user reads it
    secret, keys = root / "database-url", root / "master-keys"
    for path in (secret, keys):
        path.touch(0o600)
    secret.write_text(f"postgresql://postgres@{cluster.store.address}:5432/{cluster.database}")
    keys.write_bytes(base64.b64encode(os.urandom(32)))
    pairs = {
        "--api-cert": root / "api.pem",
        "--api-key": root / "api.key",
        "--database-url-file": secret,
        "--bus-authority-file": cluster.nats.directory / "authority.json",
        "--master-keys-file": keys,
        "--shutdown-delay": LEAVE_S,
    }
    urls = [word for host in servers for word in ("--node-url", f"https://{host.address}:{NODES}")]
    return (*(str(word) for pair in pairs.items() for word in pair), *urls)


def _join(cluster: Cluster, names: tuple[str, ...], *flags: str, edges: int) -> None:
    """Nodes with these flags, and edges on the first of their hosts."""
    hosts = [cluster.switch.add(name) for name in names]
    nodes = [JoinedNode(host, cluster.root, "--keep-vms", *flags) for host in hosts]
    joined = [JoinedEdge(host, cluster.root, "--keep", "--http-port", str(HTTP)) for host in hosts[:edges]]
    for node in nodes:
        node.join(cluster.operator.swg("nodes", "join-token", "--name", node.name))
        clock = _clock(cluster, node.host)
        node.environment = clock.environment
        node.start()
        cluster.nodes.append(node)
        cluster.clocks.append(clock)
    for edge in joined:
        edge.join(cluster.operator.swg("nodes", "join-token", "--edge", "--name", edge.name))
        edge.start()
        cluster.edges.append(edge)


def _deploy(cluster: Cluster, instances: int) -> None:
    operator = cluster.operator
    operator.swg("images", "load", "hello:v1", str(hello("v1")))
    operator.swg("apps", "create", APP)
    operator.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")
    operator.swg("scale", "-a", APP, f"web={instances}")


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A file system of its own for a data directory, so that it can be full where others are not."""
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    place.mkdir(mode=0o755)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


def fill(place: Path) -> Path:
    """Leave no room on the file system of a place; what takes it."""
    file = place / "full"
    with file.open("wb") as stream:
        status = os.statvfs(place)
        with suppress(OSError):
            os.posix_fallocate(stream.fileno(), 0, status.f_bfree * status.f_frsize)
        with suppress(OSError):
            while stream.write(b"0" * (1 << 20)):
                stream.flush()
    return file


def _take_down(cluster: Cluster) -> None:
    """End everything, with the VMs and HAProxies that the parts were told to keep; nothing may be left on the machine."""
    joined: list[Joined] = [*cluster.edges, *cluster.nodes]
    for part in joined:
        part.kill()
        part.words = tuple(word for word in part.words if word not in ("--keep", "--keep-vms"))
        part.start()
        code = part.stop()
        assert code == 0, f"{part.name} ended with {code}"
    left = sorted(f"{part.name}: {name}" for part in joined for name in of_installation(part.data_dir))
    assert not left, f"left behind: {left}"
