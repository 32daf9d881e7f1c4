"""What is asked of the engine's host before the platform starts: names, programs, guest assets, reachability."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.guest.boot import assets_present, load_assets
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.helper.cgroups import CONTROLLERS, V2, layouts, parse_mounts
from plasmavmc.host.names import installation_key
from plasmavmc.host.run import PACKAGES, PATH, find_program
from plasmavmc.host.split import check_reachable
from plasmavmc.hypervisor.probe import KVM_DEVICE, ProbeCache, ProbeResult, gather_facts
from plasmavmc.types import Acceleration

__all__ = [
    "KVM_DEVICE",
    "Acceleration",
    "HelperConfiguration",
    "Listener",
    "ProbeResult",
    "assets_present",
    "cgroup_kinds",
    "check_reachable",
    "installation_key",
    "missing_programs",
    "packages_of",
    "probed",
]


def missing_programs(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the programs that are not installed."""
    return tuple(name for name in names if shutil.which(name, path=PATH) is None)


def packages_of(names: Sequence[str]) -> tuple[str, ...]:
    """The distribution's packages that hold these programs."""
    return tuple(sorted({PACKAGES.get(name, name) for name in names}))


def probed(cache: Path) -> ProbeResult | None:
    """What the last probe of this host found, where it still holds; None also where QEMU or the guest's files lack."""
    try:
        program, assets = find_program("qemu-system-x86_64"), load_assets(cache)
    except HostError:
        return None
    return ProbeCache(cache / "probes").load(gather_facts(Path(program), assets.kernel, assets.initrd))


def cgroup_kinds() -> tuple[str, ...]:
    """The kinds of cgroups that could bound VMs here, the best first. A container may forbid what is mounted in it."""
    found = layouts(parse_mounts(Path("/proc/self/mounts").read_text()), "")
    return tuple(layout.confinement for layout in found if layout.confinement != V2 or _offers(layout.parents[0]))


def _offers(unified: Path) -> bool:
    try:
        return set(CONTROLLERS) <= set((unified / "cgroup.controllers").read_text().split())
    except OSError:
        return False
