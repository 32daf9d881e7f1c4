"""A platform of several processes, as on several hosts: server, agent and edge, which know each other by keys alone.

All of them are in one network namespace of this host, so that nothing else of it is in their way: what is shown is who
talks to whom, and not how packets travel.
"""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples.cluster.part import Part
from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.platform import Platform, qemu_processes
from plasmavmc.host.names import installation_key
from tests.real.platform_harness import until

pytestmark = [pytest.mark.real, pytest.mark.nightly]

API, NODES, HTTP, BUS = 17080, 17081, 18080, 14222


@dataclass
class Hosts:
    """The parts, with their directories."""

    root: Path
    prefix: tuple[str, ...]
    parts: dict[str, Part] = field(default_factory=dict)
    nats: subprocess.Popen[bytes] | None = None

    @property
    def operator(self) -> Platform:
        """The command line of whoever administers the platform."""
        return Platform(self.root / "server", self.root / "config", prefix=self.prefix)

    def part(self, name: str, *words: str) -> Part:
        environment = {"XDG_CONFIG_HOME": str(self.root / "config")}
        words = (name, "--data-dir", str(self.root / name), *words)
        marker = b"server is ready" if name == "server" else b"This host is the"
        self.parts[name] = Part(words, marker, self.root / f"{name}.log", self.prefix, environment)
        return self.parts[name]

    def bus(self) -> str:
        """Start a bus; the file with the authority over it."""
        directory = self.root / "bus"
        self.operator.swg("bus", "init", str(directory), "--listen", f"127.0.0.1:{BUS}")
        command = [*self.prefix, "nats-server", "-c", str(directory / "server/nats.conf")]
        self.nats = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return str(directory / "authority.json")

    @property
    def nats_server(self) -> subprocess.Popen[bytes]:
        assert self.nats is not None
        return self.nats

    def joins(self, *flags: str, directory: str) -> str:
        line = self.operator.swg("nodes", "join-token", *flags).split()
        assert line[0] == "swg"
        return self.operator.swg(*line[1:], "--dir", str(self.root / directory))

    def fetch(self, host: str) -> str:
        """A request through the edge; empty where it was not answered well."""
        url = f"http://127.0.0.1:{HTTP}/"
        command = [*self.prefix, "curl", "-sf", "-m", "10", "-H", f"Host: {host}", url]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def vmms(self) -> dict[int, str]:
        return qemu_processes(installation_key((self.root / "agent" / "installation").read_text().strip()))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    name = f"swg-parts-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="swg-test-", ignore_cleanup_errors=True) as place:
        root = Path(place)
        root.chmod(0o755)
        hosts = Hosts(root, ("ip", "netns", "exec", name))
        try:
            yield hosts
        except BaseException:
            for part in hosts.parts.values():
                print(part.words[0], part.log.read_text()[-4000:])
            raise
        finally:
            for part in reversed(hosts.parts.values()):
                with suppress(subprocess.TimeoutExpired):
                    part.stop()
            if hosts.nats is not None:
                hosts.nats.kill()
                hosts.nats.wait()
            subprocess.run(["ip", "netns", "del", name], check=True)


def test_an_app_runs_on_a_host_that_joined_and_is_served_by_an_edge_that_joined(hosts: Hosts) -> None:
    authority = hosts.bus()
    server = hosts.part(
        *("server", "--api-port", str(API), "--node-port", str(NODES)),
        *("--bus-authority-file", authority, "--bus-node-passes"),
    )
    server.start()
    assert "with 10.64.0.0/20" in hosts.joins("--name", "a1", "--region", "north", directory="node")
    assert "is the edge e1" in hosts.joins("--edge", "--name", "e1", directory="edge-dir")
    agent = hosts.part("agent", "--dir", str(hosts.root / "node"))
    agent.start()
    edge = hosts.part(
        "edge", "--dir", str(hosts.root / "edge-dir"), "--http-port", str(HTTP), "--http-listen", "127.0.0.1"
    )
    edge.start()

    swg = hosts.operator
    swg.swg("images", "load", "hello:v1", str(hello("v1")))
    swg.swg("apps", "create", "shop")
    swg.swg("deploy", "-a", "shop", "-i", "hello:v1", "--port", "8080")
    (instance,) = swg.json("vms", "ls", "-a", "shop")
    (node,) = swg.json("nodes", "ls")
    assert (instance["node_id"], node["name"], node["region"]) == (node["id"], "a1", "north")
    until(lambda: swg.json("nodes", "ls")[0]["hints"] == "bus", "the node listens on the bus by a pass of its own")
    assert "v1" in hosts.fetch("shop.localhost")
    assert swg.swg("exec", "-a", "shop", "--", "echo", "over the link").strip() == "over the link"

    before = hosts.vmms()
    assert before
    assert server.stop() == 0
    assert "v1" in hosts.fetch("shop.localhost"), "the edge serves on without its servers"
    server.start()
    until(lambda: swg.json("nodes", "ls")[0]["health"] == "ready", "the node is heard again")
    assert hosts.vmms() == before, "no VM was touched"
    hosts.nats_server.kill()
    until(lambda: swg.json("nodes", "ls")[0]["hints"] == "link", "without the bus it hears its links")

    key = next(each for each in swg.json("nodes", "keys", "ls") if each["member"] == node["id"])
    swg.swg("nodes", "keys", "revoke", "-y", key["id"])
    until(lambda: swg.json("nodes", "ls")[0]["health"] == "down", "the node is shut out, and so judged down")
    until(lambda: not hosts.vmms(), "it is told so, and stops its VMs")
    assert [each.stop() for each in (edge, agent, server)] == [0, 0, 0]
    for name in ("agent", "edge"):
        assert of_installation(hosts.root / name) == frozenset(), f"{name} leaves nothing on the host"
