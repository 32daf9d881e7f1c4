"""What VMs run on, as data: what a backend is, what it can do, and how it stands with it on this host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Acceleration(StrEnum):
    KVM = "kvm"
    TCG = "tcg"
    NONE = "none"


class Isolation(StrEnum):
    HARDWARE_VM = "hardware-vm"
    EMULATED_VM = "emulated-vm"
    WASM_SANDBOX = "wasm-sandbox"
    NONE = "none"


class GuestKind(StrEnum):
    """What an image holds."""

    LINUX = "linux"
    """A root file system."""
    WASM = "wasm"
    """A WebAssembly module."""


@dataclass(frozen=True, slots=True)
class BackendCapabilities:
    """What a backend can do, as data: checked at admission and fed to the scheduler."""

    name: str
    acceleration: Acceleration
    isolation: Isolation
    guest_kinds: tuple[GuestKind, ...] = (GuestKind.LINUX,)
    max_vcpus: int = 1
    max_memory_bytes: int = 0
    max_disks: int = 0
    max_nics: int = 0
    pause: bool = False
    suspend: bool = False
    fork: bool = False
    snapshot: bool = False
    hotplug_disk: bool = False
    hotplug_nic: bool = False
    balloon: bool = False
    channel: str = "serial"
    rate_limits: bool = False
    encryption: bool = False
    opens_taps: bool = False
    """Its VMM opens its taps by itself, where only they are; the others are given descriptors. Of no use to the outside."""


@dataclass(frozen=True, slots=True)
class SnapshotHost:
    """What a snapshot depends on of a host: one that was taken where these words are the same can be resumed."""

    backend: str
    traits: Mapping[str, str]
    """Acceleration, processor, program, devices, kernel, init …, by name."""


class Readiness(StrEnum):
    PROBING = "probing"
    READY = "ready"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend as people see it in `nodes` and `doctor`."""

    name: str
    readiness: Readiness
    reason: str = ""
    """Why it is unavailable, or what is weaker than it could be (an emulated CPU, and why)."""
    capabilities: BackendCapabilities | None = None
