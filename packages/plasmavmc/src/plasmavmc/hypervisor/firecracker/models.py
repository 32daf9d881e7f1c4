"""Bodies of Firecracker's API, as far as we use them.

What is not set is not sent: an unknown field is refused (400), so a body must hold nothing that the release at the other
end does not know. Answers are read with unknown fields passed over.

Trap: ids within the API are `[A-Za-z0-9_]`, without the hyphen that the id of the instance may have.
Source: src/firecracker/swagger/firecracker.yaml of Firecracker 1.12 to 1.16, and the Rust types behind it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class _Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    pass


class TokenBucket(_Body, frozen=True):
    """`size` tokens (bytes or operations), full again after `refill_time` milliseconds."""

    size: int
    refill_time: int


class RateLimiter(_Body, frozen=True):
    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


class MachineConfig(_Body, frozen=True):
    vcpu_count: int
    mem_size_mib: int


class BootSource(_Body, frozen=True):
    """The kernel is an uncompressed ELF file, opened when this is sent."""

    kernel_image_path: str
    initrd_path: str | None = None
    boot_args: str | None = None


class CacheType(StrEnum):
    WRITEBACK = "Writeback"
    """What the guest flushes is written. Where nothing is sent it is told so, and it is not (`block-caching.md`)."""


class Drive(_Body, frozen=True):
    drive_id: str
    path_on_host: str
    is_root_device: bool
    is_read_only: bool
    cache_type: CacheType | None = None
    rate_limiter: RateLimiter | None = None


class NetworkInterface(_Body, frozen=True):
    """The tap is opened when this is sent. `rx` is what the guest receives."""

    iface_id: str
    host_dev_name: str
    guest_mac: str
    rx_rate_limiter: RateLimiter | None = None
    tx_rate_limiter: RateLimiter | None = None


class Vsock(_Body, frozen=True):
    guest_cid: int
    uds_path: str


class Entropy(_Body, frozen=True):
    """No limit: the host's source never runs dry."""


class ActionType(StrEnum):
    INSTANCE_START = "InstanceStart"


class Action(_Body, frozen=True):
    action_type: ActionType


class RunState(StrEnum):
    PAUSED = "Paused"
    RESUMED = "Resumed"


class VmUpdate(_Body, frozen=True):
    state: RunState


class SnapshotType(StrEnum):
    FULL = "Full"


class SnapshotCreate(_Body, frozen=True):
    """Files at both paths are overwritten. The VM must be paused; its disks are the caller's to copy meanwhile."""

    snapshot_path: str
    mem_file_path: str
    snapshot_type: SnapshotType


class BackendType(StrEnum):
    FILE = "File"


class MemoryBackend(_Body, frozen=True):
    backend_type: BackendType
    backend_path: str


class SnapshotLoad(_Body, frozen=True):
    snapshot_path: str
    mem_backend: MemoryBackend
    resume_vm: bool


Body = (
    MachineConfig
    | BootSource
    | Drive
    | NetworkInterface
    | Vsock
    | Entropy
    | Action
    | VmUpdate
    | SnapshotCreate
    | SnapshotLoad
)


class InstanceState(StrEnum):
    NOT_STARTED = "Not started"
    RUNNING = "Running"
    PAUSED = "Paused"


class InstanceInfo(_Answer, frozen=True):
    id: str
    state: InstanceState
    vmm_version: str


class VmmVersion(_Answer, frozen=True):
    firecracker_version: str


class Fault(_Answer, frozen=True):
    """What an error says. `fault_message` is the VMM's, `error` that of its HTTP server."""

    fault_message: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        return self.fault_message or self.error
