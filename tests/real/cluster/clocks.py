"""Wall clocks that can be set, each for one part of a platform alone.

Theory. All namespaces of a machine share its wall clock. So a library stands between a program and what it asks the time of
(`clock.c`), and adds what a file says.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
_SECONDS = struct.Struct("<q")


def build_library(path: Path) -> None:
    """Make the library there."""
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, SOURCE], check=True)


@dataclass(frozen=True, slots=True)
class Clock:
    """One that some processes share."""

    library: Path
    file: Path

    def __post_init__(self) -> None:
        self.file.write_bytes(_SECONDS.pack(0))
        self.file.chmod(0o644)  # the platform's own user reads it

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that has this clock."""
        return {"LD_PRELOAD": str(self.library), "CLOCK_AHEAD_FILE": str(self.file)}

    def is_of(self, pid: int) -> bool:
        """Whether a process goes by it."""
        return str(self.library) in Path(f"/proc/{pid}/maps").read_text()

    def step(self, ahead_s: int) -> None:
        """Have it go so far ahead of the machine's own, or behind it."""
        with self.file.open("r+b") as file, mmap.mmap(file.fileno(), _SECONDS.size) as mapped:
            mapped[:] = _SECONDS.pack(ahead_s)
