"""What a guest boots from, in the host's cache: kernel, initramfs (our init and its modules), and the formatted disk
that writable layers are cloned from."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.guest.cache import CURRENT, make_current, publish, workshop
from plasmavmc.guest.cpio import archive, character_device, directory, regular
from plasmavmc.guest.kernel import Kernel, current_kernel
from plasmavmc.guest.native import native_directory
from plasmavmc.host.run import run
from plasmavmc.types import GIB, MIB

VSOCK = "vsock"
"""The channel of a machine without a virtio-serial port, as backends name it."""
DEFAULT_DISK_BYTES = 4 * GIB
MIN_DISK_BYTES = 16 * MIB
_INITRD_LAYOUT = b"2"
"""Raised when the same sources make another initramfs."""
_INITRDS = {"initrd": False, "initrd-vsock": True}
"""File names, each with whether it holds what a vsock needs."""
_DISK_LAYOUT = 1
_COMPILE_S = 120.0
_FORMAT_S = 60.0
_REMEDY = "Run scripts/setup (or: plasmavmc kernel fetch && plasmavmc guest build)."
_locks: dict[Path, asyncio.Lock] = {}


@dataclass(frozen=True, slots=True)
class BootAssets:
    """Kernel and initramfs for a VMM's `-kernel` and `-initrd`."""

    kernel: Path
    initrd: Path
    """For a machine whose channel is a virtio-serial port."""
    vsock_initrd: Path
    """For one whose channel is a vsock; the other is spared its modules."""
    kernel_release: str
    kernel_hash: str
    """sha256 of the kernel, in hexadecimal."""
    initrd_hash: str
    """Names the content of the initramfs: its init's sources and its modules."""

    def initrd_for(self, channel: str) -> Path:
        """The initramfs for a channel, as `BackendCapabilities.channel` names it."""
        return self.vsock_initrd if channel == VSOCK else self.initrd


def assets_present(cache: Path) -> bool:
    """Kernel and initramfs are in the cache, and made for each other."""
    kernel = current_kernel(cache)
    return kernel is not None and _initrd_is_for(cache / "guest" / _link_for(kernel), kernel)


def load_assets(cache: Path) -> BootAssets:
    """What guests boot from on this host.

    Raises:
        HostError: `no-guest-kernel`, the cache was not filled.
    """
    kernel = current_kernel(cache)
    guest = None if kernel is None else (cache / "guest" / _link_for(kernel)).resolve()
    if kernel is None or guest is None or not _initrd_is_for(guest, kernel):
        raise HostError("no-guest-kernel", f"the guest's kernel and init are not in {cache}", resolution=_REMEDY)
    return _assets(kernel, guest)


def find_assets(cache: Path, kernel_hash: str, initrd_hash: str) -> BootAssets | None:
    """What a guest once booted from, in use still or not; None where it is not in the cache any more."""
    guest = cache / "guest" / initrd_hash
    try:
        kernel = Kernel(cache / "kernel" / (guest / "kernel").read_text().strip())
        return _assets(kernel, guest) if initrd_hash and kernel.sha256 == kernel_hash else None
    except OSError:
        return None


def _assets(kernel: Kernel, guest: Path) -> BootAssets:
    initrd, vsock_initrd = (guest / name for name in _INITRDS)
    return BootAssets(kernel.vmlinux, initrd, vsock_initrd, kernel.release, kernel.sha256, guest.name)


def _link_for(kernel: Kernel) -> str:
    """The link in `guest` to the initramfs for a kernel. One of our own has a link of its own, so that the link to the
    kernel is all that is switched when it comes into use."""
    return kernel.release if kernel.own else CURRENT


def _initrd_is_for(guest: Path, kernel: Kernel) -> bool:
    built_for = guest / "kernel"
    complete = all((guest / name).is_file() for name in _INITRDS)
    return complete and built_for.is_file() and built_for.read_text().strip() == kernel.release


def init_sources() -> Path:
    """The directory of the guest init's C sources."""
    return native_directory("init")


