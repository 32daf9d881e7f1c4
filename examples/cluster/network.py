"""Hosts that are network namespaces, and the switch between them: a namespace too, so that nothing of this host is touched.

They share this host's files, processes and cgroups; what a host is, is its network and the processes in it.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

_CLONE_NEWNET = 0x40000000
_CUTS = "swg_test_cuts"


class Way(Enum):
    """A direction at a host, by the hook of its firewall where packets pass."""

    IN = "prerouting"
    OUT = "postrouting"


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

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is on this host; within."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        here = os.open(Path("/run/netns", self.namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(here)
            yield
        finally:
            _set_namespace(before)
            os.close(here)
            os.close(before)

    def processes(self) -> list[int]:
        """All that are on this host, whoever started them."""
        own, found = Path("/run/netns", self.namespace).stat().st_ino, []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == own:
                    found.append(int(entry.name))
        return found

    def cut(self, *ways: Way) -> None:
        """Let no IPv4 packet pass its cable in these directions, until `mend`."""
        self._drop(ways, ())

    def slow(self, rate: str = "512kbit", loss_percent: int = 3) -> None:
        """Let what it sends wait for a narrow cable, half a second at most, and lose some of it in both directions, until
        `mend`. (netem would delay evenly; not every kernel has it.)"""
        self._drop((Way.IN, Way.OUT), ("numgen", "random", "mod", "100", "<", str(loss_percent)))
        bucket = ("tbf", "rate", rate, "burst", "8kb", "latency", "500ms")
        self._run("tc", "qdisc", "replace", "dev", "eth0", "root", *bucket)

    def mend(self) -> None:
        """Make its cable whole again."""
        self._run("nft", "delete", "table", "ip", _CUTS)
        subprocess.run([*self.enter, "tc", "qdisc", "del", "dev", "eth0", "root"], capture_output=True, check=False)

    def _drop(self, ways: Iterable[Way], condition: tuple[str, ...]) -> None:
        self._run("nft", "add", "table", "ip", _CUTS)
        for way in ways:
            device = "iifname" if way is Way.IN else "oifname"
            hook = f"{{ type filter hook {way.value} priority -400; }}"
            self._run("nft", "add", "chain", "ip", _CUTS, way.value, hook)
            self._run("nft", "add", "rule", "ip", _CUTS, way.value, device, "eth0", *condition, "drop")

    def _run(self, *words: str) -> None:
        subprocess.run([*self.enter, *words], check=True, capture_output=True, timeout=20)


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


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
