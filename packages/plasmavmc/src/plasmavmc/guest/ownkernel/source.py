"""The kernel's source: the distribution's package, so that its security fixes are in it."""

from __future__ import annotations

import re
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.guest.apt import Archive, Package, unpack
from plasmavmc.host.run import run

META_PACKAGE = "linux-source"
"""Depends on the newest source, on Debian and Ubuntu alike."""
_REAL_PACKAGE = re.compile(r"linux-source-\d[a-z0-9.+~-]*")
_UNPACK_S = 1800.0


async def newest_source(archive: Archive) -> Package:
    """The package of the newest source that the archive knows.

    Raises:
        HostError: `unknown-package`; `no-kernel-package`, there is none.
    """
    for name in await archive.dependencies(META_PACKAGE):
        if _REAL_PACKAGE.fullmatch(name):
            return await archive.describe(name)
    raise HostError(
        "no-kernel-package",
        f"{META_PACKAGE} depends on no source of a kernel",
        resolution="Run apt-get update; the archive needs its main section.",
    )


async def unpack_source(package: Path, into: Path) -> Path:
    """The kernel's tree out of its package, which is a tar file within a package. Both are removed on the way: the
    tree alone is larger than they are together.

    Raises:
        HostError: `bad-package`, it holds something else.
    """
    laid_out = await unpack([package], into / "package")
    package.unlink()  # noqa: ASYNC240 - a file of ours
    packed = next(iter(sorted(laid_out.glob("usr/src/**/linux-source-*.tar.*"))), None)
    if packed is None:
        raise HostError("bad-package", "the package of the kernel's source holds no archive of it")
    tree = into / "source"
    tree.mkdir()
    completed = await run(unpack_argv(packed, tree), timeout_s=_UNPACK_S)
    if completed.returncode != 0:
        raise HostError("bad-package", "the kernel's source cannot be unpacked", details=completed.complaint)
    packed.unlink()
    return tree


def unpack_argv(packed: Path, tree: Path) -> list[str]:
    """tar(1), without the directory that everything lies in."""
    return ["tar", "--extract", "--no-same-owner", "--strip-components=1", f"--directory={tree}", f"--file={packed}"]
