"""The guests' kernel: the distribution's, fetched as a package and unpacked into the cache, never installed on the host.

The distribution signs and updates it; we take its newest at the time of the first fetch and keep it until asked for an
update, so that a prepared host needs no network.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zstandard

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.guest.bzimage import extract_vmlinux
from plasmavmc.guest.cache import CURRENT, make_current, publish, workshop
from plasmavmc.host.run import Completed, run
from plasmavmc.types import MIB

META_PACKAGES: Mapping[str, str] = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
"""The package that always depends on the newest kernel for virtual machines, by `ID` of /etc/os-release."""

MODULES = (
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "squashfs",
    "overlay",
)
"""What a guest needs, in the order of loading: each after those it uses."""
VSOCK_MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")
"""What it needs besides where its channel is a vsock; to be loaded after the others."""

_VSOCK = "modules-vsock"
_OS_RELEASE = Path("/etc/os-release")
_REAL_PACKAGE = re.compile(r"linux-(?:image|modules)-(?:unsigned-)?\d[a-z0-9.+~-]*")
_DOWNLOAD_S = 600.0
_UNPACK_S = 120.0
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
    def vmlinux(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def sha256(self) -> str:
        """Of vmlinux, in hexadecimal."""
        return (self.directory / "sha256").read_text().strip()

    @property
    def has_vsock(self) -> bool:
        """Whether its modules for a vsock are there; a kernel that an older version fetched lacks them."""
        return (self.directory / _VSOCK).is_dir()

    def modules(self, *, vsock: bool = False) -> tuple[Path, ...]:
        """The modules it needs, uncompressed, in the order of loading; with those for a `vsock` where it has them."""
        base = sorted((self.directory / "modules").iterdir())
        return (*base, *(sorted((self.directory / _VSOCK).iterdir()) if vsock and self.has_vsock else ()))


def current_kernel(cache: Path) -> Kernel | None:
    """The kernel in use, if one was fetched."""
    directory = cache / "kernel" / CURRENT
    return Kernel(directory.resolve()) if (directory / "vmlinux").is_file() else None


async def fetch_kernel(cache: Path, *, update: bool = False) -> tuple[Kernel, bool]:
    """Make sure that the cache has a kernel; returns it, and whether it was fetched now. With `update` the archive's
    newest is fetched where it is another; also where the one that is there lacks modules, which it may keep lacking.

    Raises:
        HostError: the archive does not know the package, or what came is not what we need.
        UnavailableError: the archive cannot be reached.
    """
    present = current_kernel(cache)
    if present is None or update:
        return await _fetch(cache, present)
    if not present.has_vsock:
        with suppress(HostError, UnavailableError):  # who needs them says that they are missing
            return await _fetch(cache, present)
    return present, False


async def _fetch(cache: Path, present: Kernel | None) -> tuple[Kernel, bool]:
    parent = cache / "kernel"
    with workshop(parent) as made:
        packages = await _download(made)
        place = parent / _release(packages)
        fetched = not Kernel(place).has_vsock or present is None or present.directory != place.resolve()
        if not Kernel(place).has_vsock:
            tree = made / "tree"
            for package in packages:
                _check(await run(["dpkg-deb", "-x", str(package), str(tree)], timeout_s=_UNPACK_S), "unpack")
            kernel = await _assemble(tree, made / "kernel")
            if place.is_dir():  # an older version of ours left it, and VMs may boot from it now
                publish(kernel / _VSOCK, place / _VSOCK)
            else:
                publish(kernel, place)
    make_current(place)
    return Kernel(place), fetched


def _release(packages: Sequence[Path]) -> str:
    """The image package's name and version: `linux-image-6.1.0-1-cloud-amd64_6.1.1-1`."""
    image = next(package for package in packages if package.name.startswith("linux-image-"))
    return image.stem.removesuffix("_amd64").replace("%3a", ":")


async def _download(into: Path) -> list[Path]:
    wanted = await _real_packages(_meta_package(_OS_RELEASE.read_text()))  # noqa: ASYNC240 - a small local file
    completed = await run(["apt-get", "download", "-q", *wanted], timeout_s=_DOWNLOAD_S, cwd=into)
    if completed.returncode != 0:
        raise UnavailableError(
            "kernel-download",
            f"cannot download {', '.join(wanted)}",
            details=completed.complaint,
            resolution="Check the network and run apt-get update.",
        )
    return sorted(into.glob("*.deb"))  # noqa: ASYNC240 - a directory of ours


def _meta_package(os_release: str) -> str:
    found = re.search(r"^ID=\"?([a-z]+)", os_release, re.MULTILINE)
    distribution = found.group(1) if found else "unknown"
    if distribution not in META_PACKAGES:
        raise HostError(
            "unsupported-host",
            f"no guest kernel is known for the distribution {distribution!r}",
            resolution=f"Supported: {', '.join(sorted(META_PACKAGES))}.",
        )
    return META_PACKAGES[distribution]


async def _real_packages(meta: str) -> tuple[str, ...]:
    """The image that the meta package depends on, and the modules that the image depends on where they are apart."""
    images = await _dependencies(meta)
    return tuple(dict.fromkeys((*images, *[name for image in images for name in await _dependencies(image)])))


async def _dependencies(package: str) -> tuple[str, ...]:
    completed = await run(["apt-cache", "depends", "--important", package], timeout_s=60)
    names = parse_dependencies(completed.stdout.decode(errors="replace"))
    if completed.returncode != 0 or (not names and package in META_PACKAGES.values()):
        raise HostError(
            "no-kernel-package",
            f"the package archive does not know {package}",
            details=completed.complaint,
            resolution="Run apt-get update.",
        )
    return names


def parse_dependencies(output: str) -> tuple[str, ...]:
    """The kernel packages among what `apt-cache depends` printed."""
    found = (line.strip().removeprefix("Depends: ") for line in output.splitlines() if "Depends:" in line)
    return tuple(name for name in found if _REAL_PACKAGE.fullmatch(name))


def _check(completed: Completed, verb: str) -> None:
    if completed.returncode != 0:
        raise HostError("kernel-package", f"cannot {verb} the kernel's package", details=completed.complaint)


async def _assemble(tree: Path, made: Path) -> Path:
    """From the unpacked packages to what we keep."""
    image = next(iter((tree / "boot").glob("vmlinuz-*")), None)
    if image is None:
        raise HostError("kernel-package", "the kernel's package holds no /boot/vmlinuz")
    vmlinux = await extract_vmlinux(image.read_bytes())
    _keep_modules(tree, MODULES, made / "modules", first=0)
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
