"""What the root helper is told once, at its start, by root: the frame of all it will ever do."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

from plasmavmc.host.architecture import EMULATOR
from plasmavmc.host.names import RUN_ROOT, HostNames, installation_key
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishSite
from plasmavmc.host.rotation import SETTLE_S

POOL = IPv4Network("10.64.0.0/10")
"""All installations take their networks from here."""
FIRST_UID = 2_000_000_000
UID_COUNT = 65_536
QEMU = f"/usr/bin/{EMULATOR}"
FIRECRACKER = "/usr/local/bin/firecracker"
JAILER = "/usr/local/bin/jailer"
JAIL_ROOT = Path("/var/lib/plasmavmc-jails")
"""Jails of all installations. On the file system of their disks, which are linked into them."""
GUARDS = ("tcx", "clsact", "nft")
"""How frames at taps may be checked, best first (`helper.ebpf_guard`)."""
WASM_WORKER = "wasm-worker"
"""Not a path: the helper runs this program with the interpreter and from the packages that it itself was started with."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that the unprivileged side may ask for. Port 0 lets the kernel choose one (for tests)."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class HelperConfiguration:
    """One installation's helper.

    `uid` and `gid` are the user that everything but the helper runs as. VMs get uids of `vm_uids`, which installations
    of one host share: leases are files in `run_root`, which is root's.
    """

    installation_id: str
    uid: int
    gid: int
    listeners: tuple[Listener, ...] = ()
    vmms: tuple[str, ...] = (QEMU, WASM_WORKER)
    vm_uids: range = field(default_factory=lambda: range(FIRST_UID, FIRST_UID + UID_COUNT))
    run_root: Path = RUN_ROOT
    firecracker: str = FIRECRACKER
    jailer: str = JAILER
    jail_root: Path = JAIL_ROOT
    guards: tuple[str, ...] = GUARDS
    key_settle_s: float = SETTLE_S
    """So long a tunnel was not used before its key is exchanged."""
    zfs: str = ""
    """The dataset below which volumes are kept; empty: they are kept otherwise."""
    publish: PublishSite = NOTHING_PUBLISHED
    """Ports of this host at which VMs may answer."""

    @property
    def key(self) -> str:
        return installation_key(self.installation_id)

    @property
    def names(self) -> HostNames:
        return HostNames(self.key)
