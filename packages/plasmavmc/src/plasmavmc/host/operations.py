"""The privileged operations as values: the only things that the unprivileged side can ask of root.

`Host` is the port. The real one (`host.client`) sends each call over a socketpair to the root helper, which checks every
value again by itself; `host.memory` is a fake that passes the same contract suite. One request at a time.

Descriptors travel beside the message (SCM_RIGHTS). An argument list names them by token: the element
`fd=@tap0@` is rewritten by the helper to the number that the descriptor has in the child.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Protocol

from plasmavmc.errors import HostError
from plasmavmc.host.ports import OpenPort, PortName
from plasmavmc.host.zfs import ZfsOrder
from plasmavmc.policy import Egress, Ingress
from plasmavmc.types import MIB, NetworkUsage

JAIL_TAP = "tap0"
"""The VM's tap as a VMM in a jail knows it: the same in every jail, as a snapshot wants it."""
RESOLVER_PORT = 53
QUESTIONS_PER_SECOND = 5000
"""Of one VM to its host's resolver; those beyond are thrown away."""
QUESTION_BYTES = 1232
"""The most that a datagram to or from the resolver holds: so much passes every way without fragments."""
MAX_SOURCES = 16_384
"""VMs of other nodes that rules know by their identity."""
KILL_DEADLINE_S = 15.0
UNKILLABLE = "vmm-unkillable"
"""Code of the error of a VMM that is still there then."""
WORKER_FILES_BYTES = 64 * MIB
"""Size of the directory in memory that a WebAssembly worker gets; what lies in it counts as its memory."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """The one bridge of an installation: `swg<code>br` (`host.names`) with the gateway's address."""

    name: str
    gateway: IPv4Address
    network: IPv4Network


@dataclass(frozen=True, slots=True)
class TapRequest:
    """A tap on the bridge, isolated from the other ports, learning off. It lives as long as a descriptor of it."""

    name: str
    mac: str
    receive: int = 0
    """Bytes a second that it gives its VM; 0 is without limit."""
    transmit: int = 0
    """Bytes a second that it takes from its VM, likewise. With one, `tap_forget` is owed."""


@dataclass(frozen=True, slots=True)
class Member:
    """One VM's place in the rules: what it may send as, and whom it may talk to: by IPv4 to VMs of this node with the same
    `network_id`, by IPv6 to those of any node with the same network in their address (`host.addresses`)."""

    tap: str
    mac: str
    ipv4: IPv4Address
    network_id: str
    ipv6: IPv6Address | None = None
    egress: Egress = None
    """What it may open connections to elsewhere, of what is open to all."""
    identity: str = ""
    """What ingress knows it by; empty: nothing does."""
    ingress: Ingress = None
    """What those may open to it whom it may talk to."""


@dataclass(frozen=True, slots=True)
class Source:
    """A VM of another node, as ingress of members here knows it."""

    identity: str
    ipv6: IPv6Address


class Underlay(StrEnum):
    """How packets for the VMs of a node travel there from other hosts. Each node says how it is to be reached."""

    PLAIN = "plain"
    """As they are: the hosts are on one link, or all between them have routes for the nodes' networks."""
    VXLAN = "vxlan"
    """In UDP datagrams from host to host (RFC 7348), over whatever is between them; in clear."""
    WIREGUARD = "wireguard"
    """In UDP datagrams too, encrypted, and of nobody but the node itself. It goes between nodes that both have it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node: the network of its VMs, the first host of which is its bridge, and the address to reach it by."""

    network: IPv4Network
    via: IPv4Address
    private: IPv6Network | None = None
    """The /64 of its VMs on the private network, which may speak to ours; None: they may not."""
    underlay: Underlay = Underlay.PLAIN
    keys: tuple[str, ...] = ()
    """Of WireGuard: the public keys of its two devices, in base64."""
    port: int = 0
    """Of WireGuard: the UDP port of its first device; the second one's is the next."""

    @property
    def gateway(self) -> IPv4Address:
        """What the node itself speaks as, to the VMs of others."""
        return self.network.network_address + 1


