"""A VM as its host has it, in the platform's words: what the agent's decisions start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shellwego.core.destinations import Destination
from shellwego.core.openings import Ingress


class VmPhase(StrEnum):
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    SUSPENDING = "suspending"
    ASLEEP = "asleep"
    RESUMING = "resuming"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUsage:
    """What has passed a VM's interface since it was made; to transmit and to receive is the VM's part."""

    transmit_packets: int = 0
    transmit_bytes: int = 0
    receive_packets: int = 0
    receive_bytes: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Frames that the host did not let pass, by reason; a reason without any is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmUsage:
    """What a VM takes of its host, as of one look."""

    memory_bytes: int = 0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    pressure: Mapping[str, float] = field(default_factory=dict)
    """Share of the last ten seconds, 0 to 1, in which something waited for `cpu`, `memory`, `io`; empty where the host does
    not measure it."""
    network: NetworkUsage | None = None
    """None where it has no interface, or the host does not count its frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmView:
    """One VM as the host has it."""

    vm_id: str
    instance_id: str
    attempt: int
    phase: VmPhase
    address: str = ""
    private_address: str = ""
    detail: str = ""
    """While preparing: `image`, `disks` (and network), `boot`."""
    asked: bool = False
    """It ended, or ends, because we stopped it."""
    exit_code: int | None = None
    reason: str = ""
    reason_code: str = ""
    permanent: bool = False
    """Another attempt would end the same way (unknown command, image refused)."""
    unavailable: bool = False
    """It ended before it began, because something that it needs did not answer: nothing of it was run."""
    log_tail: tuple[str, ...] = ()
    acceleration: str = ""
    egress: tuple[Destination, ...] | None = None
    """What it may open connections to, as its workload says it."""
    identity: str = ""
    """What ingress of others knows it by: its app's id."""
    ingress: Ingress = None
    """What may be opened to it, as its workload says it."""
    organization_id: str = ""
    """Whose it is."""
    labels: Mapping[str, str] = field(default_factory=dict)
