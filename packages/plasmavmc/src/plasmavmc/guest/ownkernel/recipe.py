"""What is built, and how: the configuration, the tools and their command lines, as values. Pure but for reading files.

Theory. The configuration is `allnoconfig` with our fragments in place of its answers: a new version of the source adds
nothing that was not asked for. What it does not take as it is written (renamed, or its dependencies gone) is found by
comparing, and ends the build: a mitigation lost in silence would be worse than no kernel.

A kernel is named by all that makes it: source, fragments, compiler. So the same is built once, and a security update of
the source or a change of the configuration makes another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from plasmavmc.guest.apt import Package
from plasmavmc.guest.kernel import OWN
from plasmavmc.guest.native import native_directory
from plasmavmc.host.architecture import Architecture

FRAGMENT = "microvm.config"
"""For every architecture; beside it lies one more for each."""
_LAYOUT = b"1"
"""Raised when the same parts make another kernel."""
_KEY_LENGTH = 12
_OPTION = re.compile(r"CONFIG_[A-Za-z0-9_]+=.+")

TOOLS: Mapping[str, str] = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "objcopy": "binutils",
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "perl": "perl",
    "tar": "tar",
    "xz": "xz-utils",
    "nice": "coreutils",
}
"""Programs that a build calls, and the package of each."""
HEADERS: Mapping[str, str] = {"gelf.h": "libelf-dev"}
"""Headers that tools of the kernel's are compiled with."""


def missing_packages(has_program: Callable[[str], bool], has_header: Callable[[str], bool]) -> tuple[str, ...]:
    """What must be installed before a build, in order of names."""
    programs = (package for name, package in TOOLS.items() if not has_program(name))
    headers = (package for name, package in HEADERS.items() if not has_header(name))
    return tuple(sorted({*programs, *headers}))


def configuration(architecture: Architecture) -> str:
    """The fragments for an architecture, joined.

    Raises:
        HostError: `no-native-sources`.
    """
    directory = native_directory("kernel")
    return "".join((directory / name).read_text() for name in (FRAGMENT, f"{architecture.machine}.config"))


def lost_options(wanted: str, taken: str) -> tuple[str, ...]:
    """Options of a fragment that a configuration does not have as they were written."""
    present = set(taken.splitlines())
    return tuple(option for option in _options(wanted) if option not in present)


def _options(text: str) -> list[str]:
    return [line for line in text.splitlines() if _OPTION.fullmatch(line)]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that makes a kernel."""

    source: Package
    configuration: str
    compiler: str
    """First line of what it says of its version."""
    architecture: Architecture

    @property
    def release(self) -> str:
        """Names the kernel in the cache: `own-6.1.192-2-0123456789ab`."""
        digest = hashlib.sha256(_LAYOUT)
        asked = "\n".join(_options(self.configuration))
        for part in (self.source.sha256, asked, self.compiler, self.architecture.machine):
            digest.update(b"\0" + part.encode())
        return f"{OWN}-{self.source.version}-{digest.hexdigest()[:_KEY_LENGTH]}"


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a build goes on."""

    source: Path
    objects: Path
    """Everything that is made; the source stays as it came."""
    fragment: Path
    jobs: int
    architecture: Architecture

    def configure_argv(self) -> list[str]:
        """Linux, Documentation/kbuild/kconfig.rst: `KCONFIG_ALLCONFIG`."""
        return [*self._make(), f"KCONFIG_ALLCONFIG={self.fragment}", "allnoconfig"]

    def compile_argv(self) -> list[str]:
        """The image alone: no modules, nothing to install. As nice as can be, for the host may run VMs."""
        return ["nice", "-n", "19", *self._make(), f"-j{self.jobs}", self.architecture.kernel_target]

    def strip_argv(self, into: Path) -> list[str]:
        """As the kernel itself strips what it packs: everything that is loaded stays, the note of its PVH entry too."""
        return ["objcopy", "-R", ".comment", "-S", str(self.objects / self.architecture.kernel_image), str(into)]

    def _make(self) -> tuple[str, ...]:
        return ("make", "-C", str(self.source), f"O={self.objects}", f"ARCH={self.architecture.kernel_name}")


def environment(made: float) -> dict[str, str]:
    """What the kernel tells of its build (Documentation/kbuild/reproducible-builds.rst): nothing of this host, and the
    time of its source (`made`, seconds since the epoch), so that the same parts make the same kernel."""
    return {
        "KBUILD_BUILD_USER": "plasmavmc",
        "KBUILD_BUILD_HOST": "localhost",
        "KBUILD_BUILD_VERSION": "1",
        "KBUILD_BUILD_TIMESTAMP": datetime.fromtimestamp(made, UTC).strftime("%a %b %e %H:%M:%S UTC %Y"),
    }