@dataclass(frozen=True, slots=True)
class Reach:
    """How other nodes reach this one."""

    underlay: Underlay = Underlay.PLAIN
    address: IPv4Address | None = None
    """Of this host, as they know it; None: the kernel chooses by the way."""
    port: int = 0
    """Of WireGuard: the first of the two UDP ports."""
    step: int = 0
    """Of WireGuard: how far the exchange of keys is (`host.rotation`)."""

    @property
    def ports(self) -> tuple[int, ...]:
        """At which WireGuard listens here; none: it does not."""
        return (self.port, self.port + 1) if self.underlay is Underlay.WIREGUARD else ()

    def fits(self, peer: Peer) -> bool:
        """Whether there may be a way between us and that node: what one of both has encrypted, the other may not have in
        clear."""
        return (self.underlay is Underlay.WIREGUARD) == (peer.underlay is Underlay.WIREGUARD)


PLAINLY = Reach()


@dataclass(frozen=True, slots=True)
class Routed:
    """What came of an order to have routes to other nodes."""

    lacking: tuple[Peer, ...] = ()
    """Those to which this host has no way."""
    keys: tuple[str, ...] = ()
    """Public keys of our own two devices, in base64, where we are reached by WireGuard: for other nodes to know."""
    encrypted_by: str = ""
    """Who encrypts then: `kernel`, or the program `wireguard-go`."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The whole firewall of an installation; applied atomically, replacing the one before."""

    bridge: Bridge
    members: tuple[Member, ...] = ()
    peers: tuple[Peer, ...] = ()
    """Nodes that may open connections to the members, as this one may."""
    resolver: bool = False
    """Members may ask the gateway for names, by UDP and TCP; from other hosts nobody may."""
    ports: tuple[OpenPort, ...] = ()
    """Of this host's addresses, at which VMs answer."""
    connections: int = 0
    """Each member may have so many open, and so many opened to it from elsewhere; 0: any number."""
    tunnel_ports: tuple[int, ...] = ()
    """At which WireGuard listens: to them send hosts of peers only, and with peers nothing is exchanged but by it."""
    sources: tuple[Source, ...] = ()
    """VMs of other nodes with an identity that the ingress of some member names."""
    published: tuple[PortName, ...] = ()
    """At which hosts of peers answer for VMs, also where this host does not: of those hosts, members reach nothing else."""


DROP_REASONS = (
    "unadmitted",
    "short",
    "vlan",
    "source-mac",
    "protocol",
    "arp",
    "source-ipv4",
    "source-ipv6",
    "multicast",
    "extension-headers",
    "neighbour-discovery",
    "flooded",
)
"""Why a tap drops a frame, in the order of `native/ebpf/tap.h`. The last is one for many that was on its way to the VM."""


CONNECTIONS = "connections"
"""Why packets are dropped, too: those of connections beyond what a VM may have."""


@dataclass(frozen=True, slots=True)
class Guarding:
    """How frames at taps are checked."""

    by: str
    """`tcx` or `clsact`: by programs at each tap, which count too. `nft`: by the firewall, and none are counted."""
    lack: str
    """Why in no better way; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a VMM process may use. Enforced by cgroup v2, else v1, else rlimits; the answer tells which."""

    memory_bytes: int
    cpu_milli: int
    pids: int = 64


RESOLVER_CGROUP = "resolver"
PLACED_LIMITS: Mapping[str, Limits] = {RESOLVER_CGROUP: Limits(memory_bytes=512 * MIB, cpu_milli=2000)}
"""Of those cgroups of `cgroup_place` that have limits. The resolver deals with what guests say: it takes 40 MiB, and several
times that where they do their worst. It has one thread, so its processor is one at most."""


