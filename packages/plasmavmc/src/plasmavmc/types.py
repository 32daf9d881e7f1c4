"""The nouns of a VM: what is asked for, what is, what is said to it. Frozen values without I/O. What may pass between VMs is
in `policy`, what they run on in `backends`.

Units: memory and disk in bytes, CPU in milli-CPU (1000 is one full core), durations in seconds, times in seconds since
the epoch. Text such as `512m` is parsed at the rim and never arrives here.

Names on the host. An interface name has at most 15 bytes, a socket path 108, a DNS label no underscore, so host names
are never made from ids: `vm_key(id)` gives 12 characters of base32, from which tap, cgroup and directory are named.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from plasmavmc.errors import InvalidSpecError
from plasmavmc.policy import Egress, Ingress
from plasmavmc.states import VmState

MIB = 1024 * 1024
GIB = 1024 * MIB

LOOPBACK = IPv4Address("127.0.0.1")

_ID = re.compile(r"[a-z][a-z0-9_]{2,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def vm_key(vm_id: str) -> str:
    """The host-side short name of a VM: 12 characters of lower-case base32 of sha256(id)."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return base64.b32encode(digest).decode().lower()[:12]


def mac_of(network_interface_id: str) -> str:
    """A stable, locally administered unicast MAC address for an interface id."""
    octets = bytearray(hashlib.sha256(network_interface_id.encode()).digest()[:6])
    octets[0] = (octets[0] & 0xFC) | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def check_id(field_name: str, value: str) -> str:
    """Return `value` if it is an id by our allow-list (`a-z0-9_`, 3 to 64 characters).

    Raises:
        InvalidSpecError: it is not.
    """
    if not _ID.fullmatch(value):
        raise InvalidSpecError(field_name, "an id has 3 to 64 characters of a-z, 0-9 and _")
    return value


def check_digest(field_name: str, value: str) -> str:
    """Return `value` if it is `sha256:` and 64 hexadecimal digits.

    Raises:
        InvalidSpecError: it is not.
    """
    if not _DIGEST.fullmatch(value):
        raise InvalidSpecError(field_name, "a digest is sha256: and 64 hexadecimal digits")
    return value


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose thing it is. VMs of different projects must not reach one another."""

    org: str
    project: str


SYSTEM_SCOPE = Scope("system", "system")
"""Things that all tenants share, such as a public base image."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What may pass in a second, evenly: no more than a tenth of it at once. Zero means no limit."""

    bytes_per_second: int = 0
    operations_per_second: int = 0


NO_LIMIT = RateLimit()


@dataclass(frozen=True, slots=True)
class VmResources:
    cpu_milli: int = 1000
    vcpus: int = 1
    memory_bytes: int = 256 * MIB
    disk_bytes: int = 4 * GIB
    """Size of the writable layer, as the guest sees it; sparse on the host."""
    disk_limit: RateLimit = NO_LIMIT
    """Of each of its own disks, image and writable layer; reads and writes count together."""


OWN_DISKS = 2
"""Image and writable layer, which every VM has before its volumes."""


class DiskSource(StrEnum):
    IMAGE = "image"
    EMPTY = "empty"
    VOLUME = "volume"
    SNAPSHOT = "snapshot"


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class DiskSpec:
    id: str
    source: DiskSource
    read_only: bool = False
    size_bytes: int = 0
    reference: str = ""
    """Image digest, volume id or snapshot id, by `source`."""
    format: DiskFormat = DiskFormat.RAW
    limit: RateLimit = NO_LIMIT
    destination: str = ""
    """Of a volume: the absolute path in the guest on which it is mounted; made where it is missing."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """One network interface of a VM. `mac` and `ipv4` are chosen by the engine where they are empty."""

    id: str
    network_id: str
    """VMs with the same network id may talk to each other; no others may."""
    mac: str = ""
    ipv4: IPv4Address | None = None
    receive: RateLimit = NO_LIMIT
    """Whole frames towards the VM. Bytes only: the host counts no packets."""
    transmit: RateLimit = NO_LIMIT
    """From the VM, likewise."""
    network_number: int = 0
    """The network's in private IPv6 addresses (`host.addresses`), by which its VMs talk across nodes; 0: they have none."""
    private_prefix: IPv6Network | None = None
    """The /48 of the platform that gives the numbers; None: the installation's own."""
    egress: Egress = None
    """As the VM begins with it; it can be changed while it lives."""
    identity: str = ""
    """What rules of ingress of its network's VMs know it by; several may have the same. Empty: none does."""
    ingress: Ingress = None
    """Likewise. Answers come in always, and so does what its host opens."""

    @property
    def actual_mac(self) -> str:
        """The one that its interface has; never empty."""
        return self.mac or mac_of(self.id)


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file the guest's init writes before the workload starts (over the channel, never on a host disk)."""

    path: str
    content: bytes
    mode: int = 0o644


class Stdio(StrEnum):
    """What the workload's own stdin, stdout and stderr are. Output is kept as logs in any case."""

    LOGGED = "logged"
    """Nothing to read; output never waits for anybody."""
    ATTACHED = "attached"
    """Nothing to read; output waits for who is attached, as a pipe does, so that none is lost."""
    OPEN = "open"
    """As `ATTACHED`, with an open pipe to read from."""
    TERMINAL = "terminal"
    """A terminal."""


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A TCP port of the host that leads to one of the VM, while the VM runs."""

    host_port: int
    guest_port: int
    address: IPv4Address = LOOPBACK
    """Of the host."""


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What to run. One-shot: a spec describes one attempt.

    `command` and `entrypoint`: `None` means "what the image says", as do `user` and `workdir`; an empty tuple means none
    (as `docker run --entrypoint ""`). As in OCI, the process is entrypoint + command, and giving an entrypoint drops the
    image's command.
    """

    id: str
    scope: Scope
    name: str
    image: str
    """Digest of the OCI manifest."""
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None
    workdir: str | None = None
    files: tuple[FileSpec, ...] = field(default=(), repr=False)
    resources: VmResources = VmResources()
    networks: tuple[NetworkSpec, ...] = ()
    volumes: tuple[DiskSpec, ...] = ()
    hostname: str = ""
    stop_signal: str | None = None
    stop_grace_s: float = 10.0
    snapshot_safe: bool = False
    backend: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    stdio: Stdio = Stdio.LOGGED
    published: tuple[PublishedPort, ...] = ()


