"""What a guest's state depends on of the host, told as words, so that a refusal can name what differs."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError

_CPU = Path("/proc/cpuinfo")


def program_trait(path: Path) -> str:
    """A VMM by its content. Blocking: it is read once for each change of it.

    Raises:
        HostError: `no-vmm`, it cannot be read.
    """
    try:
        status = path.stat()
        return _digest(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise HostError("no-vmm", f"{path} cannot be read", details=error.strerror or "") from error


@lru_cache(maxsize=8)
def _digest(path: Path, _inode: int, _size: int, _changed: int) -> str:
    with path.open("rb") as program:
        return hashlib.file_digest(program, "sha256").hexdigest()


def processor_trait(acceleration: Acceleration) -> str:
    """The host's model: under emulation the guest still counts time by its ticks; with KVM its features are the
    guest's."""
    lines = _CPU.read_text(encoding="latin-1").split("\n\n", 1)[0].splitlines()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = values.get("model name", "unknown")
    if acceleration is not Acceleration.KVM:
        return model
    features = hashlib.sha256(values.get("flags", values.get("Features", "")).encode()).hexdigest()[:16]
    return f"{model} {features}"
