"""Native code of modules, so that a module is compiled once.

    <root>/<tenant>/<sha256 of image, library, settings and CPU>

What lies here is executed, and it was made by a process in which a hostile module might have broken the compiler. So each
tenant (organization and project) has a directory of its own, and code goes to no other: whoever poisons the cache poisons
nobody but himself. Only the platform can write here; a worker hands its code over, and gets the file's content as a
descriptor. The least recently used go where the whole exceeds its budget.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from plasmavmc.hypervisor.wasm.engine import FINGERPRINT
from plasmavmc.types import GIB, MIB, Scope

MAX_CODE_BYTES = 256 * MIB
BUDGET_BYTES = GIB
_CHUNK = MIB


class CodeCache:
    """The cache of one node."""

    def __init__(self, root: Path, budget_bytes: int = BUDGET_BYTES) -> None:
        self._root = root
        self._budget = budget_bytes
        self._fingerprint = f"{FINGERPRINT} {_cpu()}"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, scope: Scope, image: str) -> int | None:
        """A descriptor (the caller's) of the native code of an image, where this tenant has it."""
        path = self._path(scope, image)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(OSError):
            os.utime(path)
        return fd

    def store(self, scope: Scope, image: str, fd: int) -> None:
        """Keep what a worker compiled; `fd` is the caller's. Too large, or no room on the disk: it is not kept. Slow: for a
        thread, of which there may be several at once."""
        path = self._path(scope, image)
        with suppress(OSError):
            size = os.fstat(fd).st_size
            if not 0 < size <= MAX_CODE_BYTES:
                return
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    at = 0
                    while at < size and (chunk := os.pread(fd, min(_CHUNK, size - at), at)):
                        file.write(chunk)
                        at += len(chunk)
                    file.flush()
                    Path(file.name).rename(path)
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
            self._collect()

    def _path(self, scope: Scope, image: str) -> Path:
        tenant = hashlib.sha256(f"{scope.org}/{scope.project}".encode()).hexdigest()[:32]
        return self._root / tenant / hashlib.sha256(f"{image} {self._fingerprint}".encode()).hexdigest()

    def _collect(self) -> None:
        found = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._root.glob("*/*"))
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._budget:
                return
            path.unlink(missing_ok=True)
            total -= size


def _cpu() -> str:
    """The features of this CPU: code may use any of them."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()
