"""A plain balancer in front of the servers' API: a HAProxy of the test's own that passes TCP and asks `/readyz`.

It does not end the connections of a server that is not ready: one that is about to end still answers on them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_CONFIG = """\
global
    stats socket {socket} mode 600 level admin
defaults
    mode tcp
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    retries 3
    option redispatch 1
listen api
    bind {address}:{port}
    balance roundrobin
    option httpchk GET /readyz
    timeout check 5s
    default-server check check-ssl verify none inter 500ms fall 2 rise 1
{servers}
"""


@contextmanager
def running_balancer(directory: Path, address: str, port: int, servers: Mapping[str, str]) -> Iterator[None]:
    """Passes what comes at `address:port` to these servers (name → address and port)."""
    config, socket = directory / "balancer.cfg", directory / "balancer.sock"
    lines = "\n".join(f"    server {name} {where}" for name, where in servers.items())
    config.write_text(_CONFIG.format(socket=socket, address=address, port=port, servers=lines))
    with (directory / "balancer.log").open("ab") as log:
        process = subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert process.poll() is None, (directory / "balancer.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()
