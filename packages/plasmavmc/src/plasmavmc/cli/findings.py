"""What `plasmavmc doctor` looks at. The checks of a start are asked themselves, so that `doctor` and `serve` never differ;
nothing here changes the host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from plasmavmc.backends import Acceleration, Readiness
from plasmavmc.cli.ends import Failure
from plasmavmc.cli.output import size
from plasmavmc.cli.views import backend_line
from plasmavmc.deadlines import within
from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.guest.boot import load_assets
from plasmavmc.guest.kernel import distribution_kernel, lacks_fixes, own_kernel
from plasmavmc.host.helper.cgroups import CONTROLLERS, V2, Layout, layouts, parse_mounts
from plasmavmc.host.installation import check_programs, check_space, check_user
from plasmavmc.host.kernel import CONNECTION_OPTIONS, LIMIT_OPTIONS, kernel_configuration, lacking
from plasmavmc.hypervisor.probe import KVM_DEVICE
from plasmavmc.hypervisor.qemu.offer import probed
from plasmavmc.network.limits import connections_per_vm, tracked_connections
from plasmavmc.server.settings import ServeSettings
from plasmavmc.server.start import PROGRAMS

if TYPE_CHECKING:
    from plasmavmc.cli.connection import Connection
    from plasmavmc.rpc.api import Node

_ROOMY_MEMORY = 1 << 30
_SERVER_S = 5.0
_KVM_REMEDY = "Enable virtualisation in the firmware or the outer hypervisor, and: modprobe kvm_intel (or kvm_amd)."
_START = "Start it as root: plasmavmc serve"


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, but weaker than it should; or it could not be looked at."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of one thing."""

    check: str
    state: State
    message: str
    remedy: str = ""


def check_host(cache: Path) -> list[Finding]:
    """All that concerns this machine."""
    return [
        _root(),
        _asked("user", check_user, "the unprivileged user exists"),
        _asked("programs", lambda: check_programs(PROGRAMS), ", ".join(PROGRAMS)),
        _cache(cache),
        _acceleration(cache),
        _confinement(),
        _network_limits(),
        _connections(),
        _disk(),
        _memory(),
    ]


def _asked(check: str, ask: Callable[[], object], well: str) -> Finding:
    try:
        ask()
    except PlasmaError as error:
        return Finding(check, State.FAIL, error.brief, error.resolution)
    return Finding(check, State.OK, well)


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", State.OK, "this is root, who may start the server")
    return Finding(
        "root", State.WARN, "not root: a server can be used, but not started", "To start it: sudo plasmavmc serve"
    )


def _cache(cache: Path) -> Finding:
    try:
        assets = load_assets(cache)
    except HostError as error:
        return Finding("cache", State.FAIL, error.brief, "Run as root: plasmavmc kernel fetch && plasmavmc guest build")
    own, fetched = own_kernel(cache), distribution_kernel(cache)
    if own is not None and fetched is not None and lacks_fixes(own, fetched):
        words = f"the kernel {own.release} was built before {fetched.release} was fetched, and lacks its fixes"
        return Finding("cache", State.WARN, words, "Run as root: plasmavmc kernel build")
    return Finding("cache", State.OK, f"kernel {assets.kernel_release} and guest {assets.initrd_hash[:12]} in {cache}")


def _acceleration(cache: Path) -> Finding:
    """What the last probe found: a device that is there says little (it may open, and hang every guest)."""
    result, there = probed(cache), KVM_DEVICE.exists()
    remedy = "" if there else _KVM_REMEDY
    if result is None:
        seen = "is there" if there else "is not there"
        return Finding("probe", State.WARN, f"not probed on this host yet; {KVM_DEVICE} {seen}", remedy or _START)
    if result.chosen is None:
        return Finding("probe", State.FAIL, f"no guest boots on this host: {result.reason}", remedy)
    took = f"{result.chosen.seconds:.1f} s"
    if result.chosen.acceleration is Acceleration.TCG:
        words = f"VMs are emulated, slow and isolated by software only (boot {took}): {result.reason}"
        return Finding("probe", State.WARN, words, remedy)
    return Finding("probe", State.OK, f"guests boot with {result.chosen.acceleration} ({took})")


