"""A host with two installations, VMs that are namespaces on the other end of a tap, and an outside; all of it in namespaces.

A VM's tap is driven as a VMM would: a thread carries frames between its descriptor and a tap inside the VM's namespace,
where the kernel's own stack answers. A jailed VM's tap is made by the helper in a jail, and opened there by `tap_holder`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from time import monotonic

from plasmavmc.host.addresses import GATEWAY
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Limits, TapRequest
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishSite
from plasmavmc.network.backend import NO_NAMES, Attachment, NameService
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.network.ipam import choose_subnet
from plasmavmc.policy import Destination, Egress
from plasmavmc.types import Lease, NetworkSpec, vm_key
from tests.contract.host_rig import Namespace, RealHelper, eventually
from tests.real import tap_holder
from tests.real.tap_holder import SOCKET

OUTSIDE = "192.0.2.2"
HOST_OUTSIDE = "192.0.2.1"
FAR_OUTSIDE, HOST_FAR_OUTSIDE = "198.51.100.2", "198.51.100.1"
METADATA = "169.254.169.254"
ANOTHER_HOST = "10.127.255.1"
"""An address of the pool that all installations share, on a machine elsewhere."""
OUTSIDE6, HOST_OUTSIDE6 = "2001:db8::2", "2001:db8::1"
METADATA6 = "fd00:ec2::254"
PLACES6 = {"outside": OUTSIDE6, "host": HOST_OUTSIDE6, "gateway": f"{GATEWAY}%eth0", "metadata": METADATA6}
LIST = tuple(Destination(IPv4Network(address)) for address in (OUTSIDE, METADATA, ANOTHER_HOST, HOST_OUTSIDE))
"""More than it could open to any VM."""
_PEER = Path(__file__).with_name("network_peer.py")
_TAP_IN_NAMESPACE = """
import fcntl, os, socket, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x0002 | 0x1000 | 0x4000))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [fd])
"""


class Peer:
    """`network_peer.py` in a namespace."""

    def __init__(self, namespace: Namespace, *left_out: int) -> None:
        """`left_out`: ports that others serve there."""
        command = [*namespace.enter, sys.executable, str(_PEER), *map(str, left_out)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready\n"

    def ask(self, order: object) -> object:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def probe(self, kind: str, address: str, source: str = "") -> str:
        (answer,) = self.probes([(kind, address, source)])
        return answer

    def probes(self, orders: list[tuple[str, str, str]]) -> list[str]:
        answers = self.ask({"probe": orders})
        assert isinstance(answers, list)
        return answers

    def seen(self) -> list[str]:
        answers = self.ask({"seen": None})
        assert isinstance(answers, list)
        return answers

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class Wire(threading.Thread):
    """Carries frames between pairs of descriptors, as a VMM does."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ends: dict[int, int] = {}
        self._wake, self._waker = os.pipe()
        self._stopped = False
        self.start()

    def join_ends(self, one: int, other: int) -> None:
        self._ends |= {one: other, other: one}
        os.write(self._waker, b"x")

    def stop(self) -> None:
        self._stopped = True
        os.write(self._waker, b"x")
        self.join(5)
        for fd in (*self._ends, self._wake, self._waker):
            os.close(fd)

    def run(self) -> None:
        while not self._stopped:
            ends = dict(self._ends)
            for fd in select.select([self._wake, *ends], [], [])[0]:
                if fd == self._wake:
                    os.read(fd, 100)
                else:
                    with suppress(OSError):
                        os.write(ends[fd], os.read(fd, 70_000))


async def jailed_tap(helper: RealHelper, key: str, attachment: Attachment) -> tuple[int, int]:
    """A VMM's pid, and the tap that it opened in its jail."""
    await helper.host.uid_take(key)
    sockets = await helper.host.jail_prepare(key, {})
    wanted = TapRequest(attachment.tap, attachment.lease.mac)
    spawned = await helper.host.jail_spawn(key, Limits(256 << 20, 1000), wanted)
    try:
        await eventually(lambda: Path(f"/proc/self/fd/{sockets}/{SOCKET}").exists(), "the VMM has made its socket")
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(20)
            asking.connect(f"/proc/self/fd/{sockets}/{SOCKET}")
            (tap,) = socket.recv_fds(asking, 1, 1)[1]
        return spawned.pid, tap
    finally:
        for fd in (sockets, spawned.pidfd, spawned.stdout):
            os.close(fd)


