"""`scripts/cluster-demo`: three hosts, told and asserted as it goes; the exit code tells.

The first host is server, edge and node in one (`swg up`), the others joined it. Requests are made on the first, so this
program runs itself a second time there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from examples.cluster.network import Host, Switch
from examples.cluster.node import JoinedNode
from examples.demo.__main__ import StoryError, expect, fetch, show, tell, wait_until
from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.load import Journal, Load
from examples.demo.platform import CommandFailed, NotReady, Platform, qemu_processes

APP = "shop"
HOST = "shop.localhost"
NODE_PORT = 7081
FIRST, SECOND, THIRD = "one", "two", "three"
REPLACED_S = 20.0
"""From the death of a host to as many healthy instances as before, a boot without hardware acceleration included."""
SILENCE_S = 4.0
"""The longest that nobody may be served when a host dies: connections to it end by their time-out."""


class Cluster:
    """The platform on the first host, and the nodes that joined it."""

    def __init__(self, root: Path, hosts: list[Host], switch: Switch) -> None:
        first, *others = hosts
        self.switch = switch
        flags = ("--node-port", str(NODE_PORT), "--node-listen", first.address)
        self.platform = Platform(root / first.name, root / "config", extra=flags)
        self.nodes = {host.name: JoinedNode(host, root) for host in others}

    def tell_all(self) -> None:
        self.join()
        self.spread()
        self.lose_a_host()
        self.get_it_back()
        self.empty_a_node()
        self.kill_the_control_plane()

    def join(self) -> None:
        tell("two hosts join with a token each")
        for name, node in self.nodes.items():
            show(node.join(self.platform.swg("nodes", "join-token", "--name", name)))
            node.start()
        wait_until(lambda: self._ready() == 3, 60, "three nodes that are ready")
        show(self.platform.swg("nodes", "ls"))

    def spread(self) -> None:
        tell("deploy three instances")
        self.platform.swg("images", "load", "hello:v1", str(hello("v1")))
        self.platform.swg("apps", "create", APP)
        show(self.platform.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz"))
        show(self.platform.swg("scale", "-a", APP, "web=3"))
        wait_until(lambda: self._healthy().total() == 3, 120, "three healthy instances")
        show(self.platform.swg("status", "-a", APP))
        expect(set(self._healthy()) == {"local", SECOND, THIRD}, "each host has one of them")
        answered: set[str] = set()
        wait_until(
            lambda: self._answers_of(answered) == 3, 30, "answers of all three through the edge of the first host"
        )
        expect(True, "the edge serves from the microVMs of all hosts")

    def lose_a_host(self) -> None:
        tell(f"host {SECOND} dies under load: its processes are killed, its cable is cut")
        node = self.nodes[SECOND]
        with Load(self.platform.http_port, HOST, posts=False) as load:
            time.sleep(1)
            self.switch.unplug(node.host)
            node.die()
            down = wait_until(lambda: self._health(SECOND) == "down", 30, "the platform notices")
            replaced = down + wait_until(lambda: self._healthy().total() == 3, 60, "three healthy instances again")
            time.sleep(1)
        show(load.journal.summary())
        show(f"judged down after {down:.1f} s, three healthy instances again after {replaced:.1f} s")
        expect(SECOND not in self._healthy(), "none of them is on the lost host")
        expect(replaced <= REPLACED_S, f"replaced within {REPLACED_S:g} s")
        silence = _longest_silence(load.journal)
        expect(
            silence <= SILENCE_S,
            f"requests were served throughout; the longest pause between two answers: {silence:.1f} s",
        )

    def get_it_back(self) -> None:
        tell(f"host {SECOND} comes back")
        node = self.nodes[SECOND]
        self.switch.plug(node.host)
        node.start()
        wait_until(lambda: self._health(SECOND) == "ready", 60, "the node is ready again")
        show(self.platform.swg("nodes", "ls"))
        expect(not node.vmms(), "nothing of what it ran before is there")

    def empty_a_node(self) -> None:
        tell(f"drain {THIRD} under load")
        with Load(self.platform.http_port, HOST) as load:
            time.sleep(1)
            show(self.platform.swg("nodes", "drain", THIRD, "-y"))
            wait_until(lambda: self._node(THIRD)["scheduling"] == "drained", 120, "the node is empty")
            time.sleep(1)
        show(load.journal.summary())
        for sample in load.journal.failed[:5]:
            show(f"failed: {sample}")
        expect(not load.journal.failed, "no request failed")
        expect(THIRD not in self._healthy() and self._healthy().total() == 3, "three instances serve elsewhere")
        wait_until(lambda: not self.nodes[THIRD].vmms(), 60, "no microVM is left there")

    def kill_the_control_plane(self) -> None:
        tell("kill the control plane with -9, and start it again")
        before = self._vmms()
        with Load(self.platform.http_port, HOST) as load:
            time.sleep(1)
            self.platform.kill()
            time.sleep(5)
            show(f"ready again after {self.platform.start():.1f} s")
            wait_until(lambda: self._ready() >= 2, 60, "the nodes are heard again")
            time.sleep(2)
        show(load.journal.summary())
        for sample in load.journal.failed[:5]:
            show(f"failed: {sample}")
        expect(not load.journal.failed, "no request failed")
        expect(self._vmms() == before, "the same microVMs run as before")

    def _vmms(self) -> set[int]:
        return {pid for node in self.nodes.values() for pid in node.vmms()} | set(qemu_processes(self.platform.key))

    def _node(self, name: str) -> dict[str, str]:
        found: dict[str, str] = next(node for node in self.platform.json("nodes", "ls") if node["name"] == name)
        return found

    def _health(self, name: str) -> str:
        return self._node(name)["health"]

    def _ready(self) -> int:
        return sum(node["health"] == "ready" for node in self.platform.json("nodes", "ls"))

    def _healthy(self) -> Counter[str]:
        """How many healthy instances each node has."""
        names = {node["id"]: node["name"] for node in self.platform.json("nodes", "ls")}
        instances = self.platform.json("status", "-a", APP)["instances"]
        return Counter(names[each["node_id"]] for each in instances if each["phase"] == "healthy")

    def _answers_of(self, answered: set[str]) -> int:
        answered.add(fetch(self.platform.http_port, host=HOST)[1].split(" on ")[-1])
        return len(answered)


def _longest_silence(journal: Journal) -> float:
    """The longest time without a good answer."""
    ends = sorted(sample.at for sample in journal.samples if sample.status == 200)
    return max((after - before for before, after in pairwise(ends)), default=0.0)


def outside() -> int:
    """Make the hosts, and run the story on the first of them."""
    with tempfile.TemporaryDirectory(prefix="swg-cluster-", ignore_cleanup_errors=True) as root, Switch() as switch:
        Path(root).chmod(0o755)
        hosts = [switch.add(name) for name in (FIRST, SECOND, THIRD)]
        names = [word for host in hosts for word in (host.name, host.namespace, host.address, host.port)]
        command = [*hosts[0].enter, sys.executable, "-m", "examples.cluster", root, switch.namespace, *names]
        return subprocess.run(command, check=False).returncode


def inside(root: Path, switch: Switch) -> int:
    """The story, on the first host."""
    cluster = Cluster(root, switch.hosts, switch)
    code, left = 1, frozenset[str]()
    try:
        tell("start the platform on the first host")
        show(f"ready after {cluster.platform.start():.1f} s")
        cluster.tell_all()
        code = 0
    except (StoryError, CommandFailed, NotReady) as error:
        print(f"\ncluster-demo: FAILED: {error}", file=sys.stderr)
        for log in (cluster.platform.log, *(node.log for node in cluster.nodes.values())):
            with suppress(FileNotFoundError):
                print(f"--- {log}\n{log.read_text()[-4000:]}", file=sys.stderr)
    finally:
        tell("stop everything")
        ended = [node.stop() for node in cluster.nodes.values()] + [cluster.platform.stop()]
        show(f"exit codes: {ended}")
    for directory in (cluster.platform.data_dir, *(node.data_dir for node in cluster.nodes.values())):
        if (directory / "installation").exists():
            left |= of_installation(directory)
    if left:
        print("cluster-demo: FAILED: left behind:\n  " + "\n  ".join(sorted(left)), file=sys.stderr)
    passed = code == 0 and not left and not any(ended)
    print("\ncluster-demo: " + ("all steps passed, nothing is left behind" if passed else "FAILED"), flush=True)
    return 0 if passed else 1


def main() -> int:
    if len(sys.argv) == 1:
        return outside()
    root, namespace, *words = sys.argv[1:]
    hosts = [Host(*words[at : at + 4]) for at in range(0, len(words), 4)]
    return inside(Path(root), Switch(namespace, hosts))


if __name__ == "__main__":
    sys.exit(main())
