"""Packages of the distribution, fetched as files and never installed.

The distribution's own tools fetch them, and hold each against the archive's signed lists. What came is held against the
digest in those lists once more before it is used: between the fetch and us lies a directory.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.host.run import run

_OS_RELEASE = Path("/etc/os-release")
_ASK_S = 60.0
_DOWNLOAD_S = 1800.0
_UNPACK_S = 120.0


@dataclass(frozen=True, slots=True)
class Package:
    """A package as the archive's signed lists describe it."""

    name: str
    version: str
    size: int
    """Bytes of the file."""
    sha256: str
    """Of the file, in hexadecimal."""


class Archive(Protocol):
    """Where packages come from."""

    async def describe(self, name: str) -> Package:
        """The newest version of a package.

        Raises:
            HostError: `unknown-package`.
        """

    async def dependencies(self, name: str) -> tuple[str, ...]:
        """The names of what a package depends on.

        Raises:
            HostError: `unknown-package`.
        """

    async def download(self, names: tuple[str, ...], into: Path) -> list[Path]:
        """Fetch packages, each by its name or as `name=version`.

        Raises:
            UnavailableError: `package-download`.
        """


class AptArchive:
    """The archive that this host's apt knows."""

    async def describe(self, name: str) -> Package:
        """See `Archive`."""
        return parse_package(await _ask("apt-cache", "show", "--no-all-versions", name))

    async def dependencies(self, name: str) -> tuple[str, ...]:
        """See `Archive`."""
        return parse_dependencies(await _ask("apt-cache", "depends", "--important", name))

    async def download(self, names: tuple[str, ...], into: Path) -> list[Path]:
        """See `Archive`."""
        completed = await run(["apt-get", "download", "-q", *names], timeout_s=_DOWNLOAD_S, cwd=into)
        if completed.returncode != 0:
            raise UnavailableError(
                "package-download",
                f"cannot download {', '.join(names)}",
                details=completed.complaint,
                resolution="Check the network and run apt-get update.",
            )
        return sorted(into.glob("*.deb"))  # noqa: ASYNC240 - a directory of ours


async def _ask(program: str, *arguments: str) -> str:
    completed = await run([program, *arguments], timeout_s=_ASK_S)
    if completed.returncode != 0:
        raise _unknown(arguments[-1], completed.complaint)
    return completed.stdout.decode(errors="replace")


def _unknown(name: str, complaint: str) -> HostError:
    return HostError(
        "unknown-package",
        f"the package archive does not know {name}",
        details=complaint,
        resolution="Run apt-get update.",
    )


def parse_dependencies(output: str) -> tuple[str, ...]:
    """The packages that `apt-cache depends` printed as depended on; virtual ones left out."""
    found = (line.strip().removeprefix("Depends: ") for line in output.splitlines() if "Depends:" in line)
    return tuple(name for name in found if re.fullmatch(r"[a-z0-9][a-z0-9.+~-]*", name))


def parse_package(output: str) -> Package:
    """The first package that `apt-cache show` printed.

    Raises:
        HostError: `unknown-package`, it printed none.
    """
    fields = dict(re.findall(r"^([A-Z][A-Za-z0-9-]*): (.+)$", output.split("\n\n", 1)[0], re.MULTILINE))
    try:
        return Package(fields["Package"], fields["Version"], int(fields["Size"]), fields["SHA256"])
    except (KeyError, ValueError) as error:
        raise _unknown("the package", f"cannot be read: {error}") from error


def distribution() -> str:
    """`ID` of os-release(5): `debian`, `ubuntu`."""
    found = re.search(r"^ID=\"?([a-z]+)", _OS_RELEASE.read_text(), re.MULTILINE)
    return found.group(1) if found else "unknown"


async def verify(file: Path, package: Package) -> None:
    """Hold a package's file against its description.

    Raises:
        HostError: `package-damaged`, it is another.
    """
    if await asyncio.to_thread(_sha256, file) != package.sha256:
        raise HostError(
            "package-damaged",
            f"what was downloaded as {package.name} {package.version} is not what the archive's signed list says",
            details=f"{file.stat().st_size} bytes came, {package.size} are listed",  # noqa: ASYNC240 - one stat
            resolution="Run apt-get update and try again; if it stays, distrust the mirror.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def unpack(packages: list[Path], into: Path) -> Path:
    """Lay out what packages contain below a directory, and nothing of their scripts.

    Raises:
        HostError: `bad-package`.
    """
    for package in packages:
        completed = await run(["dpkg-deb", "-x", str(package), str(into)], timeout_s=_UNPACK_S)
        if completed.returncode != 0:
            raise HostError("bad-package", f"cannot unpack {package.name}", details=completed.complaint)
    return into