@dataclass(frozen=True, slots=True)
class Spawned:
    pid: int
    start_time: int
    pidfd: int
    """Readable when the process has ended. Owned by the caller."""
    confinement: str
    """`cgroup-v2`, `cgroup-v1` or `rlimits`."""
    stdout: int = -1
    """Read end of a pipe with the VMM's own stdout and stderr (its complaints; the guest's output comes elsewhere)."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    start_time: int


class UnendedError(HostError):
    """A process was sent SIGKILL and does not end, as where it waits for a disk that does not answer. `vmm-unkillable`."""

    def __init__(self, process: ProcessId) -> None:
        super().__init__(UNKILLABLE, f"process {process.pid} is still there {KILL_DEADLINE_S:g} s after SIGKILL")
        self.process = process


@dataclass(frozen=True, slots=True)
class Keep:
    """What a sweep must leave: VMs by key, and processes by identity (HAProxy)."""

    vms: Mapping[str, ProcessId] = field(default_factory=dict)
    processes: tuple[ProcessId, ...] = ()


@dataclass(frozen=True, slots=True)
class Unkillable:
    """A process that is still there long after SIGKILL, as one is that waits for a disk which does not answer."""

    process: ProcessId
    key: str = ""
    """Of the VM whose it is, all of whose things on the host were left as they are; empty: of no VM."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed, for the log and the events."""

    processes: tuple[int, ...] = ()
    taps: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    unkillable: tuple[Unkillable, ...] = ()
    """What it could not remove. A later sweep does."""


class Host(Protocol):
    """Port: the privileged operations of one installation.

    Every method raises `HostError` (permanent, with what the kernel said) or `UnavailableError` (the helper is gone).
    """

    async def bridge_ensure(self, bridge: Bridge) -> str:
        """Make the bridge, or bring the present one to this shape; turn on forwarding. Idempotent. Returns what IPv6 on it
        lacks, in words; empty where it lacks nothing."""

    async def rules_apply(self, rules: RuleSet) -> None:
        """Replace this installation's firewall tables by those for `rules`, in one transaction."""

    async def rules_fault(self) -> str:
        """What others have taken away of the rules that were applied last, in words; empty where that is nothing, and before
        any were applied."""

    async def routes_apply(self, peers: Sequence[Peer], reach: Reach) -> Routed:
        """Make the routes to other nodes' networks exactly these, and this node one that is reached so. By WireGuard it is
        to be called again from time to time: it changes over to other keys then, and starts anew what has ended.

        Besides: `no-wireguard`, `port-taken`.
        """

    async def networks_in_use(self) -> tuple[IPv4Network, ...]:
        """Networks that this host has addresses in or routes to, but for our bridge's. To choose a subnet by."""

    async def tap_open(self, tap: TapRequest) -> int:
        """Make a tap on the bridge and return a descriptor of it (owned by the caller)."""

    async def tap_make(self) -> bool:
        """Have a tap wait for the next `tap_open`, where it takes long to make one; whether another one could be of use."""

    async def tap_forget(self, name: str) -> None:
        """Take away what holds a tap's VM back, as it does not end with the tap. Where there is none that is fine."""

    async def limits_lack(self) -> str:
        """What the kernel lacks to hold taps back, in words; empty where it lacks nothing. It is tried out."""

    async def taps_guarding(self) -> Guarding:
        """How frames at taps are checked on this host, whose bridge is there. It is tried out."""

    async def taps_usage(self, names: Collection[str]) -> Mapping[str, NetworkUsage]:
        """What has passed these taps, by name, but for those that are not there, or whose frames are not counted."""

    async def uid_take(self, key: str, *, seat: bool = False) -> int:
        """Lease a uid for VM `key`; the same key gets the same uid until it is freed.

        With `seat` it may be one with a process that waits to become a VMM (`seat_make`): for one that gets all it uses as
        descriptors, which `vm_spawn` then starts in a moment.
        """

    async def uid_free(self, key: str) -> None:
        """Give the uid back. It is reused only when no process of it lives. Unknown keys are fine."""

    async def seat_make(self, *, kvm: bool) -> None:
        """Have a process wait for the next VM that takes a uid with one: for a VMM that opens /dev/kvm, or for one that does
        not. There is one at a time; where the host cannot have any, that is fine."""

    async def vm_spawn(self, key: str, argv: Sequence[str], limits: Limits, fds: Mapping[str, int]) -> Spawned:
        """Start a VMM as VM `key`'s uid, in a session, cgroup and sandbox of its own.

        `argv[0]` is the absolute path of a VMM on the helper's list. Descriptors in `fds` are duplicated; the caller
        keeps (and closes) its own. The program `configuration.WASM_WORKER` is no path: the helper makes its command line,
        and gives it a network without interfaces and an empty directory in memory (`WORKER_FILES_BYTES`).
        """

    async def vm_limit(self, key: str, limits: Limits) -> None:
        """Change the limits of a running VMM. Where no cgroup bounds it, its own rlimits stay as they are."""

    async def vm_signal(self, key: str, process: ProcessId, signal: int) -> bool:
        """Send a signal to VM `key`'s process. False where that process is gone (never sent to another)."""

    async def vm_memory(self, key: str, process: ProcessId) -> int:
        """A descriptor, for reading only, of the guest memory that VM `key`'s process has (a memfd by one of the names in
        `host.names.MEMORY_NAMES`); owned by the caller. `HostError` `no-memory` where it has none that can be shared."""

    async def vm_reap(self, key: str, process: ProcessId) -> int | None:
        """Exit code of an ended VMM (negative: signal), once; ends what it left running, and removes its cgroup. None where
        not ours to know."""

    async def vm_fence(self, key: str, until: float | None) -> None:
        """Have VM `key` end at this moment of the monotonic clock, within a second, whoever lives then: it is killed, also
        where the caller and the helper stand still or are gone. Said again it ends at the new moment; None: it is not
        fenced any more. It is said before the VM begins, and goes with its uid. `HostError` `fenced`: its time was over,
        and it has not ended yet; `vm_spawn` and `jail_spawn` refuse so, too."""

    async def cgroup_place(self, name: str, process: ProcessId) -> str:
        """Move a process of the caller's uid into the installation's cgroup `name`, with the limits of that
        (`PLACED_LIMITS`); returns the confinement, which tells whether there can be any."""

    async def listen(self, address: str, port: int) -> int:
        """A listening TCP socket (no SO_REUSEPORT), for an address and port given at the helper's start."""

    async def resolver_sockets(self) -> tuple[int, int]:
        """Sockets on the bridge's gateway at the port of DNS, for datagrams and, listening, for connections; owned by the
        caller. The bridge is there."""

    async def sweep(self, keep: Keep) -> Swept:
        """End and remove whatever carries this installation's names and is not in `keep`."""

    async def dismantle(self) -> None:
        """Remove bridge, firewall tables, cgroups, leases and run directory of this installation: it has ended.

        `HostError` `vms-left` where a process of a VM still lives; nothing is removed then.
        """