def _confinement() -> Finding:
    found = [each for each in layouts(parse_mounts(Path("/proc/self/mounts").read_text()), "") if _offers(each)]
    if found:
        return Finding("confinement", State.OK, f"{found[0].confinement}: memory, CPU and processes of VMs are bounded")
    return Finding(
        "confinement",
        State.WARN,
        "no cgroup hierarchy with cpu, memory and pids: VMs are bounded by rlimits only, CPU shares are not enforced",
        "Mount cgroup2 on /sys/fs/cgroup.",
    )


def _network_limits() -> Finding:
    configuration = kernel_configuration()
    if not configuration:
        return Finding("network limits", State.OK, "this kernel does not tell; a server tries it out at its start")
    missing = lacking(configuration, LIMIT_OPTIONS)
    if not missing:
        return Finding("network limits", State.OK, "the kernel can hold a VM's network to a rate")
    return Finding(
        "network limits",
        State.WARN,
        f"the kernel lacks {', '.join(missing)}: VMs with a limit of their network are refused",
        "Boot a kernel that has them; the distribution's does.",
    )


def _connections() -> Finding:
    configuration = kernel_configuration()
    tracked = tracked_connections()
    missing = lacking(configuration, CONNECTION_OPTIONS) if configuration else ()
    if not missing:
        most = connections_per_vm(0, tracked)
        return Finding("connections", State.OK, f"each VM may have {most} of the {tracked} that this host remembers")
    return Finding(
        "connections",
        State.FAIL,
        f"the kernel lacks {', '.join(missing)}: no VM could be held to its share, so none is started",
        "Boot a kernel that has them; the distribution's does.",
    )


def _offers(layout: Layout) -> bool:
    """A container may forbid what is mounted in it."""
    try:
        told = (
            (layout.parents[0] / "cgroup.controllers").read_text().split() if layout.confinement == V2 else CONTROLLERS
        )
    except OSError:
        return False
    return set(CONTROLLERS) <= set(told)


def _disk() -> Finding:
    wanted = ServeSettings().data_dir
    place = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        check_space(place)
    except HostError as error:
        return Finding("disk", State.FAIL, error.brief, error.resolution)
    status = os.statvfs(place)
    return Finding("disk", State.OK, f"{size(status.f_bavail * status.f_frsize)} are free for {wanted}")


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    state = State.OK if available >= _ROOMY_MEMORY else State.WARN
    remedy = "" if state is State.OK else "Each VM needs its memory whole."
    return Finding("memory", state, f"{size(available)} are available", remedy)


def check_server(here: Connection) -> list[Finding]:
    """What a running server tells of itself. None that runs is no failure: this host may be about to get one."""
    try:
        node = asyncio.run(_ask(here))
    except PlasmaError as error:
        remedy = error.resolution or _START
        return [Finding("server", State.WARN, f"{here.server}: {error.brief}", remedy)]
    except TimeoutError:
        return [Finding("server", State.WARN, f"{here.server}: no answer within {_SERVER_S:g} s", "See its log.")]
    except Failure as failure:
        return [Finding("server", State.FAIL, failure.message, failure.resolution)]
    told = f"{here.server}: version {node.version}, {node.scheduling.value}, {node.promised.vms} VMs"
    return [Finding("server", State.OK, told), *_volumes(node), *_backends(node)]


async def _ask(here: Connection) -> Node:
    from plasmavmc.rpc.client import connect  # noqa: PLC0415

    async with (
        within(_SERVER_S),
        connect(here.server, token=here.token(), tls=here.tls(), timeout_s=_SERVER_S) as engine,
    ):
        return await engine.nodes.get()


def _volumes(node: Node) -> list[Finding]:
    driver = node.labels.get("volumes", "")
    return [Finding("volumes", State.OK, f"kept by the driver {driver}")] if driver else []


def _backends(node: Node) -> list[Finding]:
    usable = any(backend.readiness is Readiness.READY for backend in node.backends)
    found = []
    for backend in node.backends:
        well = backend.readiness is Readiness.READY and not backend.reason
        bad = backend.readiness is Readiness.UNAVAILABLE and not usable
        state = State.OK if well else State.FAIL if bad else State.WARN
        remedy = "" if well else "Wait: it is being probed." if backend.readiness is Readiness.PROBING else _remedy()
        found.append(Finding(f"backend {backend.name}", state, backend_line(backend), remedy))
    return found


def _remedy() -> str:
    return "" if KVM_DEVICE.exists() else _KVM_REMEDY