class Vm:
    """A namespace with an interface that is the other end of a tap, configured as guest init does."""

    def __init__(self, attachment: Attachment, wire: Wire, *left_out: int) -> None:
        """`left_out`: as a `Peer` has it."""
        self.attachment = attachment
        self.ip = str(attachment.lease.ipv4)
        self.namespace = Namespace()
        wire.join_ends(attachment.fd, self._tap())
        gateway = str(attachment.lease.gateway)
        for line in (
            f"link set eth0 address {attachment.lease.mac}",
            "link set eth0 addrgenmode none",
            f"addr add {self.ip}/32 dev eth0",
            "link set eth0 up",
            f"route add {gateway} dev eth0",
            f"route add default via {gateway}",
            *self._private(attachment.lease),
        ):
            self.namespace.run("ip", *line.split())
        self.peer = Peer(self.namespace, *left_out)
        self.vmm = 0
        """Who has opened its tap in a jail."""

    def close(self) -> None:
        self.peer.close()
        self.namespace.close()

    @property
    def ipv6(self) -> str:
        return str(self.attachment.lease.ipv6 or "")

    @staticmethod
    def _private(lease: Lease) -> tuple[str, ...]:
        """Another platform's network is behind the host too, for whoever tries."""
        if lease.ipv6 is None:
            return ()
        return (
            f"addr add {lease.ipv6}/128 dev eth0 nodad",
            f"neigh add {GATEWAY} lladdr {lease.gateway_mac} dev eth0 nud permanent",
            f"route add {GATEWAY} dev eth0",
            f"route add fd00::/8 via {GATEWAY} dev eth0",
        )

    def _tap(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            command = [*self.namespace.enter, sys.executable, "-c", _TAP_IN_NAMESPACE, str(theirs.fileno())]
            subprocess.run(command, pass_fds=[theirs.fileno()], check=True, timeout=20)
            return socket.recv_fds(ours, 1, 1)[1][0]


NUMBERS = {f"project_{letter}": number for number, letter in enumerate("abcd", 1)}
"""Network numbers of projects; both installations give the same."""


def nic(name: str, project: str) -> NetworkSpec:
    """The interface of a VM of that name."""
    return NetworkSpec(f"nic_{name}", project, network_number=NUMBERS.get(project, 0))


class World:
    """`vms` by name; the first letter is the project, and `other…` are of the second installation."""

    def __init__(self) -> None:
        self.host = Namespace()
        self.outside = Namespace()
        self.wire = Wire()
        self.vms: dict[str, Vm] = {}
        self.peers: dict[str, Peer] = {}
        self.gateways: list[str] = []
        self.names: list[HostNames] = []
        self.networks: list[BridgeNetwork] = []
        self.helpers: list[RealHelper] = []

    def lay_cable(self, *left_out: int) -> None:
        """An uplink from the host to the outside, where a metadata service stands too."""
        self.host.run(
            "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", str(self.outside.pid)
        )
        for namespace, line in (
            (self.host, f"addr add {HOST_OUTSIDE}/24 dev up0"),
            (self.host, "link set up0 up"),
            (self.outside, f"addr add {OUTSIDE}/24 dev eth0"),
            (self.outside, f"addr add {METADATA}/32 dev lo"),
            (self.outside, "link set eth0 up"),
            (self.host, f"addr add {HOST_OUTSIDE6}/64 dev up0 nodad"),
            (self.outside, f"addr add {OUTSIDE6}/64 dev eth0 nodad"),
            (self.outside, f"addr add {METADATA6}/128 dev lo nodad"),
            (self.outside, f"route add fd00::/8 via {HOST_OUTSIDE6}"),
            (self.host, f"route add {METADATA6} via {OUTSIDE6}"),
            (self.outside, f"route add 10.64.0.0/10 via {HOST_OUTSIDE}"),
            (self.outside, f"addr add {ANOTHER_HOST}/32 dev lo"),
            (self.outside, f"addr add {FAR_OUTSIDE}/24 dev eth0"),
            (self.host, f"addr add {HOST_FAR_OUTSIDE}/24 dev up0"),
            (self.host, f"route add {METADATA} via {OUTSIDE}"),
            (self.host, f"route add {ANOTHER_HOST} via {OUTSIDE}"),
        ):
            namespace.run("ip", *line.split())
        self.peers = {"host": Peer(self.host, *left_out), "outside": Peer(self.outside)}

    async def add_installation(
        self,
        helper: RealHelper,
        connections: int = 0,
        resolver: NameService = NO_NAMES,
        publish: PublishSite = NOTHING_PUBLISHED,
    ) -> BridgeNetwork:
        subnet = choose_subnet(await helper.host.networks_in_use())
        network = BridgeNetwork(
            helper.host, helper.names, subnet, monotonic, resolver, publish=publish, connections=connections
        )
        await network.configure_bridge()
        self.networks.append(network)
        self.names.append(helper.names)
        self.helpers.append(helper)
        self.gateways.append(str(subnet.network_address + 1))
        return network

    async def add_vm(
        self,
        name: str,
        network: BridgeNetwork,
        project: str,
        *,
        jailed: bool = False,
        egress: Egress = None,
        left_out: tuple[int, ...] = (),
    ) -> Vm:
        key = vm_key(f"vm_{name}")
        spec = replace(nic(name, project), egress=egress)
        attachment = await network.setup_tap(key, spec, opened=not jailed)
        vmm = 0
        if jailed:
            helper = self.helpers[self.networks.index(network)]
            vmm, tap = await jailed_tap(helper, key, attachment)
            attachment = replace(attachment, fd=tap)
        await network.admit(key)
        self.vms[name] = Vm(attachment, self.wire, *left_out)
        self.vms[name].vmm = vmm
        self.peers[name] = self.vms[name].peer
        return self.vms[name]

    def address(self, name: str, family: int = 4) -> str:
        """Where a place of the truth table is; empty where it has no address of that family."""
        if family == 6:
            return self.vms[name].ipv6 if name in self.vms else PLACES6.get(name, "")
        fixed = {
            "outside": OUTSIDE,
            "far outside": FAR_OUTSIDE,
            "metadata": METADATA,
            "another host": ANOTHER_HOST,
            "host": HOST_OUTSIDE,
            "gateway": self.gateways[0],
            "other gateway": self.gateways[1],
        }
        return fixed[name] if name in fixed else self.vms[name].ip

    def close(self) -> None:
        for vm in self.vms.values():
            vm.close()
        for name in ("host", "outside"):
            if name in self.peers:
                self.peers[name].close()
        self.wire.stop()
        self.outside.close()
        self.host.close()


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Projects a (two VMs) and b (two, of which one is held to a list) on one installation, another with one VM, all on one
    host."""
    holder = tmp_path / "firecracker"
    holder.write_text(f"#!/usr/bin/python3 -I\n{Path(tap_holder.__file__).read_text()}")  # noqa: ASYNC240 - small
    holder.chmod(0o755)
    async with AsyncExitStack() as undo:
        made = World()
        undo.callback(made.close)
        made.lay_cable()
        for number in range(2):
            helper = RealHelper(made.host, tmp_path / "run", firecracker=str(holder), jailer=str(holder))
            undo.push_async_callback(helper.clean)
            await made.add_installation(helper)
            if number == 0:
                await made.add_vm("a1", made.networks[0], "project_a")
                await made.add_vm("a2", made.networks[0], "project_a", jailed=True)
                await made.add_vm("b1", made.networks[0], "project_b")
                await made.add_vm("b2", made.networks[0], "project_b", egress=LIST)
            else:
                await made.add_vm("other1", made.networks[1], "project_a", jailed=True)
        yield made