@dataclass(frozen=True, slots=True)
class ForkIdentity:
    """What a copy of a running VM does not share with its origin. Address, time and entropy are always its own."""

    vm_id: str
    name: str
    hostname: str = ""
    """Empty: the name."""


@dataclass(frozen=True, slots=True)
class VmHandle:
    """Enough to find a running VM again after a restart. A reused pid is told apart by `start_time`."""

    vm_id: str
    backend: str
    runtime_dir: str
    pid: int
    start_time: int
    """Field 22 of /proc/<pid>/stat, in clock ticks since boot (proc(5))."""
    backend_state: Mapping[str, str] = field(default_factory=dict)

    @property
    def host_key(self) -> str:
        """The key under which the host knows its process: the VM's own, but where the process was there before the VM."""
        return self.backend_state.get("key") or vm_key(self.vm_id)

    @property
    def endpoint(self) -> str:
        """Where a VM without an interface takes requests (`unix:path`); empty where it takes none."""
        return self.backend_state.get("endpoint", "")


@dataclass(frozen=True, slots=True)
class Pressure:
    """Share of the last ten seconds, 0 to 1, in which something of a VM had to wait: `some avg10` of the kernel's PSI
    (Documentation/accounting/psi.rst)."""

    cpu: float = 0.0
    memory: float = 0.0
    io: float = 0.0


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """What has passed a VM's interface since it was made; to transmit and to receive is the VM's part. Frames that the
    kernel has joined count as one packet where it does not tell how many they are."""

    transmit_packets: int = 0
    transmit_bytes: int = 0
    receive_packets: int = 0
    receive_bytes: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Frames that were not the VM's own to send, or were for many, by reason (`host.operations.DROP_REASONS`), and those of
    connections beyond what it may have (`connections`); a reason without any is left out."""


@dataclass(frozen=True, slots=True)
class VmUsage:
    """What a VM takes of its host, as of one look. All zero for one that has ended, but for its disk."""

    memory_rss_bytes: int = 0
    """Resident memory of the VMM, the guest's included."""
    cpu_seconds: float = 0.0
    """Of the VMM, since its start."""
    disk_bytes: int = 0
    """What the writable layer takes on the host's disk."""
    pressure: Pressure | None = None
    """None where the kernel does not measure it for the VM alone."""
    network: NetworkUsage | None = None
    """None where it has no interface, or the host does not count its frames."""


@dataclass(frozen=True, slots=True)
class VmStatus:
    state: VmState
    since: float
    reason: str = ""
    """One line for people: why it failed or stopped. Empty while all is well."""
    reason_code: str = ""
    """Stable code of the reason: `exited`, `oom`, `boot-timeout`, `vmm-died`, `digest-mismatch` …; while it is being
    prepared, the step it is at: `image`, `disks` (and network), `boot`."""
    permanent: bool = False
    """It failed in a way that another attempt would fail too: unknown command, image refused."""
    unavailable: bool = False
    """It failed before it had a process, because something that it needs did not answer: nothing of it was run."""
    exit_code: int | None = None
    """Of the workload, 128 + signal for a death by signal; 127 or 126 where its command could not be executed."""
    guest_ready: bool = False
    """The workload was started in the guest (its process exists)."""
    endpoints: tuple[str, ...] = ()
    """Where the VM can be reached: its addresses as `tcp:ip` (any port), or `unix:path`."""
    private_address: str = ""
    """Its IPv6 address, by which VMs of its network reach it from any node; empty: it has none."""
    backend: str = ""
    acceleration: str = ""
    confinement: str = ""
    """What bounds the VMM: `cgroup-v2`, `cgroup-v1` or `rlimits`."""
    usage: VmUsage = VmUsage()
    log_tail: tuple[str, ...] = ()
    """The last 50 lines of output; filled where the VM failed or stopped."""


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM as the engine knows it. After a restart of the engine `spec.env` and `spec.files` are empty: they are never
    written to a disk."""

    spec: VmSpec
    status: VmStatus
    handle: VmHandle | None = None


@dataclass(frozen=True, slots=True)
class TerminalSize:
    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A command to run in a running guest. With `terminal` it gets a pty of that size, and stderr joins stdout."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: str | None = None
    user: str | None = None
    terminal: TerminalSize | None = None


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """Where a tree that is copied into a guest goes. Where `path` is a directory it comes to lie in it as `name`, else it
    becomes `path`."""

    path: str
    name: str
    contents: bool = False
    """Not the directory itself is copied, but what is in it."""


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"
    """Lines of the platform itself about this VM (guest kernel panic, dropped output)."""


@dataclass(frozen=True, slots=True)
class LogLine:
    time: float
    stream: LogStream
    text: str
    """Without its newline; undecodable bytes replaced; at most 16 KiB, longer lines are split."""


@dataclass(frozen=True, slots=True)
class Lease:
    """An address on the node's network, and what the guest needs to use it."""

    ipv4: IPv4Address
    network: IPv4Network
    gateway: IPv4Address
    mac: str
    ipv6: IPv6Address | None = None
    """On the private network."""
    gateway_mac: str = ""
