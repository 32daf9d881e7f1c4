"""The faults: each is a context in which it lasts, and which heals it. What it yields tells whether the platform has
noticed; None, where there is nothing that it should.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from examples.cluster.network import Way
from examples.cluster.part import Part
from tests.real.cluster.clocks import Clock
from tests.real.cluster.hosts import APP, Cluster, Server, fill
from tests.real.cluster.journal import API_CLIENTS, CONNECTIONS

PAUSE_S, CUT_S = 10.0, 12.0
HOUR_S = 3600
BALANCED_S = 1.5
"""Within which the balancer sends requests to a server that is ready."""
RESTART_S = 1.0
"""After so long a supervisor starts again what died (`RestartSec` of the units)."""
LEAD_S, NODE_S = 3.0, 5.0
"""Within which the platform says to notice: a leader that is gone, a node that is silent."""
SLACK_S = 4.0
"""What a machine shared with others may add to that."""

Noticed = Callable[[], bool] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What befalls the platform, and what of it clients may feel."""

    name: str
    befall: Callable[[Cluster], AbstractContextManager[Noticed]]
    noticed_s: float = 0.0
    by_silence: bool = False
    """It is noticed by who leads, and has done so that long; after twice the time where leases changed hands meanwhile."""
    app_failures: int = 0
    """Requests to the app that may fail."""
    api_failures: int | None = 0
    """Requests to the API that may fail; None: as many as there are while the fault lasts."""
    vms_may_go: bool = False
    """Else each VM has to live on. With one go the last lines that it wrote, and so what a POST left there."""
    logs_may_go: bool = False
    """An app never waits for its log: what finds no room is dropped, and counted."""

    @property
    def lines_may_go(self) -> bool:
        """Whether what a POST left in a log may be gone."""
        return self.vms_may_go or self.logs_may_go


@contextmanager
def killed(part: Part) -> Iterator[None]:
    """Killed with -9; at the end started as a supervisor would."""
    part.kill()
    yield
    part.start()


@contextmanager
def _leader_killed(cluster: Cluster) -> Iterator[Noticed]:
    leader = cluster.leader()
    with killed(leader.part):
        yield lambda: cluster.leader() is not leader


@contextmanager
def _follower_killed(cluster: Cluster) -> Iterator[Noticed]:
    with killed(cluster.follower().part):
        yield None
        time.sleep(RESTART_S)


@contextmanager
def _agent_killed(cluster: Cluster) -> Iterator[Noticed]:
    with killed(cluster.nodes[2]):
        yield None
        time.sleep(RESTART_S)


@contextmanager
def _edge_killed(cluster: Cluster) -> Iterator[Noticed]:
    with killed(cluster.edges[0]):
        yield None
        time.sleep(RESTART_S)


@contextmanager
def _vmm_killed(cluster: Cluster) -> Iterator[Noticed]:
    before = _healthy(cluster)
    os.kill(next(iter(cluster.nodes[1].vmms() or cluster.nodes[0].vmms())), signal.SIGKILL)
    yield lambda: _healthy(cluster) != before


def _healthy(cluster: Cluster) -> list[tuple[object, ...]]:
    statement = (
        "SELECT i.id FROM instances i JOIN apps a ON a.id = i.app_id"
        " WHERE a.name = %s AND i.phase = 'healthy' ORDER BY i.id"
    )
    return cluster.sql(statement, APP)


@contextmanager
def _leader_paused(cluster: Cluster) -> Iterator[Noticed]:
    leader = cluster.leader()
    with _paused(leader.part.signal):
        yield lambda: cluster.leader() is not leader


@contextmanager
def _agent_paused(cluster: Cluster) -> Iterator[Noticed]:
    with _paused(cluster.nodes[2].signal):
        yield lambda: _is_down(cluster)


@contextmanager
def _bus_paused(cluster: Cluster) -> Iterator[Noticed]:
    assert cluster.nats.process is not None
    with _paused(cluster.nats.process.send_signal):
        yield None


@contextmanager
def _database_paused(cluster: Cluster) -> Iterator[Noticed]:
    with _paused(cluster.postgres.send):
        yield None


@contextmanager
def _paused(send: Callable[[signal.Signals], None]) -> Iterator[None]:
    began = time.monotonic()
    send(signal.SIGSTOP)
    try:
        yield
        time.sleep(max(0.0, began + PAUSE_S - time.monotonic()))
    finally:
        send(signal.SIGCONT)


def _is_down(cluster: Cluster) -> bool:
    return cluster.sql("SELECT health FROM nodes WHERE name = %s", cluster.nodes[2].name) == [("down",)]


def _cut(*ways: Way) -> Callable[[Cluster], AbstractContextManager[Noticed]]:
    @contextmanager
    def befall(cluster: Cluster) -> Iterator[Noticed]:
        host, began = cluster.nodes[2].host, time.monotonic()
        host.cut(*ways)
        try:
            yield lambda: _is_down(cluster)
            time.sleep(max(0.0, began + CUT_S - time.monotonic()))
        finally:
            host.mend()

    return befall


