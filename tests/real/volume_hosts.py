"""Three hosts, each a network namespace: the first is server and edge, and the two others are nodes with real VMs and real
volumes, of which either can die, be cut off, and come back. On one of them runs an app that writes to its volume all the
time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.cluster.network import Switch
from examples.cluster.node import JoinedNode
from examples.demo.images import base
from examples.demo.leftovers import of_installation
from examples.demo.platform import Platform
from tests.contract.images_samples import entry, image, layer, oci_layout
from tests.real.platform_harness import api, instances, until
from tests.real.recording import Recorder

NODE_PORT = 7081
APP, COPY_APP = "shop", "reader"
IMAGE = "recorder:v1"
_PROGRAM = Path(__file__).with_name("recorder_app.py")


@dataclass
class VolumeHosts:
    platform: Platform
    switch: Switch
    nodes: dict[str, JoinedNode]
    recorder: Recorder

    def swg(self, *words: str) -> str:
        return self.platform.swg(*words)

    def volume(self, name: str = "data") -> dict[str, Any]:
        found: dict[str, Any] = api(self.platform, f"volumes/{name}")
        return found

    def snapshots(self) -> dict[str, str]:
        """States of the volume's snapshots."""
        return {each["id"]: each["state"] for each in api(self.platform, "volumes/data/snapshots")["data"]}

    def on_standby(self) -> dict[str, bool | None]:
        """Of each snapshot, whether the standby copy has it."""
        return {each["id"]: each["on_standby"] for each in api(self.platform, "volumes/data/snapshots")["data"]}

    @property
    def home(self) -> JoinedNode:
        """The node where the volume is."""
        return self.nodes[self.volume()["node"]]

    @property
    def other(self) -> JoinedNode:
        """The one where it is not."""
        (found,) = (node for node in self.nodes.values() if node is not self.home)
        return found

    def stored(self, node: JoinedNode, name: str = "data") -> bool:
        """Whether anything of a volume is on a node's disk."""
        return (node.data_dir / "volumes" / self.volume(name)["id"]).exists()

    def deploy(self, app: str, volume: str) -> None:
        """Have an app that records on this volume."""
        deploy_recorder(self.platform, app, volume)

    def recorder_of(self, app: str) -> Recorder:
        return Recorder(self.platform.http_port, f"{app}.localhost")

    def serves(self) -> bool:
        """The app has one instance, which is healthy, and where the volume is."""
        found = [(each["phase"], each["node_id"]) for each in instances(self.platform, APP)]
        home = self.volume()["node"]
        return found == [("healthy", self._id(home))] and self.volume()["state"] == "attached"

    def health(self, node: JoinedNode) -> str:
        return str(self._node(node.name)["health"])

    def _node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in api(self.platform, "nodes")["data"] if each["name"] == name)
        return found

    def _id(self, name: str) -> str:
        return str(self._node(name)["id"])


@contextmanager
def volume_hosts(*flags: str) -> Iterator[VolumeHosts]:
    """All of it, with the app serving; the nodes have these flags. This thread is on the first host, within; nothing is left
    afterwards."""
    base()  # once it is fetched, from a network that these hosts have not
    with tempfile.TemporaryDirectory(prefix="swg-volumes-", ignore_cleanup_errors=True) as name, Switch() as switch:
        root = Path(name)
        root.chmod(0o755)
        first, *others = (switch.add(each) for each in ("one", "two", "three"))
        with first.entered():
            listens = ("--node-port", str(NODE_PORT), "--node-listen", first.address)
            platform = Platform(root / first.name, root / "config", extra=listens)
            nodes = {host.name: JoinedNode(host, root, *flags) for host in others}
            hosts = VolumeHosts(platform, switch, nodes, Recorder(platform.http_port, f"{APP}.localhost"))
            try:
                _begin(hosts, root)
                yield hosts
            except BaseException:
                for log in (platform.log, *(node.log for node in nodes.values())):
                    print(f"--- {log}\n{log.read_text()[-4000:] if log.exists() else ''}")
                raise
            finally:
                _take_down(hosts)


def load_recorder(platform: Platform, scratch: Path) -> None:
    """Have the platform know the app that records, as `IMAGE`."""
    program = layer(entry("app/app.py", _PROGRAM.read_bytes(), mode=0o644))
    config = {"Entrypoint": ["/usr/bin/python3", "/app/app.py"], "Env": ["PATH=/usr/bin:/bin"], "User": "nobody"}
    made = scratch / "recorder.tar"
    made.write_bytes(oci_layout(image(base().read_bytes(), program, compress="none", config=config), IMAGE))
    platform.swg("images", "load", IMAGE, str(made))


def deploy_recorder(platform: Platform, app: str, volume: str) -> None:
    """Have an app that records on this volume."""
    platform.swg("apps", "create", app)
    platform.swg("volumes", "attach", volume, "-a", app, "--path", "/data")
    platform.swg("deploy", "-a", app, "-i", IMAGE, "--port", "8080", "--check-path", "/healthz")


def _begin(hosts: VolumeHosts, root: Path) -> None:
    hosts.platform.start()
    for node in hosts.nodes.values():
        node.join(hosts.swg("nodes", "join-token", "--name", node.name))
        node.start()
    until(lambda: all(hosts.health(node) == "ready" for node in hosts.nodes.values()), "both nodes are ready")
    hosts.swg("nodes", "cordon", "local")
    load_recorder(hosts.platform, root)
    hosts.swg("volumes", "create", "data", "--size", "64m")
    hosts.deploy(APP, "data")
    until(hosts.recorder.answers, "the app records")


def _take_down(hosts: VolumeHosts) -> None:
    """Whoever died comes back first, and clears away what was left of it."""
    for node in hosts.nodes.values():
        if node.process is None and node.data_dir.exists():
            hosts.switch.plug(node.host)
            node.start()
    codes = {part.name: part.stop() for part in hosts.nodes.values()} | {"server": hosts.platform.stop()}
    places = [hosts.platform.data_dir, *(node.data_dir for node in hosts.nodes.values())]
    left = sorted(name for place in places if (place / "installation").exists() for name in of_installation(place))
    assert not left, f"left behind: {left}"
    assert not any(codes.values()), f"ended with {codes}"


def shown(hosts: VolumeHosts, *words: str) -> Any:
    """What a command says of volumes, as a document."""
    return json.loads(hosts.swg("volumes", *words, "--json"))
