"""Joins the engine's parts on this host: for `plasmavmc serve`, and for whoever embeds the engine.

Theory. This process is unprivileged by now; whatever needs root goes over the helper's link. Probes of hypervisors are run
beside, QEMU's first, when its result is not cached yet: VMs wait for it, and the node says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import structlog

from plasmavmc.blanks import Blanks
from plasmavmc.errors import CapacityError, HostError
from plasmavmc.guest.boot import load_assets
from plasmavmc.guest.filesystem import volume_template
from plasmavmc.guest.logs import LogStore
from plasmavmc.guest.tsc import tsc_khz
from plasmavmc.host.architecture import EMULATOR
from plasmavmc.host.configuration import FIRECRACKER, JAILER
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import PLAINLY, EngineHost, Host, ProcessId, Reach, Swept
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishSite
from plasmavmc.host.run import find_program
from plasmavmc.hypervisor.firecracker.offer import FirecrackerSite, announce_firecracker, settle_firecracker
from plasmavmc.hypervisor.qemu.offer import QemuSite, announce_qemu, cached_result, settle_qemu
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.hypervisor.wasm.backend import WasmBackend
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.source import BlobSource
from plasmavmc.images.store import ImageStore
from plasmavmc.manager import VmManager
from plasmavmc.network.addressbook import AddressBook
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.network.dns.keeper import ResolverKeeper
from plasmavmc.network.dns.probing import answers
from plasmavmc.network.dns.upstreams import guest_resolvers
from plasmavmc.network.ipam import ADDRESSES_FILE, SUBNET_FILE, choose_subnet, gateway_of
from plasmavmc.network.limits import connections_per_vm, tracked_connections
from plasmavmc.network.members import Members
from plasmavmc.parts import EngineParts
from plasmavmc.records import Records
from plasmavmc.server.upkeep import Upkeep, keep_up
from plasmavmc.snapshots.files import SnapshotStore
from plasmavmc.storage.choose import choose_storage
from plasmavmc.storage.volumes.choose import open_volumes
from plasmavmc.volumes import Volumes

_OWN_ADDRESSES = 3
"""Of a subnet: network, gateway, broadcast."""
_TRIES = 20
"""To take a subnet, where others take theirs at once."""

Probe = Callable[[], Coroutine[None, None, None]]
"""Finds out what boots on this host and offers it; to be run beside, after the first sweep."""

_UNKILLABLE = (
    "It waits for a disk that does not answer. What its VM has on this host stays until a start after its end."
)

log = structlog.get_logger("plasmavmc.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSite:
    """Where the engine of one installation lives on this host."""

    installation_id: str
    data_dir: Path
    run_dir: Path
    cache: Path
    blobs: Path
    """The blob store from which images are built."""
    preboot: int = 0
    """How many guests may be booted ahead."""
    image_budget: int = 0
    """Bytes that built images may take. Beyond it the longest unused go, and are built anew when they are needed. 0: as
    much as there is."""
    firecracker: Path = Path(FIRECRACKER)
    jailer: Path = Path(JAILER)
    """Both as the root helper was told."""
    zfs: str = ""
    """The dataset below which volumes are, as the root helper was told; empty: they are in the data directory."""
    subnet: IPv4Network | None = None
    """The one that VMs here get their addresses from, where somebody gives each host its own; None: see `open_subnet`."""
    reach: Reach = PLAINLY
    """How other nodes reach this one."""
    publish: PublishSite = NOTHING_PUBLISHED
    """Ports of this host at which VMs may answer, as the root helper was told."""
    web_port: int = 0
    """At which edges of the platform listen on all its hosts, besides 80 and 443; 0: at none."""
    connections_per_vm: int = 0
    """So many each VM may have; 0: see `network.limits`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The joined parts. Nothing was touched yet: `manager.recover` comes first."""

    manager: VmManager
    parts: EngineParts
    resolver: ResolverKeeper
    probes: tuple[Probe, ...]
    """One after the other; without those whose result is known already."""
    upkeep: Upkeep
    disk_dir: Path
    subnet: IPv4Network
    max_vms: int
    """Addresses there are."""

    async def recover(self, processes: tuple[ProcessId, ...] = ()) -> Swept:
        """Adopt what runs, the resolver first, and sweep what is nobody's; `processes` are spared, too. Guests that start
        from now on ask the resolver; where there is none, those of their host. The log tells what could not be ended."""
        await self.resolver.open()
        own = (self.resolver.process,) if self.resolver.process is not None else ()
        gateway = str(gateway_of(self.subnet))
        self.parts.nameservers = (gateway,) if self.resolver.serves else guest_resolvers()
        swept = await self.manager.recover((*processes, *own))
        for each in swept.unkillable:
            log.warning("host.unkillable", pid=each.process.pid, vm=each.key, resolution=_UNKILLABLE)
        return swept


async def open_subnet(host: Host, names: HostNames, data_dir: Path, given: IPv4Network | None = None) -> IPv4Network:
    """Take the installation's subnet: the one that is given, else the one it had, else the first that is free on this host.
    Its bridge has it from here on, so that of several that choose at once each has another.

    Raises:
        CapacityError: the given one is in use on this host, or none is free.
    """
    path = data_dir / SUBNET_FILE
    kept = IPv4Network(path.read_text().strip()) if path.exists() else None
    for _ in range(_TRIES):
        taken = await host.networks_in_use()
        wish = given or kept
        free = wish is not None and not any(wish.overlaps(network) for network in taken)
        if given is not None and not free:
            raise _taken(given)
        subnet = wish if wish is not None and free else choose_subnet(taken)
        try:
            await host.bridge_ensure(Members(names, subnet).bridge)
        except HostError as error:
            if error.code != "subnet-taken":
                raise
            continue  # somebody was faster
        path.write_text(f"{subnet}\n")
        return subnet
    raise CapacityError(
        "no-subnet",
        f"others took each network that was free on this host, {_TRIES} times in a row",
        resolution="Start it again.",
    )


def _taken(given: IPv4Network) -> CapacityError:
    return CapacityError(
        "subnet-taken",
        f"{given}, the subnet of this node's VMs, is in use on this host by something else",
        resolution="See: ip route. Remove what holds it, such as another installation.",
    )


def _connections(site: EngineSite) -> int:
    tracked = tracked_connections()
    most = connections_per_vm(site.connections_per_vm, tracked)
    log.info("engine.connections_limited", per_vm=most, of=tracked)
    return most


async def open_engine(host: EngineHost, site: EngineSite, blobs: BlobSource | None = None) -> Engine:
    """Join the parts. `blobs` is where images come from, if that is not a store at `site.blobs` which nobody else holds.

    Raises:
        HostError: the host's cache is not filled, or a program is missing; the volumes are elsewhere, or cannot be used.
        CapacityError: no subnet is free.
    """
    names = HostNames.of(site.installation_id)
    registry = HypervisorRegistry()
    assets = load_assets(site.cache)
    disk_dir = site.data_dir / "disks"
    disk_dir.mkdir(mode=0o700, exist_ok=True)
    subnet = await open_subnet(host, names, site.data_dir, site.subnet)
    resolver = ResolverKeeper(
        host,
        site.run_dir / "resolver",
        site.data_dir / "resolver",
        answers=partial(answers, str(gateway_of(subnet))),
    )
    volumes = await open_volumes(site.data_dir / "volumes", host, site.zfs)
    parts = EngineParts(
        images=ImageStore(site.data_dir / "images"),
        source=blobs or BlobStore(site.blobs),
        storage=choose_storage(disk_dir),
        volumes=Volumes(volumes, partial(volume_template, site.cache)),
        network=BridgeNetwork(
            host,
            names,
            subnet,
            time.monotonic,
            resolver,
            reach=site.reach,
            publish=site.publish,
            web_port=site.web_port,
            connections=_connections(site),
            book=AddressBook(subnet, site.data_dir / ADDRESSES_FILE),
        ),
        registry=registry,
        assets=assets,
        cache=site.cache,
        logs=LogStore(site.data_dir / "logs"),
        records=Records(site.data_dir / "vms"),
        snapshots=SnapshotStore(site.data_dir / "snapshots"),
        run_dir=site.run_dir,
        blanks=Blanks(site.preboot),
    )
    qemu = QemuSite(
        program=Path(find_program(EMULATOR)),
        installation=names.key,
        tsc_khz=tsc_khz(),
        kernel=assets.kernel,
        initrd=assets.initrd,
        run_dir=site.run_dir,
        cache=site.cache / "probes",
    )
    firecracker = FirecrackerSite(
        program=site.firecracker,
        jailer=site.jailer,
        kernel=assets.kernel,
        initrd=assets.vsock_initrd,
        run_dir=site.run_dir,
        cache=site.cache / "probes",
    )
    probes = (*await _offer_qemu(registry, host, qemu), *_offer_firecracker(registry, host, firecracker))
    registry.register(WasmBackend(host, names, CodeCache(site.data_dir / "wasm-code")))
    manager = VmManager(host, parts)
    return Engine(
        manager=manager,
        parts=parts,
        resolver=resolver,
        probes=probes,
        upkeep=partial(keep_up, manager, parts, site.image_budget, resolver.run),
        disk_dir=disk_dir,
        subnet=subnet,
        max_vms=subnet.num_addresses - _OWN_ADDRESSES,
    )


async def _offer_qemu(registry: HypervisorRegistry, host: Host, site: QemuSite) -> tuple[Probe, ...]:
    """Enter QEMU at once, so that what runs can be adopted; returns the probe that is to be run after the first sweep,
    unless its result is known."""
    backend = announce_qemu(registry, host, site)
    if cached_result(site) is not None:
        await settle_qemu(registry, backend, host, site)
        return ()

    async def probe() -> None:
        await settle_qemu(registry, backend, host, site)

    return (probe,)


def _offer_firecracker(registry: HypervisorRegistry, host: EngineHost, site: FirecrackerSite) -> tuple[Probe, ...]:
    """The same for Firecracker; a host without it has nothing to wait for."""
    backend = announce_firecracker(registry, host, host, site)
    if not site.program.exists():
        registry.refuse(backend.capabilities.name, f"{site.program} is not installed")
        return ()

    async def probe() -> None:
        await settle_firecracker(registry, backend, site)

    return (probe,)
