"""Joins PlasmaVMC's parts into the engine of this host.

Theory. The platform is unprivileged by now; whatever needs root goes over the helper's link. The probe of the hypervisor
runs beside when its result is not cached yet: VMs wait for it, and the node says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from plasmavmc.guest.boot import load_assets
from plasmavmc.guest.logs import LogStore
from plasmavmc.guest.tsc import tsc_khz
from plasmavmc.host.client import HelperHost
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Host, ProcessId
from plasmavmc.host.run import find_program
from plasmavmc.hypervisor.qemu.offer import QemuSite, announce_qemu, cached_result, settle_qemu
from plasmavmc.hypervisor.registry import BackendStatus, HypervisorRegistry, Readiness
from plasmavmc.hypervisor.wasm.backend import WasmBackend
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.store import ImageStore
from plasmavmc.manager import VmManager
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.network.ipam import choose_subnet
from plasmavmc.parts import EngineParts
from plasmavmc.records import Records
from plasmavmc.storage.choose import choose_storage
from shellwego.core.nodes import Backend
from shellwego.drivers.engine.plasmavmc import PlasmaEngine, Probe, to_backend, translated

SUBNET_FILE = "subnet"
RESOLVERS = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSite:
    """Where the engine of one installation lives on this host."""

    installation_id: str
    data_dir: Path
    run_dir: Path
    cache: Path
    blobs: Path
    """The platform's blob store, from which images are built."""
    version: str


class HostLink:
    """What the platform itself needs of the root helper."""

    def __init__(self, descriptor: int) -> None:
        self.host = HelperHost(descriptor)
        self.confinement = ""
        """What bounds processes here, known as soon as the edge was placed."""

    async def listen(self, address: str, port: int) -> int:
        """A listening socket's descriptor; `UnavailableError` with the remedy where the port is taken."""
        with translated():
            return await self.host.listen(address, port)

    async def place_edge(self, pid: int, start_time: int) -> str:
        """Move HAProxy into a cgroup of its own; returns the confinement."""
        with translated():
            self.confinement = await self.host.cgroup_place("haproxy", ProcessId(pid, start_time))
        return self.confinement

    async def dismantle(self) -> None:
        """Take bridge, rules and cgroups away; nothing runs any more."""
        with translated():
            await self.host.dismantle()

    async def gone(self) -> None:
        """Return when the helper has ended: then the platform must end, too."""
        await self.host.wait_gone()

    def close(self) -> None:
        """Let go of the helper, which then ends."""
        self.host.close()


def nameservers() -> tuple[str, ...]:
    """Resolvers that a guest can reach: those of the host, but for its own stubs on loopback."""
    for path in RESOLVERS:
        if path.is_file():
            words = [line.split() for line in path.read_text(errors="replace").splitlines()]
            found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
            usable = tuple(each for each in found if "." in each and not each.startswith("127."))
            if usable:
                return usable[:3]
    return ()


async def open_subnet(host: Host, data_dir: Path) -> IPv4Network:
    """The installation's subnet: the one it had, or the first that is free on this host."""
    path = data_dir / SUBNET_FILE
    taken = await host.networks_in_use()
    if path.exists():
        kept = IPv4Network(path.read_text().strip())
        if not any(kept.overlaps(network) for network in taken):
            return kept
    subnet = choose_subnet(taken)
    path.write_text(f"{subnet}\n")
    return subnet


def _backend(status: BackendStatus) -> Backend:
    match status.readiness:
        case Readiness.READY if status.capabilities is not None:
            return to_backend(status.capabilities, reason=status.reason)
        case Readiness.PROBING:
            return Backend(name=status.name, status="probing", reason=status.reason)
        case _:
            return Backend(name=status.name, status="failed", reason=status.reason)


async def open_engine(
    link: HostLink, site: EngineSite, edge_processes: Callable[[], Iterable[tuple[int, int]]]
) -> PlasmaEngine:
    """Join the parts. What runs is adopted by `engine.start()`, whose sweep spares the edge's processes (pid, start time).

    Raises:
        UnavailableError, InvalidError: the host's cache is not filled, a program is missing, no subnet is free.
    """
    with translated():
        names = HostNames.of(site.installation_id)
        registry = HypervisorRegistry()
        assets = load_assets(site.cache)
        disk_dir = site.data_dir / "disks"
        disk_dir.mkdir(mode=0o700, exist_ok=True)
        parts = EngineParts(
            images=ImageStore(site.data_dir / "images"),
            source=BlobStore(site.blobs),
            storage=choose_storage(disk_dir),
            network=BridgeNetwork(link.host, names, await open_subnet(link.host, site.data_dir), time.monotonic),
            registry=registry,
            assets=assets,
            cache=site.cache,
            logs=LogStore(site.data_dir / "logs"),
            records=Records(site.data_dir / "vms"),
            run_dir=site.run_dir,
            nameservers=nameservers(),
        )
        qemu = QemuSite(
            program=Path(find_program("qemu-system-x86_64")),
            installation=names.key,
            tsc_khz=tsc_khz(),
            kernel=assets.kernel,
            initrd=assets.initrd,
            run_dir=site.run_dir,
            cache=site.cache / "probes",
        )
        probe = await _offer(registry, link.host, qemu)
        registry.register(WasmBackend(link.host, names, CodeCache(site.data_dir / "wasm-code")))
        return PlasmaEngine(
            VmManager(link.host, parts),
            probe=probe,
            backends=lambda: tuple(_backend(status) for status in registry.statuses()),
            disk_dir=disk_dir,
            version=site.version,
            confinement=lambda: link.confinement,
            processes=lambda: tuple(ProcessId(pid, start_time) for pid, start_time in edge_processes()),
        )


async def _offer(registry: HypervisorRegistry, host: Host, site: QemuSite) -> Probe | None:
    """Enter QEMU at once, so that what runs can be adopted; returns the probe that is to be run after the first sweep,
    or None where its result is known."""
    backend = announce_qemu(registry, host, site)
    if cached_result(site) is not None:
        await settle_qemu(registry, backend, host, site)
        return None

    async def probe() -> None:
        await settle_qemu(registry, backend, host, site)

    return probe
