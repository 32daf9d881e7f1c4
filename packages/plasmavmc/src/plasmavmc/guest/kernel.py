"""The guests' kernel: the distribution's, fetched as a package and unpacked into the cache, never installed on the host.

The distribution signs and updates it; we take its newest at the time of the first fetch and keep it until asked for an
update, so that a prepared host needs no network. A kernel of our own configuration (`ownkernel`) is used before it where
one was built and linked as `own`.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from plasmavmc.errors import HostError
from plasmavmc.guest.apt import AptArchive, Archive, distribution, unpack
from plasmavmc.guest.bzimage import extract_vmlinux
from plasmavmc.guest.cache import CURRENT, make_current, publish, workshop
from plasmavmc.host.architecture import PACKAGE_NAME, host_architecture
from plasmavmc.types import MIB

OWN = "own"
"""The link to the kernel of our own configuration, and how the names of such kernels begin."""

MODULES = (
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "squashfs",
    "overlay",
)
"""What a guest needs, in the order of loading: each after those it uses."""
VSOCK_MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")
"""What it needs besides where its channel is a vsock; to be loaded after the others."""

_BASE, _VSOCK = "modules-2", "modules-vsock"
"""Where they lie. The names change with the lists, so that what an older version fetched is completed."""
_REAL_PACKAGE = re.compile(r"linux-(?:image|modules)-(?:unsigned-)?\d[a-z0-9.+~-]*")
_MAX_MODULE = 64 * MIB


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache."""

    directory: Path

    @property
    def release(self) -> str:
        """Package and version it came from; names its directory."""
        return self.directory.name

    @property
    def version(self) -> str:
        """Of its source, as the distribution counts."""
        if self.own:
            return self.release.removeprefix(f"{OWN}-").rpartition("-")[0]
        return self.release.rpartition("_")[2]

    @property
    def own(self) -> bool:
        """Built here, of our own configuration: its drivers are built in."""
        return self.release.startswith(f"{OWN}-")

    @property
    def vmlinux(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def sha256(self) -> str:
        """Of vmlinux, in hexadecimal."""
        return (self.directory / "sha256").read_text().strip()

    @property
    def complete(self) -> bool:
        """Whether all that guests need of it is there; what an older version fetched may lack modules."""
        return self.vmlinux.is_file() and (
            self.own or all((self.directory / name).is_dir() for name in (_BASE, _VSOCK))
        )

    def modules(self, *, vsock: bool = False) -> tuple[Path, ...]:
        """The modules it needs, uncompressed, in the order of loading; with those for a `vsock` where that is asked for."""
        names = () if self.own else (_BASE, _VSOCK) if vsock else (_BASE,)
        return tuple(module for name in names for module in sorted((self.directory / name).iterdir()))


def current_kernel(cache: Path) -> Kernel | None:
    """The kernel in use: our own where there is one, else the distribution's, else None."""
    return own_kernel(cache) or distribution_kernel(cache)


def own_kernel(cache: Path) -> Kernel | None:
    """The kernel of our own configuration, where one was built and is to be used."""
    return _linked(cache, OWN)


def distribution_kernel(cache: Path) -> Kernel | None:
    """The distribution's kernel, if one was fetched."""
    return _linked(cache, CURRENT)


def lacks_fixes(own: Kernel, distribution: Kernel) -> bool:
    """Whether the distribution's kernel has a newer source. Only numbers are compared: letters in versions of kernels tell
    where they were built."""
    return _numbers(own.version) < _numbers(distribution.version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _linked(cache: Path, link: str) -> Kernel | None:
    kernel = Kernel((cache / "kernel" / link).resolve())
    return kernel if kernel.complete else None


async def fetch_kernel(cache: Path, *, update: bool = False) -> tuple[Kernel, bool]:
    """Make sure that the cache has the distribution's kernel; returns it, and whether it was fetched now. With `update`
    the archive's newest is fetched where it is another.

    Raises:
        HostError: the archive does not know the package, or what came is not what we need.
        UnavailableError: the archive cannot be reached.
    """
    present = distribution_kernel(cache)
    if present is not None and not update:
        return present, False
    parent = cache / "kernel"
    with workshop(parent) as made:
        packages = await _download(AptArchive(), made)
        place = parent / _release(packages)
        if not Kernel(place).complete:
            _complete(place, await _assemble(await unpack(packages, made / "tree"), made / "kernel"))
    fetched = present is None or present.directory != place.resolve()
    make_current(place)
    return Kernel(place), fetched


def _complete(place: Path, kernel: Path) -> None:
    """Put a kernel into its place, or what is missing there: VMs may boot now from what an older version left."""
    if not place.is_dir():
        publish(kernel, place)
        return
    for name in (_BASE, _VSOCK):
        if not (place / name).is_dir():
            publish(kernel / name, place / name)


def _release(packages: Sequence[Path]) -> str:
    """The image package's name and version: `linux-image-6.1.0-1-cloud-amd64_6.1.1-1`."""
    image = next(package for package in packages if package.name.startswith("linux-image-"))
    return image.stem.removesuffix(f"_{PACKAGE_NAME}").replace("%3a", ":")


async def _download(archive: Archive, into: Path) -> list[Path]:
    return await archive.download(await _real_packages(archive, _meta_package(distribution())), into)


def _meta_package(name: str) -> str:
    packages = host_architecture().kernel_packages
    if name not in packages:
        raise HostError(
            "unsupported-host",
            f"no guest kernel is known for the distribution {name!r}",
            resolution=f"Supported: {', '.join(sorted(packages))}.",
        )
    return packages[name]


async def _real_packages(archive: Archive, meta: str) -> tuple[str, ...]:
    """The image that the meta package depends on, and the modules that the image depends on where they are apart."""
    images = kernel_packages(await archive.dependencies(meta))
    if not images:
        raise HostError(
            "no-kernel-package", f"{meta} depends on no kernel that is known", resolution="Run apt-get update."
        )
    modules = [name for image in images for name in kernel_packages(await archive.dependencies(image))]
    return tuple(dict.fromkeys((*images, *modules)))


def kernel_packages(names: Sequence[str]) -> tuple[str, ...]:
    """Those among names of packages that hold a kernel or its modules."""
    return tuple(name for name in names if _REAL_PACKAGE.fullmatch(name))


async def _assemble(tree: Path, made: Path) -> Path:
    """From the unpacked packages to what we keep."""
    image = next(iter((tree / "boot").glob("vmlinuz-*")), None)
    if image is None:
        raise HostError("kernel-package", "the kernel's package holds no /boot/vmlinuz")
    vmlinux = await extract_vmlinux(image.read_bytes())
    _keep_modules(tree, MODULES, made / _BASE, first=0)
    _keep_modules(tree, VSOCK_MODULES, made / _VSOCK, first=len(MODULES))
    (made / "vmlinux").write_bytes(vmlinux)
    (made / "sha256").write_text(hashlib.sha256(vmlinux).hexdigest() + "\n")
    return made


def _keep_modules(tree: Path, names: Sequence[str], into: Path, *, first: int) -> None:
    into.mkdir(parents=True)
    for number, name in enumerate(names, start=first):
        content = read_module(tree, name)
        if content is not None:
            (into / f"{number:02d}-{name}.ko").write_bytes(content)


def read_module(tree: Path, name: str) -> bytes | None:
    """A module of an unpacked kernel, uncompressed; None where it is built in.

    Raises:
        HostError: `kernel-module`, the kernel does not have it at all.
    """
    for path in sorted(tree.glob(f"**/{name}.ko*")):
        packed = path.read_bytes()
        if path.suffix == ".ko":
            return packed
        if path.suffix == ".xz":
            return lzma.decompress(packed)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MAX_MODULE)
        if path.suffix == ".gz":
            return zlib.decompress(packed, wbits=31)
    if any(f"/{name}.ko" in line for listing in tree.glob("**/modules.builtin") for line in _lines(listing)):
        return None
    raise HostError("kernel-module", f"the kernel has no module {name}", resolution="Use another kernel package.")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
