"""What is asked of the engine's host before the platform starts: names, programs, guest assets, reachability."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.errors import PlasmaError
from plasmavmc.guest.boot import assets_present
from plasmavmc.host import installation, ownership
from plasmavmc.host.architecture import EMULATOR
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.helper.cgroups import CONTROLLERS, NONE, V2, layouts, parse_mounts
from plasmavmc.host.installation import Installation, Product
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishSite
from plasmavmc.hypervisor.probe import KVM_DEVICE, ProbeResult
from plasmavmc.hypervisor.qemu.offer import probed
from plasmavmc.network.dns.probing import answers as resolver_answers
from plasmavmc.network.dns.probing import is_own_address
from plasmavmc.network.ipam import SUBNET_FILE, gateway_of
from plasmavmc.storage.reflink import can_reflink

__all__ = [
    "EMULATOR",
    "KVM_DEVICE",
    "NOTHING_PUBLISHED",
    "Acceleration",
    "HelperConfiguration",
    "Installation",
    "Listener",
    "PlasmaError",
    "ProbeResult",
    "Product",
    "PublishSite",
    "assets_present",
    "can_reflink",
    "cgroup_kinds",
    "confinement",
    "gateway_in",
    "installation",
    "is_own_address",
    "ownership",
    "probed",
    "resolver_answers",
]


def gateway_in(data_dir: Path) -> str:
    """The gateway of the VMs of an installation that was started; empty where there is none, or it may not be read."""
    try:
        return str(gateway_of(IPv4Network((data_dir / SUBNET_FILE).read_text().strip())))
    except (OSError, ValueError):
        return ""


def cgroup_kinds() -> tuple[str, ...]:
    """The kinds of cgroups that could bound VMs here, the best first. A container may forbid what is mounted in it."""
    found = layouts(parse_mounts(Path("/proc/self/mounts").read_text()), "")
    return tuple(layout.confinement for layout in found if layout.confinement != V2 or _offers(layout.parents[0]))


def confinement() -> str:
    """What bounds processes here, in the helper's words."""
    return next(iter(cgroup_kinds()), NONE)


def _offers(unified: Path) -> bool:
    try:
        return set(CONTROLLERS) <= set((unified / "cgroup.controllers").read_text().split())
    except OSError:
        return False
