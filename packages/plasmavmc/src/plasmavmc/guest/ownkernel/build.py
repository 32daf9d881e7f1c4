"""From the distribution's source to a kernel in the cache that is used from then on.

Theory. Everything happens on a building site beside the kernels, which is cleared whatever way the build ends; one that
was killed is cleared by the next. The kernel appears complete or not at all; then the initramfs for it; and when both are
there one link brings them into use. So who starts a VM meanwhile has the old ones, whole.

What takes part is checked before what takes long: tools, room, digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from plasmavmc.errors import CapacityError, HostError
from plasmavmc.guest.apt import AptArchive, Archive, Package, verify
from plasmavmc.guest.boot import build_guest_for
from plasmavmc.guest.cache import building_site, make_current, publish
from plasmavmc.guest.kernel import OWN, Kernel, distribution_kernel, own_kernel
from plasmavmc.guest.ownkernel.recipe import (
    HEADERS,
    Recipe,
    Workplace,
    configuration,
    environment,
    lost_options,
    missing_packages,
)
from plasmavmc.guest.ownkernel.source import newest_source, unpack_source
from plasmavmc.host.architecture import host_architecture
from plasmavmc.host.run import PATH, run
from plasmavmc.types import GIB

SCRATCH_BYTES = 3 * GIB
"""Room for source and objects while it is built; measured with some to spare."""
_ASK_S = 60.0
_CONFIGURE_S = 600.0
_COMPILE_S = 6 * 3600.0
"""An hour and more on a small, busy host; a build that hangs must end some time."""
_LAST_WORDS = 3000
_INCLUDES = Path("/usr/include")


class Stage(StrEnum):
    """What is done now, in order."""

    DOWNLOAD = "download"
    UNPACK = "unpack"
    CONFIGURE = "configure"
    COMPILE = "compile"
    INSTALL = "install"


Report = Callable[[Stage, int], None]
"""Told the stage, and in COMPILE how many steps of it are done; how many there will be nobody knows."""


def _missing() -> tuple[str, ...]:
    return missing_packages(
        lambda name: shutil.which(name, path=PATH) is not None, lambda name: (_INCLUDES / name).is_file()
    )


@dataclass(frozen=True, slots=True)
class OwnKernels:
    """Builds kernels of our own, and decides which kernel is used."""

    cache: Path
    archive: Archive = field(default_factory=AptArchive)
    missing: Callable[[], tuple[str, ...]] = _missing
    scratch_bytes: int = SCRATCH_BYTES

    async def build(self, jobs: int, report: Report) -> tuple[Kernel, bool]:
        """Make sure that the cache has the kernel of the archive's newest source, and use it; returns it, and whether it
        was built now.

        Raises:
            HostError: `missing-tools`; `package-damaged`, `bad-package`; `kernel-config`, the source does not know an
                option; `kernel-build`, with the compiler's words; `unsupported-host`.
            CapacityError: `no-space`.
            ConflictError: `already-building`.
            UnavailableError: `package-download`.
        """
        self._check_tools()
        parent, architecture = self.cache / "kernel", host_architecture()
        recipe = Recipe(await newest_source(self.archive), configuration(architecture), await _compiler(), architecture)
        place = parent / recipe.release
        built = not place.is_dir()
        if built:
            with building_site(parent) as (site, hold):
                self._check_space(site)
                publish(await self._build(recipe, site, hold, jobs, report), place)
        report(Stage.INSTALL, 0)
        await self._use(Kernel(place))
        return Kernel(place), built

    async def use_own(self) -> Kernel:
        """Use the newest kernel of our own that was built.

        Raises:
            HostError: `no-own-kernel`; `init-build`.
        """
        built = [Kernel(path) for path in (self.cache / "kernel").glob(f"{OWN}-*") if (path / "vmlinux").is_file()]
        if not built:
            raise HostError(
                "no-own-kernel", f"no kernel was built in {self.cache}", resolution="Run: plasmavmc kernel build"
            )
        newest = max(built, key=lambda kernel: kernel.vmlinux.stat().st_mtime_ns)
        await self._use(newest)
        return newest

    async def use_distribution(self) -> Kernel:
        """Use the distribution's kernel; those of our own stay in the cache.

        Raises:
            HostError: `no-guest-kernel`; `init-build`.
        """
        kernel = distribution_kernel(self.cache)
        if kernel is None:
            raise HostError(
                "no-guest-kernel",
                f"the distribution's kernel is not in {self.cache}",
                resolution="Run: plasmavmc kernel fetch",
            )
        await build_guest_for(self.cache, kernel)
        (self.cache / "kernel" / OWN).unlink(missing_ok=True)
        return kernel

    async def _use(self, kernel: Kernel) -> None:
        await build_guest_for(self.cache, kernel)
        if own_kernel(self.cache) != kernel:
            make_current(kernel.directory, OWN)

    def _check_tools(self) -> None:
        missing = self.missing()
        if missing:
            raise HostError(
                "missing-tools",
                f"a kernel cannot be built without {', '.join(missing)}",
                details=f"looked in {PATH}, and for {', '.join(HEADERS)} in {_INCLUDES}",
                resolution=f"apt-get install {' '.join(missing)}",
            )

    def _check_space(self, site: Path) -> None:
        free = shutil.disk_usage(site).free
        if free < self.scratch_bytes:
            raise CapacityError(
                "no-space",
                f"a build needs {self.scratch_bytes / GIB:.1f} GiB in {self.cache} while it goes on, {free / GIB:.1f} GiB "
                "are free",
                resolution="Make room, or name another cache.",
            )

    async def _build(self, recipe: Recipe, site: Path, hold: int, jobs: int, report: Report) -> Path:
        report(Stage.DOWNLOAD, 0)
        package = await self._download(recipe.source, site)
        report(Stage.UNPACK, 0)
        source = await unpack_source(package, site)
        work = Workplace(source, site / "objects", site / "fragment", jobs, recipe.architecture)
        work.objects.mkdir()
        work.fragment.write_text(recipe.configuration)
        report(Stage.CONFIGURE, 0)
        await _configure(work, recipe, hold)
        await _compile(work, hold, report)
        return await _finish(work, site / "kernel")

    async def _download(self, source: Package, site: Path) -> Path:
        """Version and file as they were described: an archive may be renewed meanwhile."""
        into = site / "download"
        into.mkdir()
        (package,) = await self.archive.download((f"{source.name}={source.version}",), into)
        await verify(package, source)
        return package


async def _compiler() -> str:
    completed = await run(["gcc", "--version"], timeout_s=_ASK_S)
    return completed.stdout.decode(errors="replace").partition("\n")[0]


async def _configure(work: Workplace, recipe: Recipe, hold: int) -> None:
    completed = await run(work.configure_argv(), timeout_s=_CONFIGURE_S, pass_fds=(hold,))
    if completed.returncode != 0:
        raise HostError("kernel-config", "the kernel cannot be configured", details=_last_words(completed.stderr))
    lost = lost_options(recipe.configuration, (work.objects / ".config").read_text())
    if lost:
        raise HostError(
            "kernel-config",
            f"{recipe.source.name} {recipe.source.version} does not take options that we ask for: {', '.join(lost)}",
            resolution="Use the distribution's kernel until native/kernel is brought up to this source.",
        )


async def _compile(work: Workplace, hold: int, report: Report) -> None:
    steps = 0

    def heard(chunk: bytes) -> None:
        nonlocal steps
        steps += chunk.count(b"\n")
        report(Stage.COMPILE, steps)

    report(Stage.COMPILE, 0)
    made = (work.source / "Makefile").stat().st_mtime
    completed = await run(
        work.compile_argv(), timeout_s=_COMPILE_S, env=environment(made), pass_fds=(hold,), heard=heard
    )
    if completed.returncode != 0:
        raise HostError("kernel-build", "the kernel does not compile", details=_last_words(completed.stderr))


def _last_words(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()[-_LAST_WORDS:]


async def _finish(work: Workplace, made: Path) -> Path:
    """What we keep: the kernel, its digest, and the configuration that it has."""
    made.mkdir()  # noqa: ASYNC240 - a directory of ours
    completed = await run(work.strip_argv(made / "vmlinux"), timeout_s=_CONFIGURE_S)
    if completed.returncode != 0:
        raise HostError("kernel-build", "the kernel cannot be stripped", details=completed.complaint)
    digest = await asyncio.to_thread(lambda: hashlib.sha256((made / "vmlinux").read_bytes()).hexdigest())
    (made / "sha256").write_text(digest + "\n")
    shutil.copyfile(work.objects / ".config", made / "config")
    return made


def default_jobs() -> int:
    """As many as there are cores that we may use."""
    return len(os.sched_getaffinity(0))
