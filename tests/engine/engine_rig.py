"""A whole engine on memory parts: real manager, images and records; pretended host, network, disks, VMMs and guests."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

from plasmavmc.guest.api import GuestConfig, GuestFailed
from plasmavmc.guest.boot import BootAssets
from plasmavmc.guest.logs import LogStore
from plasmavmc.guest.memory import MemoryGuest, Script
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.memory import MemoryHost
from plasmavmc.host.ports import PublishSite
from plasmavmc.hypervisor.memory import MemoryBackend, PretendedVmms
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.images.store import ImageStore
from plasmavmc.manager import VmManager
from plasmavmc.network.memory import MemoryNetwork
from plasmavmc.parts import EngineParts
from plasmavmc.records import Records
from plasmavmc.snapshots.files import SnapshotStore
from plasmavmc.storage.memory import MemoryStorage
from plasmavmc.storage.volumes.memory import MemoryVolumes
from plasmavmc.types import GIB, LogStream, NetworkSpec, Scope, VmResources, VmSpec
from plasmavmc.volumes import Volumes
from tests.contract.images_samples import MemorySource, Sample, entry, image, layer

SAMPLE: Sample = image(layer(entry("app", b"#!")), config={"Entrypoint": ["/app"], "StopSignal": "SIGTERM"})
HELLO = (LogStream.STDOUT, b"hello\n")


def script(config: GuestConfig) -> Script:
    """`serve` runs until stopped, `exit N` ends with N, `missing` is no command; all but the last say hello."""
    match config.argv[1:]:
        case ("exit", code):
            return Script(output=(HELLO,), exit_code=int(code))
        case ("missing",):
            return Script(failure=GuestFailed("no-such-command", "there is no /missing"))
        case _:
            return Script(output=(HELLO,), stop_code=143)


OFFERED = PublishSite(range(20_000, 20_010))
"""Ports that the rig's host lets VMs answer at."""


@dataclass
class EngineRig:
    """`manager()` is an engine; a second one over the same rig is the engine after a restart."""

    directory: Path
    sample: Sample = SAMPLE
    vmms: PretendedVmms = field(default_factory=lambda: PretendedVmms(lambda _spec: MemoryGuest(script)))

    def __post_init__(self) -> None:
        self.host = MemoryHost(HelperConfiguration("swg_test", os.getuid(), os.getgid()))
        self.storage = MemoryStorage(capacity_bytes=64 * GIB)
        self.volumes = MemoryVolumes(capacity_bytes=64 * GIB)
        self.network = self._network()
        self.logs = LogStore(self.directory / "logs")
        template = self.directory / "cache" / "disks" / f"ext4-{4 * GIB}-v1.img"
        template.parent.mkdir(parents=True)
        template.write_bytes(b"")

    async def _volume_template(self, _size_bytes: int) -> Path:
        template = self.directory / "cache" / "disks" / "volume.img"
        template.write_bytes(b"a file system")
        return template

    def _network(self) -> MemoryNetwork:
        ticks = itertools.count()
        return MemoryNetwork(
            HelperConfiguration("swg_test", 0, 0).names,
            IPv4Network("10.64.0.0/20"),
            lambda: next(ticks),
            publish=OFFERED,
        )

    def manager(self) -> VmManager:
        """A new engine on what is left of the last one."""
        registry = HypervisorRegistry()
        registry.register(MemoryBackend(self.vmms))
        self.network = self._network()
        self.parts = EngineParts(
            images=ImageStore(self.directory / "images"),
            source=MemorySource(self.sample),
            storage=self.storage,
            volumes=Volumes(self.volumes, self._volume_template),
            network=self.network,
            registry=registry,
            assets=BootAssets(Path("/kernel"), Path("/initrd"), Path("/initrd-vsock"), "6.1", "0" * 64, "0" * 32),
            cache=self.directory / "cache",
            logs=LogStore(self.directory / "logs"),
            records=Records(self.directory / "vms"),
            snapshots=SnapshotStore(self.directory / "snapshots"),
            run_dir=self.directory / "run",
        )
        return VmManager(self.host, self.parts)

    def spec(self, name: str, *command: str) -> VmSpec:
        return VmSpec(
            id=f"vm_{name}",
            scope=Scope("org_1", "prj_1"),
            name=name,
            image=self.sample.digest,
            command=command,
            env={"TOKEN": "canary-value"},
            resources=VmResources(memory_bytes=128 << 20),
            networks=(NetworkSpec(f"nic_{name}", "net_1"),),
        )