async def build_guest(cache: Path) -> tuple[BootAssets, bool]:
    """Make sure that the cache has the initramfs for its kernel and this version's init; returns what guests boot from,
    and whether it was built now.

    Raises:
        HostError: `no-guest-kernel`; `missing-program`; `init-build`, with the compiler's words.
    """
    kernel = current_kernel(cache)
    if kernel is None:
        raise HostError("no-guest-kernel", f"no guest kernel is in {cache}", resolution="Run: plasmavmc kernel fetch")
    return await build_guest_for(cache, kernel)


async def build_guest_for(cache: Path, kernel: Kernel) -> tuple[BootAssets, bool]:
    """The same for a kernel that is not, or not yet, the one in use.

    Raises:
        HostError: as `build_guest`.
    """
    sources, parent, link = init_sources(), cache / "guest", _link_for(kernel)
    place = parent / _initrd_key(sources, kernel)
    if (parent / link).resolve() == place and _initrd_is_for(place, kernel):
        return _assets(kernel, place), False
    with workshop(parent) as made:
        guest = made / "guest"
        guest.mkdir()
        init = await _compile(sources, made)
        for name, vsock in _INITRDS.items():
            (guest / name).write_bytes(initramfs(init, kernel.modules(vsock=vsock)))
        (guest / "kernel").write_text(kernel.release + "\n")
        publish(guest, place)
    make_current(place, link)
    return _assets(kernel, place), True


def _initrd_key(sources: Path, kernel: Kernel) -> str:
    digest = hashlib.sha256(_INITRD_LAYOUT + kernel.release.encode() + kernel.sha256.encode())
    digest.update(b"".join(module.name.encode() + b"\0" for module in kernel.modules(vsock=True)))
    for source in sorted((*sources.glob("*.[ch]"), sources / "Makefile")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


async def _compile(sources: Path, into: Path) -> bytes:
    target = into / "init"
    completed = await run(["make", "-C", str(sources), f"OUT={into}", str(target)], timeout_s=_COMPILE_S)
    if completed.returncode != 0:
        raise HostError(
            "init-build",
            "the guest's init does not compile",
            details=completed.stderr.decode(errors="replace")[-2000:],
            resolution="apt-get install gcc make musl-tools",
        )
    return target.read_bytes()


def initramfs(init: bytes, modules: Iterable[Path]) -> bytes:
    """The initramfs: init, its modules named in the order of loading, and a console for its first words."""
    return archive(
        (
            directory("dev"),
            character_device("dev/console", 5, 1),
            directory("mods"),
            *(regular(f"mods/{module.name}", module.read_bytes()) for module in modules),
            regular("init", init, 0o755),
        )
    )


def disk_size(size_bytes: int) -> int:
    """Of the disk that a VM gets who asks for so much: whole MiB, and enough for a file system."""
    return -(-max(size_bytes, MIN_DISK_BYTES) // MIB) * MIB


async def disk_template(cache: Path, size_bytes: int) -> Path:
    """A sparse file with an empty ext4 of this size, to clone writable layers from; made once per size.

    No journal: a layer lives as long as its VM and is never mounted a second time. Nothing is left to initialise
    later, so the guest's kernel does not write to it by itself.

    Raises:
        HostError: `missing-program`, `disk-template`, `cache-not-writable`.
    """
    size = disk_size(size_bytes)
    parent = cache / "disks"
    place = parent / f"ext4-{size}-v{_DISK_LAYOUT}.img"
    async with _locks.setdefault(place, asyncio.Lock()):
        if place.is_file():
            return place
        with workshop(parent) as made:
            image = made / "disk"
            with image.open("wb") as file:
                file.truncate(size)
            completed = await run(mkfs_argv(image), timeout_s=_FORMAT_S)
            if completed.returncode != 0:
                raise HostError("disk-template", f"cannot format a disk of {size} bytes", details=completed.complaint)
            publish(image, place)
    return place


def mkfs_argv(image: Path) -> list[str]:
    """How a template is formatted (mke2fs(8)). The fixed UUID and hash seed make it the same on every host."""
    fixed = "00000000-0000-4000-8000-000000000001"
    return [
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        "-L",
        "layer",
        "-U",
        fixed,
        "-O",
        "^has_journal,^resize_inode",
        "-E",
        f"assume_storage_prezeroed=1,lazy_itable_init=1,nodiscard,hash_seed={fixed}",
        str(image),
    ]
