"""What an edge is told at its start, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds, as HAProxy counts them (configuration manual, chapter 4.2, `timeout`)."""

    connect: int = 2
    client: int = 60
    """A client that neither sends nor takes anything, in the middle of a request or an answer."""
    server: int = 300
    """An app that is silent: between the request and its answer, or within an answer."""
    request: int = 15
    """A client may take so long to send its headers."""
    keep_alive: int = 60
    tunnel: int = 3600
    """A WebSocket on which nothing passes."""
    hard_stop: int = 600
    """After a reload the old worker finishes what it has, at most so long."""


LOOPBACK = ("127.0.0.0/8", "::1")
"""Whatever comes from here is passed on by a program of this host, such as one that ends TLS."""
_LEAST_SHARE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """One edge of one installation. `run_dir` and `state_dir` belong to the edge alone and exist."""

    name: str
    run_dir: Path
    """Sockets, configuration, maps and pages; lost at a reboot. At most 80 characters, for the sockets in it."""
    state_dir: Path
    """The last routes; kept over a reboot."""
    pool_size: int = 1024
    """Backends declared at the start; doubled by a reload whenever there are more apps."""
    pool_limit: int = 32_768
    max_connections: int = 10_000
    connections_per_source: int = 0
    """Of one client's address, or one /64 of IPv6; more are closed at once. 0: a tenth of all."""
    connections_per_app: int = 0
    """Requests and WebSockets that one app may have open; one more is answered with a page. 0: a quarter of all."""
    balancers: tuple[str, ...] = LOOPBACK
    """Addresses and networks from which everybody comes, which are no one client's."""
    threads: int = 0
    """HAProxy's threads; 0: one for each core."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    poll_s: float = 1.0
    """Ask for routes and report so often, hint or not."""
    drain_poll_s: float = 0.25
    """Look so often at sessions that are awaited."""
    observe_s: float = 5.0
    """Compare all of HAProxy's servers and maps with the routes so often."""
    unresponsive_s: float = 15.0
    """A HAProxy that does not answer for so long is ended and built anew."""
    stop_grace_s: float = 10.0
    """At a graceful stop, requests in flight have so long."""

    @property
    def source_share(self) -> int:
        """Connections of one source, at most."""
        return self.connections_per_source or max(self.max_connections // 10, _LEAST_SHARE)

    @property
    def app_share(self) -> int:
        """Requests and WebSockets of one app, at most."""
        return self.connections_per_app or max(self.max_connections // 4, _LEAST_SHARE)


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of an edge's run directory."""

    run_dir: Path

    @property
    def config(self) -> Path:
        return self.run_dir / "haproxy.cfg"

    @property
    def hosts_map(self) -> Path:
        """Host → backend."""
        return self.run_dir / "hosts.map"

    @property
    def pages_map(self) -> Path:
        """Host → page that tells why it is not served."""
        return self.run_dir / "pages.map"

    @property
    def pages_dir(self) -> Path:
        return self.run_dir / "pages"

    @property
    def admin_socket(self) -> Path:
        """The runtime API of the current worker."""
        return self.run_dir / "admin.sock"

    @property
    def master_socket(self) -> Path:
        """The master's own commands, and every worker's runtime API by pid."""
        return self.run_dir / "master.sock"

    @property
    def relay_socket(self) -> Path:
        """Where a retired worker sends the requests that it still gets; see `config`."""
        return self.run_dir / "relay.sock"