class Jails(Protocol):
    """Port: places for a VMM that takes paths and no descriptors (Firecracker). Each VM has a root directory of its own, of
    which only root, the VM's uid and, of one directory with sockets, the caller's user can see anything.

    Errors as of `Host`.
    """

    async def jail_prepare(self, key: str, files: Mapping[str, int]) -> int:
        """Make VM `key`'s jail with these files in its root, by name; one that is open for writing can be written there.

        The files stay where they are too: the jail has further names of them, or copies of such as are only read. Returns
        a descriptor of the directory for sockets (owned by the caller). The VM has a uid and no jail.
        """

    async def jail_open(self, key: str) -> int:
        """A descriptor of the directory for sockets of a jail that is there, as after a restart."""

    async def jail_spawn(self, key: str, limits: Limits, tap: TapRequest | None = None) -> Spawned:
        """Start Firecracker in VM `key`'s jail, by the jailer: its uid, a cgroup, its API in the directory for sockets. With
        a tap, it finds one called `JAIL_TAP` that does what the VM's tap on the bridge would do; else no network."""

    async def jail_remove(self, key: str) -> None:
        """Remove VM `key`'s jail, whose VMM has ended. Unknown keys are fine."""


class Zfs(Protocol):
    """Port: datasets of this installation, below the one that the operator named at the start.

    Errors as of `Host`; `zfs-failed` with what the program said in its details; `storage-slow`, which is temporary: it took
    too long, and may have been done, or be done still.
    """

    async def zfs_open(self) -> Path:
        """Make the installation's own dataset where it is missing. Returns the directory where its children are
        mounted, each by its name."""

    async def zfs_look(self) -> str:
        """All there is: lines of name, property and value, with tabs between them (`zfs.LOOK_PROPERTIES`)."""

    async def zfs_do(self, order: ZfsOrder) -> None:
        """Carry out an order for one child."""


class EngineHost(Host, Jails, Zfs, Protocol):
    """All that an engine needs of root."""
