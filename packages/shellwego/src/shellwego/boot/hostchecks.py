"""The half of `swg doctor` that looks at this machine: what a start of the platform needs, and what makes VMs weaker.

The checks of a start are asked themselves, so that `doctor` and `up` never differ. Nothing here changes the host.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

from shellwego.boot import preflight
from shellwego.boot.buschecks import check_bus
from shellwego.boot.databasechecks import check_database
from shellwego.boot.findings import Finding, fail, ok, told, warn
from shellwego.boot.limits import ENOUGH_FILES, raise_file_limit
from shellwego.boot.masterkeys import KEY_DIRECTORY, KEY_FILE
from shellwego.boot.namechecks import check_names
from shellwego.boot.settings import UpSettings
from shellwego.core.errors import ShellWeGoError
from shellwego.core.nodes import Underlay
from shellwego.drivers.engine.host import KVM_DEVICE, Acceleration, can_reflink, cgroup_kinds, installation, probed
from shellwego.drivers.kms.keyfile import is_sealed

_OTHER_PLACE = "Choose another place with --data-dir, or mend its file system."
_ROOMY_DISK = 4 << 30
_ROOMY_MEMORY = 1 << 30


def check_host(settings: UpSettings) -> list[Finding]:
    """All checks of this machine."""
    return [
        _root(),
        asked("user", preflight.check_user, f"{installation.USER} exists"),
        asked("programs", preflight.check_programs, ", ".join(preflight.PROGRAMS)),
        asked("guest", lambda: preflight.check_cache(settings.cache), f"kernel and init are in {settings.cache}"),
        acceleration(settings.cache),
        cgroups(),
        disk(settings.data_dir),
        volumes(settings),
        *underlay(settings.underlay),
        check_database(settings),
        check_bus(settings),
        _master_key(settings),
        _encryption(settings.data_dir),
        _memory(),
        _files(),
        *check_names(settings.data_dir),
    ]


def asked(check: str, ask: Callable[[], object], well: str) -> Finding:
    """The outcome of one of the checks that a start makes."""
    try:
        ask()
    except ShellWeGoError as error:
        return fail(check, error.message, error.resolution)
    return ok(check, well)


def _root() -> Finding:
    if os.geteuid() == 0:
        return ok("root", "this is root, who may start the platform")
    return warn("root", "not root: the platform can be used, but not started", "To start it: sudo swg up")


def acceleration(cache: Path) -> Finding:
    """What the last probe found, if it holds for this host still."""
    remedy = "" if KVM_DEVICE.exists() else _KVM_REMEDY
    result = probed(cache)
    if result is None:
        if not KVM_DEVICE.exists():
            return warn("kvm", f"{KVM_DEVICE} is not there: VMs will be emulated, and slow", _KVM_REMEDY)
        if os.geteuid() != 0:
            return warn("kvm", "what a probe found is root's to read", "As root: swg doctor")
        return warn("kvm", "not probed on this host yet", "The first swg up finds out what boots here.")
    if result.chosen is None:
        return fail("kvm", f"no guest boots on this host: {result.reason}", remedy)
    if result.chosen.acceleration is Acceleration.TCG:
        why, mend = told("; ".join(trial.reason for trial in result.trials if not trial.booted))
        return warn("kvm", f"{why}: VMs are emulated, slow and isolated by software only", remedy or mend)
    return ok("kvm", f"guests boot with {result.chosen.acceleration} ({result.chosen.seconds:.1f} s)")


_KVM_REMEDY = "Enable virtualisation in the firmware or the outer hypervisor, and: modprobe kvm_intel (or kvm_amd)."


def cgroups() -> Finding:
    kinds = cgroup_kinds()
    if kinds:
        return ok("cgroups", f"{kinds[0]}: memory, CPU and processes of VMs are bounded")
    return warn(
        "cgroups",
        "no cgroup hierarchy with cpu, memory and pids: VMs are bounded by rlimits only, CPU shares are not enforced",
        "Mount cgroup2 on /sys/fs/cgroup.",
    )


def _place(data_dir: Path) -> Path:
    """The data directory, or what is there of the way to it."""
    return next(path for path in (data_dir.absolute(), *data_dir.absolute().parents) if path.exists())


def _no_directory(check: str, place: Path) -> Finding:
    return fail(check, f"{place} is no directory", _OTHER_PLACE)


def disk(data_dir: Path) -> Finding:
    """Room where the data directory is, or would be."""
    place = _place(data_dir)
    if not place.is_dir():
        return _no_directory("disk", place)
    try:
        preflight.check_space(place)
    except ShellWeGoError as error:
        return fail("disk", error.message, error.resolution)
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    text = f"{free / (1 << 30):.1f} GiB are free for {data_dir}"
    return (
        ok("disk", text)
        if free >= _ROOMY_DISK
        else warn("disk", text, "Free some space, or choose another --data-dir.")
    )


def underlay(name: str) -> list[Finding]:
    """What encrypts between nodes, where that is asked for."""
    if name != Underlay.WIREGUARD:
        return []
    if os.geteuid() != 0:
        return [warn("underlay", "wireguard: what encrypts is root's to look at", "As root: swg doctor")]
    try:
        by = preflight.check_underlay(name)
    except ShellWeGoError as error:
        return [fail("underlay", error.message, error.resolution)]
    if by == "kernel":
        return [ok("underlay", "wireguard, by the kernel")]
    return [
        warn(
            "underlay",
            "wireguard, by a program (wireguard-go), far slower than by the kernel, which has none",
            "Boot a kernel with WIREGUARD (Linux 5.6 or later).",
        )
    ]


def volumes(settings: UpSettings) -> Finding:
    """Where volumes are, and by which driver."""
    directory = settings.data_dir / "volumes"
    if settings.zfs:
        return _dataset(settings.zfs)
    if not (place := _place(settings.data_dir)).is_dir():
        return _no_directory("volumes", place)
    try:
        shares = directory.is_dir() and can_reflink(directory)
    except OSError:
        return warn("volumes", f"{directory} is the platform's to read", "As root: swg doctor")
    if shares:
        return ok("volumes", f"reflink, in {directory}: snapshots share what does not change")
    if directory.is_dir():
        return ok("volumes", f"file, in {directory}: a snapshot is a copy, during which its VM stands still")
    return ok("volumes", f"the first start makes {directory}")


def _dataset(name: str) -> Finding:
    if os.geteuid() != 0:
        return warn("volumes", f"zfs, in {name}: that is root's to look at", "As root: swg doctor")
    return asked("volumes", lambda: preflight.check_zfs(name), f"zfs, in {name}")


def _master_key(settings: UpSettings) -> Finding:
    """Whether who holds the disk alone, or a backup of it, holds the secrets too."""
    if settings.kms != "local":
        return ok("master key", f"kept by the KMS ({settings.kms})")
    if settings.master_keys_file is not None:
        return ok("master key", f"kept outside the data directory, in {settings.master_keys_file}")
    return _key_file(settings.data_dir / KEY_DIRECTORY / KEY_FILE)


def _key_file(path: Path) -> Finding:
    remedy = "Give a passphrase: LoadCredential=shellwego.master-passphrase:… in the unit, or --master-passphrase-file."
    try:
        sealed = is_sealed(path)
    except FileNotFoundError:
        return ok("master key", "the first swg up makes it")
    except PermissionError:
        return warn("master key", f"{path} is root's to read", "As root: swg doctor")
    except ShellWeGoError as error:
        return fail("master key", error.message, error.resolution or _OTHER_PLACE)
    if sealed:
        return ok("master key", f"{path} is sealed by a passphrase")
    return warn("master key", f"{path} is not sealed: who reads the data directory reads all secrets", remedy)


def _encryption(data_dir: Path) -> Finding:
    """Whether the memory of a suspended VM, and the disks of all, lie on a disk in clear."""
    status = _place(data_dir).stat()
    device = Path("/sys/dev/block") / f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    if is_encrypted(device):
        return ok("encryption", f"{data_dir} is on an encrypted device")
    what = (
        "is not on an encrypted device" if device.exists() else "is on storage that does not tell whether it encrypts"
    )
    return warn(
        "encryption",
        f"{data_dir} {what}: the memory of suspended VMs lies there, with their secrets",
        "Put it on a LUKS volume, or suspend no VM that holds secrets.",
    )


def is_encrypted(device: Path) -> bool:
    """Whether a block device in sysfs is dm-crypt, or all that it stands on is."""
    uuid = device / "dm" / "uuid"
    if uuid.exists() and uuid.read_text().startswith("CRYPT-"):
        return True
    below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    return bool(below) and all(is_encrypted(each) for each in below)


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    text = f"{available / (1 << 30):.1f} GiB are available"
    return ok("memory", text) if available >= _ROOMY_MEMORY else warn("memory", text, "Each VM needs its memory whole.")


def _files() -> Finding:
    limit = raise_file_limit()
    if limit == resource.RLIM_INFINITY or limit >= ENOUGH_FILES:
        return ok("open files", "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} a process")
    return warn(
        "open files",
        f"{limit} a process: the edge takes fewer connections",
        f"ulimit -Hn {ENOUGH_FILES}, or LimitNOFILE={ENOUGH_FILES} in the unit; sysctl fs.nr_open bounds it",
    )
