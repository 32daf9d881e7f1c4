"""What Firecracker is asked, as values: everything a VM needs before its start, in order.

Theory. Paths are those within the jail, which the host fills from descriptors: `/kernel`, `/initrd`, `/disk0`, …; sockets
lie in `SOCKET_DIRECTORY`. No drive is the root device: the guest's init comes with the initramfs and knows its disks by
their order, vda, vdb, …. No MMDS: what a guest must know travels over its channel, and a service that answers by HTTP
within the guest is one more thing to attack.

Source: docs/getting-started.md, docs/vsock.md, docs/api_requests/*.md of Firecracker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plasmavmc.host.operations import JAIL_TAP
from plasmavmc.hypervisor.backend import DiskPlan, NicPlan
from plasmavmc.hypervisor.firecracker.models import (
    Action,
    ActionType,
    BackendType,
    Body,
    BootSource,
    CacheType,
    Drive,
    Entropy,
    MachineConfig,
    MemoryBackend,
    NetworkInterface,
    RateLimiter,
    RunState,
    SnapshotCreate,
    SnapshotLoad,
    SnapshotType,
    TokenBucket,
    VmUpdate,
    Vsock,
)
from plasmavmc.types import MIB, NO_LIMIT, RateLimit, VmSpec

SOCKET_DIRECTORY = "/s"
API_SOCKET = "api.sock"
VSOCK_SOCKET = "vsock.sock"
GUEST_CID = 3
"""The guest's number on its own vsock. Each VM has its own, so all have the same."""
CHANNEL_PORT = 1024
"""Port of the guest's init on the vsock."""
NIC = "net0"
REFILL_MS = 1000
KERNEL_PARAMETERS = "console=ttyS0 quiet reboot=k panic=-1 pci=off 8250.nr_uarts=1 audit=0"
"""`reboot=k` with `panic=-1`: a reboot, a power-off and a panic all reset the CPU by the keyboard controller, at which
Firecracker ends with 0. Nothing about the workload: that travels over the channel, being secret."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the API that changes something."""

    method: str
    path: str
    body: Body


def drive_id(index: int) -> str:
    """Id of the drive at `index`, and its name within the jail."""
    return f"disk{index}"


def boot_requests(spec: VmSpec, disks: Sequence[DiskPlan], nics: Sequence[NicPlan] = ()) -> tuple[Request, ...]:
    """All that makes a VM, but for its start. It has one interface at most."""
    limits = {volume.id: volume.limit for volume in spec.volumes}
    resources = spec.resources
    memory = -(-resources.memory_bytes // MIB)
    return (
        Request("PUT", "/machine-config", MachineConfig(vcpu_count=resources.vcpus, mem_size_mib=memory)),
        Request(
            "PUT",
            "/boot-source",
            BootSource(kernel_image_path="/kernel", initrd_path="/initrd", boot_args=KERNEL_PARAMETERS),
        ),
        *(drive_request(index, disk, limits.get(disk.id, disk.limit)) for index, disk in enumerate(disks)),
        *(nic_request(nic, spec) for nic in nics[:1]),
        Request("PUT", "/vsock", Vsock(guest_cid=GUEST_CID, uds_path=f"{SOCKET_DIRECTORY}/{VSOCK_SOCKET}")),
        Request("PUT", "/entropy", Entropy()),
    )


def drive_request(index: int, disk: DiskPlan, limit: RateLimit) -> Request:
    """The drive at `index`. What the guest flushes to one that it writes to is on the host's disk when it is told so."""
    name = drive_id(index)
    body = Drive(
        drive_id=name,
        path_on_host=f"/{name}",
        is_root_device=False,
        is_read_only=disk.read_only,
        cache_type=None if disk.read_only else CacheType.WRITEBACK,
        rate_limiter=limiter_of(limit),
    )
    return Request("PUT", f"/drives/{name}", body)


def nic_request(nic: NicPlan, spec: VmSpec) -> Request:
    """The VM's interface, on the tap that the host puts into its jail."""
    wanted = spec.networks[0] if spec.networks else None
    body = NetworkInterface(
        iface_id=NIC,
        host_dev_name=JAIL_TAP,
        guest_mac=nic.mac,
        rx_rate_limiter=None if wanted is None else limiter_of(wanted.receive),
        tx_rate_limiter=None if wanted is None else limiter_of(wanted.transmit),
    )
    return Request("PUT", f"/network-interfaces/{NIC}", body)


def limiter_of(limit: RateLimit) -> RateLimiter | None:
    """Firecracker's words for a limit; None where there is none. A second's worth may be used at once."""
    if limit == NO_LIMIT:
        return None
    return RateLimiter(bandwidth=_bucket(limit.bytes_per_second), ops=_bucket(limit.operations_per_second))


def _bucket(per_second: int) -> TokenBucket | None:
    return TokenBucket(size=per_second, refill_time=REFILL_MS) if per_second else None


def start_request() -> Request:
    return Request("PUT", "/actions", Action(action_type=ActionType.INSTANCE_START))


def pause_request() -> Request:
    return Request("PATCH", "/vm", VmUpdate(state=RunState.PAUSED))


def resume_request() -> Request:
    return Request("PATCH", "/vm", VmUpdate(state=RunState.RESUMED))


def snapshot_request(state: str, memory: str) -> Request:
    """A whole snapshot into two files, by their paths within the jail."""
    body = SnapshotCreate(snapshot_path=state, mem_file_path=memory, snapshot_type=SnapshotType.FULL)
    return Request("PUT", "/snapshot/create", body)


def load_request(state: str, memory: str) -> Request:
    """Load a snapshot into a VMM that has done nothing yet; its guest stays paused.

    That its monotonic clock jumps is never asked for (`clock_realtime`, from 1.14 on): its init sets the wall clock by
    itself.
    """
    body = SnapshotLoad(
        snapshot_path=state,
        mem_backend=MemoryBackend(backend_type=BackendType.FILE, backend_path=memory),
        resume_vm=False,
    )
    return Request("PUT", "/snapshot/load", body)