@contextmanager
def _slow(cluster: Cluster) -> Iterator[Noticed]:
    host = cluster.nodes[2].host
    host.slow()
    try:
        yield None
        time.sleep(PAUSE_S)
    finally:
        host.mend()


@contextmanager
def _bus_restarted(cluster: Cluster) -> Iterator[Noticed]:
    cluster.nats.kill()
    yield None
    time.sleep(2)
    with cluster.store.entered():
        cluster.nats.start()


@contextmanager
def _database_restarted(cluster: Cluster) -> Iterator[Noticed]:
    cluster.postgres.stop()
    yield None
    time.sleep(1)
    with cluster.store.entered():
        cluster.postgres.start()


@contextmanager
def _full(cluster: Cluster, owner: str) -> Iterator[Noticed]:
    filler = fill(cluster.root / owner)
    try:
        yield None
        time.sleep(PAUSE_S)
    finally:
        filler.unlink()


def _leader(cluster: Cluster) -> tuple[Part, Clock]:
    return cluster.leader().part, cluster.leader().clock


def _node(cluster: Cluster) -> tuple[Part, Clock]:
    return cluster.nodes[2], cluster.clocks[2]


def _stepped(
    whose: Callable[[Cluster], tuple[Part, Clock]], ahead_s: int
) -> Callable[[Cluster], AbstractContextManager[Noticed]]:
    """A step there, and one back."""

    @contextmanager
    def befall(cluster: Cluster) -> Iterator[Noticed]:
        part, clock = whose(cluster)
        assert all(clock.is_of(pid) for pid in part.processes())
        clock.step(ahead_s)
        try:
            yield None
            time.sleep(PAUSE_S)
        finally:
            clock.step(0)

    return befall


@contextmanager
def _exchanged(cluster: Cluster) -> Iterator[Noticed]:
    yield None
    for server in cluster.servers:
        exchange(server)


def exchange(server: Server) -> None:
    """Ask it to end, and start it again; returns once the balancer uses it again."""
    code = server.part.stop()
    assert code == 0, f"{server.host.name} ended with {code}"
    server.part.start()
    time.sleep(BALANCED_S)


IN_FLIGHT = 2 * CONNECTIONS
"""One request on each connection of both loads."""

FAULTS = (
    Fault(name="servers exchanged one by one", befall=_exchanged),
    Fault(name="server that leads: kill -9", befall=_leader_killed, noticed_s=LEAD_S, api_failures=API_CLIENTS),
    Fault(name="server that does not lead: kill -9", befall=_follower_killed, api_failures=API_CLIENTS),
    Fault(name="agent: kill -9", befall=_agent_killed, vms_may_go=True),
    Fault(name="edge: kill -9", befall=_edge_killed),
    Fault(name="QEMU: kill -9", befall=_vmm_killed, noticed_s=LEAD_S, app_failures=IN_FLIGHT, vms_may_go=True),
    Fault(
        name="server that leads: stands still", befall=_leader_paused, noticed_s=LEAD_S, api_failures=2 * API_CLIENTS
    ),
    Fault(name="agent: stands still", befall=_agent_paused, noticed_s=NODE_S, by_silence=True, vms_may_go=True),
    Fault(name="bus: stands still", befall=_bus_paused),
    Fault(name="database: stands still", befall=_database_paused, api_failures=None),
    Fault(
        name="node cut off",
        befall=_cut(Way.IN, Way.OUT),
        noticed_s=NODE_S,
        by_silence=True,
        app_failures=IN_FLIGHT,
        vms_may_go=True,
    ),
    Fault(
        name="node hears nobody",
        befall=_cut(Way.IN),
        noticed_s=NODE_S,
        by_silence=True,
        app_failures=IN_FLIGHT,
        vms_may_go=True,
    ),
    Fault(
        name="node is heard by nobody",
        befall=_cut(Way.OUT),
        noticed_s=NODE_S,
        by_silence=True,
        app_failures=IN_FLIGHT,
        vms_may_go=True,
    ),
    Fault(name="link of a node: slow, lossy", befall=_slow),
    Fault(name="bus restarted", befall=_bus_restarted),
    Fault(name="database restarted", befall=_database_restarted, api_failures=None),
    Fault(name="node's disk full", befall=lambda cluster: _full(cluster, "n3"), logs_may_go=True),
    Fault(name="clock of who leads: an hour ahead", befall=_stepped(_leader, HOUR_S)),
    Fault(name="clock of who leads: an hour behind", befall=_stepped(_leader, -HOUR_S)),
    Fault(name="clock of a node: an hour ahead", befall=_stepped(_node, HOUR_S)),
    Fault(name="clock of a node: an hour behind", befall=_stepped(_node, -HOUR_S)),
    Fault(name="server's disk full", befall=lambda cluster: _full(cluster, "s3")),
)
