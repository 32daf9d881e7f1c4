"""The programs of an installation's taps in the kernel, with their maps.

Theory. Maps outlive programs: they are pinned below a directory of the installation in a bpf file system, so that a helper
that starts anew goes on with the identities and the counts that are in force. One whose layout has changed has another name
(`native/ebpf/tap.c`) or another shape; then there is a new one, which stays empty until the rules are applied, and only then
do the taps get the programs that use it.

The object ships with us, built beforehand, and is the same for every machine that is little-endian: it is for the kernel's
own virtual machine and touches no structure but those of its interface. Its hash stands beside it, and is compared."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.helper import ebpf_kernel as kernel
from plasmavmc.host.helper.ebpf_object import BpfObject, MapSpec, ObjectError, read_object

OBJECT = Path(__file__).with_name("objects") / "tap.o"
BPF_FILE_SYSTEM = Path("/sys/fs/bpf")
FROM_VM, TO_VM = "from_vm", "to_vm"
IDENTITIES, TRAFFIC = "identities_1", "traffic_1"
_MOUNT_FLAGS = 0x2 | 0x4 | 0x8
"""MS_NOSUID, MS_NODEV, MS_NOEXEC."""


@dataclass(frozen=True, slots=True)
class TapPrograms:
    """Descriptors, owned by whoever loaded them."""

    from_vm: int
    to_vm: int
    identities: int
    traffic: int

    def close(self) -> None:
        for fd in (self.from_vm, self.to_vm, self.identities, self.traffic):
            os.close(fd)


def load_programs(pins: Path | None) -> TapPrograms:
    """Load the programs with the maps pinned in a directory, which is made; without one the maps are nobody else's.

    Raises:
        HostError: `ebpf-object`, the file is not what was built.
        OSError: the kernel refuses.
    """
    built = shipped_object(OBJECT)
    maps: dict[str, int] = {}
    with _closing_on_error(maps):
        for name in (IDENTITIES, TRAFFIC):
            maps[name] = _map(name, built.maps[name], pins)
        programs: dict[str, int] = {}
        with _closing_on_error(programs):
            for name in (FROM_VM, TO_VM):
                code = built.programs[name].linked(maps)
                programs[name] = kernel.load_program(name, code, built.license)
    return TapPrograms(programs[FROM_VM], programs[TO_VM], maps[IDENTITIES], maps[TRAFFIC])


def shipped_object(path: Path) -> BpfObject:
    """Read a built object whose hash stands beside it.

    Raises:
        HostError: `ebpf-object`, one of the two is not there or they do not agree.
    """
    try:
        data = path.read_bytes()
        wanted = path.with_name(f"{path.name}.sha256").read_text().split()[:1]
        if [hashlib.sha256(data).hexdigest()] != wanted:
            raise ObjectError("its hash is not the one that it was built with")
        built = read_object(data)
        if not {FROM_VM, TO_VM} <= built.programs.keys() or not {IDENTITIES, TRAFFIC} <= built.maps.keys():
            raise ObjectError("a program or a map of ours is missing")
    except (OSError, ObjectError) as error:
        raise HostError(
            "ebpf-object",
            f"the programs for taps in {path} are damaged: {error}",
            resolution="install the package anew",
        ) from error
    return built


def ensure_file_system(mounts: str) -> None:
    """Have a bpf file system at its usual place; `mounts` is what is mounted now, as in /proc/self/mounts.

    Raises:
        OSError: it cannot be mounted.
    """
    if any(line.split()[1:3] == [str(BPF_FILE_SYSTEM), "bpf"] for line in mounts.splitlines()):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", bytes(BPF_FILE_SYSTEM), b"bpf", _MOUNT_FLAGS, b"mode=700") != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount a bpf file system: {os.strerror(code)}")


def _map(name: str, spec: MapSpec, pins: Path | None) -> int:
    if pins is None:
        return kernel.create_map(name, spec)
    pins.mkdir(mode=0o700, exist_ok=True)
    place = pins / name
    found = kernel.pinned(place)
    if found is not None:
        if kernel.spec_of_map(found) == spec:
            return found
        os.close(found)
        place.unlink()
    made = kernel.create_map(name, spec)
    try:
        kernel.pin(made, place)
    except BaseException:
        os.close(made)
        raise
    return made


@contextmanager
def _closing_on_error(descriptors: Mapping[str, int]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for fd in descriptors.values():
            os.close(fd)
        raise
