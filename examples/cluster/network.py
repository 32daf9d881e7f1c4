"""Hosts that are network namespaces, and the switch between them: a namespace too, so that nothing of this host is touched.

They share this host's files, processes and cgroups; what a host is, is its network and the processes in it.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one interface on the switch."""

    name: str
    namespace: str
    address: str
    port: str
    """Its end on the switch."""

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command is run by to be on this host. `ip netns exec` would hide the cgroups."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}")


class Switch:
    """Makes itself and hosts within its context, and takes them away; or is one that there is already."""

    def __init__(self, namespace: str = "", hosts: Iterable[Host] = ()) -> None:
        self.namespace = namespace or f"swg-{secrets.token_hex(3)}-switch"
        self.hosts = list(hosts)

    def __enter__(self) -> Switch:
        _ip("netns", "add", self.namespace)
        _ip("-n", self.namespace, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.namespace, "link", "set", "switch", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in (*(host.namespace for host in self.hosts), self.namespace):
            _ip("netns", "del", namespace)

    def add(self, name: str) -> Host:
        """One more host."""
        number = len(self.hosts) + 1
        host = Host(name, self.namespace.replace("switch", name), f"192.0.2.{number}", f"port{number}")
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", host.port, "netns", self.namespace)
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        self.plug(host)
        return host

    def plug(self, host: Host) -> None:
        """Connect its cable."""
        _ip("-n", self.namespace, "link", "set", host.port, "master", "switch", "up")

    def unplug(self, host: Host) -> None:
        """Cut its cable."""
        _ip("-n", self.namespace, "link", "set", host.port, "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
