"""Real QEMU for the hypervisor contract: the root helper in a namespace of its own, the host's kernel and init, and an
image of one static program."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.guest.boot import BootAssets, build_guest, disk_template
from plasmavmc.guest.tsc import tsc_khz
from plasmavmc.host.configuration import QEMU
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, VmPlan
from plasmavmc.hypervisor.qemu.backend import KvmBackend
from plasmavmc.hypervisor.qemu.migration import run_state
from plasmavmc.hypervisor.qemu.offer import QemuSite
from plasmavmc.hypervisor.qemu.qmp import qmp_session
from plasmavmc.hypervisor.qemu.sockets import VmSockets
from plasmavmc.types import MIB, VmHandle, VmSpec, vm_key
from tests.contract.helper_rig import HelperRig
from tests.contract.host_rig import Namespace, RealHelper, real_helper
from tests.host_cache import cache_directory

WORKLOAD = Path(__file__).resolve().parents[2] / "packages/plasmavmc/native/init/tests/app.c"


def build_image(directory: Path) -> Path:
    """A squashfs with the static program /app, and nothing else."""
    tree, image = directory / "tree", directory / "image"
    tree.mkdir()
    subprocess.run(["musl-gcc", "-D_GNU_SOURCE", "-static", "-Os", "-s", "-o", tree / "app", WORKLOAD], check=True)
    tar = subprocess.run(["tar", "-C", tree, "-c", "."], check=True, capture_output=True).stdout
    subprocess.run(["tar2sqfs", "-q", image], input=tar, check=True)
    return image


class QemuRig(HelperRig):
    """Implements `PausableRig`."""

    def __init__(self, helper: RealHelper, directory: Path, assets: BootAssets, image: Path, template: Path) -> None:
        super().__init__(helper, directory)
        self.assets = assets
        self._image = image
        self._template = template
        self.site = QemuSite(
            program=Path(QEMU),
            installation=helper.configuration.key,
            tsc_khz=tsc_khz(),
            kernel=assets.kernel,
            initrd=assets.initrd,
            run_dir=directory,
            cache=directory / "cache",
        )
        self.backend = self._new_backend()

    def _new_backend(self) -> KvmBackend:
        return KvmBackend(self.helper.host, self.site.machine(Acceleration.TCG))

    def plan(self, spec: VmSpec) -> VmPlan:
        subprocess.run(["cp", "--sparse=always", self._template, self._layer(spec)], check=True)
        return self._plan(spec)

    def restored_plan(self, spec: VmSpec, origin: VmSpec, memory: MemoryPlan) -> VmPlan:
        if spec.id != origin.id:
            subprocess.run(["cp", "--sparse=always", self._layer(origin), self._layer(spec)], check=True)
        return replace(self._plan(spec), memory=memory)

    async def guest_runs(self, handle: VmHandle) -> bool:
        if self.backend._vms[handle.vm_id].monitor is not None:
            return False  # it is held by a session that waits for `wake_vm`, and QEMU serves one at a time
        async with qmp_session(VmSockets(Path(handle.runtime_dir)).qmp) as monitor:
            return await run_state(monitor) == "running"

    def _layer(self, spec: VmSpec) -> Path:
        return self.directory / f"{vm_key(spec.id)}.layer"

    def _plan(self, spec: VmSpec) -> VmPlan:
        key = vm_key(spec.id)
        runtime_dir = self.directory / key
        runtime_dir.mkdir(mode=0o700, exist_ok=True)
        layer = self._layer(spec)
        disks = (
            DiskPlan("image", self._open(self._image, os.O_RDONLY), read_only=True),
            DiskPlan("layer", self._open(layer, os.O_RDWR), read_only=False),
        )
        return VmPlan(key, runtime_dir, self.assets.kernel, self.assets.initrd, disks)

    def broken_plan(self, spec: VmSpec) -> VmPlan:
        nonsense = self.directory / "nonsense"
        nonsense.write_text("this is no kernel\n" * 1000)
        return replace(self.plan(spec), kernel=nonsense)

    def restart(self) -> None:
        self.backend.close()
        self.backend = self._new_backend()

    def close(self) -> None:
        self.backend.close()
        super().close()


class OpenKvm(Namespace):
    """A namespace of a helper in which every uid may open /dev/kvm, as udev's rule lets a group do elsewhere."""

    _MOUNT = 'mount -t tmpfs none /mnt && mknod -m 666 /mnt/kvm c 10 232 && mount --bind /mnt/kvm /dev/kvm && exec "$@"'

    @property
    def enter(self) -> list[str]:
        return [*super().enter, "unshare", "--mount", "sh", "-c", self._MOUNT, "sh"]


@asynccontextmanager
async def qemu_rig(tmp_path: Path, image: Path, *, open_kvm: bool = False) -> AsyncIterator[QemuRig]:
    """A rig that leaves nothing behind."""
    assets, _ = await build_guest(cache_directory())
    template = await disk_template(cache_directory(), 64 * MIB)
    directory = Path(tempfile.mkdtemp(prefix="swghv-"))
    try:
        async with real_helper(tmp_path) as helper:
            if open_kvm:
                helper.namespace.__class__ = OpenKvm
                helper.restart()
            rig = QemuRig(helper, directory, assets, image, template)
            try:
                yield rig
            finally:
                rig.close()
    finally:
        shutil.rmtree(directory)
