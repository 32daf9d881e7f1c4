"""A whole engine on real parts (root helper, bridge, QEMU, disks) in a network namespace, with an image that shows what a
suspend does to a program. `crash` is what kill -9 of the platform looks like from the host."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from examples.demo.images import base
from plasmavmc.backends import Acceleration
from plasmavmc.guest.boot import build_guest
from plasmavmc.guest.filesystem import volume_template
from plasmavmc.guest.logs import LogStore
from plasmavmc.guest.tsc import tsc_khz
from plasmavmc.host.configuration import QEMU
from plasmavmc.host.helper.seats import LEASE
from plasmavmc.host.names import is_shaper
from plasmavmc.hypervisor.qemu.backend import KvmBackend
from plasmavmc.hypervisor.qemu.offer import QemuSite
from plasmavmc.hypervisor.qemu.seating import Seating
from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.images.store import ImageStore
from plasmavmc.manager import VmManager
from plasmavmc.network.bridge import BridgeNetwork
from plasmavmc.parts import EngineParts
from plasmavmc.records import Records
from plasmavmc.snapshots.files import SnapshotStore
from plasmavmc.states import VmState
from plasmavmc.storage.choose import choose_storage
from plasmavmc.storage.volumes.choose import choose_volumes
from plasmavmc.types import MIB, NetworkSpec, Scope, VmResources, VmSpec, vm_key
from plasmavmc.volumes import Volumes
from tests.contract.host_rig import RealHelper, real_helper
from tests.contract.images_samples import MemorySource, Sample, directory, entry, image, layer
from tests.host_cache import cache_directory

APP = Path(__file__).with_name("suspend_app.py")
SUBNET = IPv4Network("10.64.16.0/20")
PATIENCE_S = 120.0
HOOK = """#!/bin/sh
[ -n "$HOOK_FAILS" ] && exit 3
for process in /proc/[0-9]*; do
    read -r name < $process/comm
    [ "$name" = python3 ] && kill -USR2 ${process#/proc/}
done
exit 0
"""
"""Tells the program, which stands still, to renew what it once drew from the kernel; it does so when it goes on.
With `HOOK_FAILS` in its environment it fails."""


def certificate(into: Path) -> bytes:
    """A key and a certificate for it, as one PEM."""
    key, made = into / "key.pem", into / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        [*command, "-subj", "/CN=app", "-days", "30", "-keyout", key, "-out", made], check=True, capture_output=True
    )
    return key.read_bytes() + made.read_bytes()


def app_image(scratch: Path, *, hook: str = HOOK) -> Sample:
    """The program on the demonstration's base, with a machine id and a hook for restores."""
    hooks = (directory("etc/shellwego"), entry("etc/shellwego/restored", hook.encode(), mode=0o755)) if hook else ()
    ours = layer(
        directory("app", mode=0o777),
        entry("app/app.py", APP.read_bytes(), mode=0o644),
        entry("app/certificate.pem", certificate(scratch), mode=0o644),
        entry("etc/machine-id", b"0" * 32 + b"\n", mode=0o644),
        *hooks,
    )
    config = {
        "Entrypoint": ["/usr/bin/python3", "/app/app.py"],
        "Env": ["PATH=/usr/bin:/bin"],
        "User": "nobody",
        "WorkingDir": "/app",
        "StopSignal": "SIGTERM",
    }
    return image(base().read_bytes(), ours, compress="none", config=config)


@dataclass
class World:
    helper: RealHelper
    directory: Path
    image: Sample
    images: Path
    subnet: IPv4Network = SUBNET
    snapshots: Path = field(init=False)
    manager: VmManager = field(init=False)
    parts: EngineParts = field(init=False)

    def __post_init__(self) -> None:
        self.snapshots = self.directory / "snapshots"

    async def engine(self) -> VmManager:
        """A new life of the engine on what is left of the last one."""
        assets, _ = await build_guest(cache_directory())
        registry = HypervisorRegistry()
        run_dir = self.directory / "run"
        run_dir.mkdir(exist_ok=True)
        site = QemuSite(
            program=Path(QEMU),
            installation=self.helper.configuration.key,
            tsc_khz=tsc_khz(),
            kernel=assets.kernel,
            initrd=assets.initrd,
            run_dir=run_dir,
            cache=self.directory / "probes",
        )
        backend = KvmBackend(self.helper.host, site.machine(Acceleration.TCG), seating=Seating(self.helper.host))
        registry.register(backend)
        self.parts = EngineParts(
            images=ImageStore(self.images),
            source=MemorySource(self.image),
            storage=choose_storage(self.directory / "disks"),
            volumes=Volumes(choose_volumes(self.directory / "volumes"), partial(volume_template, cache_directory())),
            network=BridgeNetwork(self.helper.host, self.helper.names, self.subnet, time.monotonic),
            registry=registry,
            assets=assets,
            cache=cache_directory(),
            logs=LogStore(self.directory / "logs"),
            records=Records(self.directory / "vms"),
            snapshots=SnapshotStore(self.snapshots),
            run_dir=run_dir,
        )
        self.manager = VmManager(self.helper.host, self.parts)
        await self.manager.recover()
        return self.manager

    async def crash(self) -> VmManager:
        """The platform is killed, helper and all, while it does nothing, and starts again."""
        await self.manager.close(keep_vms=True)
        self.helper.restart()
        return await self.engine()

    async def crash_while_suspending(self, vm_id: str, moment_s: float) -> VmManager:
        """Another process takes the platform over, begins to suspend, and is killed so long after that, helper and all."""
        await self.manager.close(keep_vms=True)
        self.helper.stop()
        told = {
            "id": self.helper.configuration.installation_id,
            "run_root": str(self.helper.configuration.run_root),
            "uids": [self.helper.configuration.vm_uids.start, self.helper.configuration.vm_uids.stop],
            "namespace": self.helper.namespace.pid,
            "directory": str(self.directory),
            "images": str(self.images),
            "vm": vm_id,
        }
        owner = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.real.suspend_owner", json.dumps(told)),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert owner.stdout is not None
        async for line in owner.stdout:  # the engine's log lines come there too
            if line == b"suspending\n":
                break
        else:
            raise AssertionError("the owner ended before it suspended")
        await asyncio.sleep(moment_s)
        os.killpg(owner.pid, signal.SIGKILL)
        await owner.wait()
        self.helper.start()
        return await self.engine()

    def spec(self, name: str, **changes: object) -> VmSpec:
        made = VmSpec(
            id=f"vm_{name}",
            scope=Scope("org_1", "prj_1"),
            name=name,
            image=self.image.digest,
            resources=VmResources(memory_bytes=256 * MIB),
            networks=(NetworkSpec(f"nic_{name}", "net_1", network_number=1),),
        )
        return replace(made, **changes)  # type: ignore[arg-type]

    async def started(self, name: str, **changes: object) -> str:
        """A VM whose program answers; its id."""
        spec = self.spec(name, **changes)
        self.manager.create(spec)
        self.manager.start(spec.id)
        await self.reaches(spec.id, VmState.RUNNING)
        await self.answers(spec.id)
        return spec.id

    async def reaches(self, vm_id: str, state: VmState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            revision = self.manager.revision
            while (status := self.manager.get(vm_id).status).state is not state:
                assert status.state is not VmState.FAILED, f"{status.reason}\n" + "\n".join(status.log_tail)
                revision = await self.manager.changed(revision)

    async def ask(self, vm_id: str, path: str, *, timeout_s: float = 30.0) -> str:
        """One request to the program, from the host."""
        (endpoint,) = self.manager.get(vm_id).status.endpoints
        url = f"http://{endpoint.removeprefix('tcp:')}:8080{path}"
        command = [*self.helper.namespace.enter, "curl", "-sS", "-m", f"{timeout_s:g}", url]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, complaint = await process.communicate()
        if process.returncode != 0:
            raise ConnectionError(complaint.decode())
        return said.decode()

    async def answers(self, vm_id: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await self.ask(vm_id, "/", timeout_s=1.0)
                except ConnectionError:
                    await asyncio.sleep(0.02)
                else:
                    return

    async def identity(self, vm_id: str) -> dict[str, str]:
        found: dict[str, str] = json.loads(await self.ask(vm_id, "/identity"))
        return found

    def snapshot(self, vm_id: str) -> Path:
        return self.snapshots / vm_key(vm_id)

    async def leftovers(self) -> dict[str, object]:
        """What the host still has of VMs; empty in every part where nothing is left."""
        await self.parts.network.settle()
        await asyncio.gather(*(machine.cleared() for machine in self.manager._machines))
        links = self.helper.namespace.links() - {self.helper.names.bridge, "lo", "other"}
        uids = self.helper.configuration.run_root / "uids"
        leases = {path.name: path.read_text().split()[-1] for path in uids.iterdir()} if uids.is_dir() else {}
        seats = {uid for uid, holder in leases.items() if holder == LEASE}
        return {
            # one that was made ahead is nobody's yet
            "taps": {link for link in links if self.helper.names.is_tap(link) or is_shaper(link)},
            "cgroups": self.helper.cgroups() - {self.helper.names.vm_cgroup(int(uid)) for uid in seats},
            "uids": leases.keys() - seats,
            "sockets": set((self.directory / "run" / "vm").glob("*")),
            "snapshots": set(self.snapshots.iterdir()),
            "processes": {pid for pid in _qemu_of(self.helper.names.key)},
        }


def _qemu_of(key: str) -> set[int]:
    found = set()
    for entry_ in Path("/proc").iterdir():
        if entry_.name.isdecimal():
            try:
                words = (entry_ / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "qemu" in words[0] and any(key in word for word in words):
                found.add(int(entry_.name))
    return found


NOTHING: dict[str, set[object]] = {
    name: set() for name in ("taps", "cgroups", "uids", "sockets", "snapshots", "processes")
}


@asynccontextmanager
async def world(tmp_path: Path, sample: Sample, images: Path, subnet: IPv4Network = SUBNET) -> AsyncIterator[World]:
    """An engine that runs nothing yet, and leaves nothing behind."""
    short = Path(tempfile.mkdtemp(prefix="swgsus-"))
    try:
        async with real_helper(tmp_path) as helper:
            made = World(helper, short, sample, images, subnet)
            await made.engine()
            try:
                yield made
            finally:
                await made.manager.close(keep_vms=False)
    finally:
        shutil.rmtree(short, ignore_errors=True)


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, at)
        os.pwrite(descriptor, bytes([byte[0] ^ 1]), at)
    finally:
        os.close(descriptor)
