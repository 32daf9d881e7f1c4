"""Which acceleration really boots a guest on this host, found out by booting one, and remembered.

Theory. That a device opens and a vCPU runs proves nothing: there are hosts on which every Linux guest hangs under KVM. So
a probe boots the very kernel and initrd that VMs get, until the guest's init says hello, within a deadline: KVM first,
emulation after it. A result holds for one program, guest kernel, CPU, host kernel and boot of the host, and is cached
under these facts, so that only the first start after a change waits. What worked is cached; that nothing worked is not,
for the next start shall try again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from plasmavmc.backends import Acceleration
from plasmavmc.deadlines import within
from plasmavmc.errors import PlasmaError

DEADLINES_S: Mapping[Acceleration, float] = {Acceleration.KVM: 10.0, Acceleration.TCG: 60.0}
"""From spawn to the guest's hello. With KVM it takes a fraction of a second, emulated on a busy host many."""

KVM_DEVICE = Path("/dev/kvm")
_LONGEST_REASON = 400

log = structlog.get_logger("plasmavmc.probe")


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What a result holds for."""

    program: str
    guest: tuple[str, ...]
    cpu: str
    host_kernel: str
    boot_id: str
    kvm_device: str

    def digest(self) -> str:
        """A short name of these facts."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Trial:
    """One attempt to boot. `reason` is empty where the guest came up."""

    acceleration: Acceleration
    seconds: float
    reason: str = ""

    @property
    def booted(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class ProbeResult:
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial | None:
        """The trial that came up, if one did."""
        return next((trial for trial in self.trials if trial.booted), None)

    @property
    def reason(self) -> str:
        """Why what was tried before the chosen one was given up; empty where the best one works."""
        return "; ".join(f"{trial.acceleration}: {trial.reason}" for trial in self.trials if not trial.booted)


def gather_facts(program: Path, *guest: Path) -> ProbeFacts:
    """The facts of this host. Files count by path, size and time of change."""
    return ProbeFacts(
        program=_stamp(program),
        guest=tuple(_stamp(path) for path in guest),
        cpu=_cpu_model(),
        host_kernel=platform.release(),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        kvm_device=_stamp(KVM_DEVICE),
    )


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    owner = f"{status.st_mode:o} {status.st_uid}:{status.st_gid}"
    return f"{path} {status.st_size} {status.st_mtime_ns if not status.st_rdev else 0} {owner}"


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


class ProbeCache:
    """Results in the host's cache directory, one file for each set of facts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, facts: ProbeFacts) -> ProbeResult | None:
        """A result for these facts; None where there is none that can be read."""
        with suppress(OSError, msgspec.DecodeError, ValueError):
            return msgspec.json.decode(self._path(facts).read_bytes(), type=ProbeResult)
        return None

    def save(self, facts: ProbeFacts, result: ProbeResult) -> None:
        """Remember a result. A cache that cannot be written costs the next start a probe, and nothing else."""
        path = self._path(facts)
        fresh = path.with_suffix(f".{os.getpid()}")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
            fresh.replace(path)
        except OSError as error:
            log.warning("probe.not_cached", path=str(path), error=error.strerror)

    def _path(self, facts: ProbeFacts) -> Path:
        return self._directory / f"probe-{facts.digest()}.json"


Boot = Callable[[Acceleration], Awaitable[None]]
"""Boots a guest until its hello and removes it again; raises `PlasmaError` with what was seen."""


async def probe(
    boot: Boot, facts: ProbeFacts, cache: ProbeCache, deadlines_s: Mapping[Acceleration, float] = DEADLINES_S
) -> ProbeResult:
    """What boots on this host: from the cache, or by trying KVM, then TCG, until one comes up."""
    known = cache.load(facts)
    if known is not None:
        return known
    trials: list[Trial] = []
    for acceleration, deadline_s in deadlines_s.items():
        trials.append(await _try(boot, acceleration, deadline_s))
        if trials[-1].booted:
            break
    result = ProbeResult(tuple(trials))
    if result.chosen is not None:
        cache.save(facts, result)
    return result


async def _try(boot: Boot, acceleration: Acceleration, deadline_s: float) -> Trial:
    clock = asyncio.get_running_loop().time
    began = clock()
    reason = ""
    try:
        async with within(deadline_s):
            await boot(acceleration)
    except TimeoutError:
        reason = f"hangs: no heartbeat within {deadline_s:g} s"
    except PlasmaError as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
    trial = Trial(acceleration, round(clock() - began, 3), reason)
    log.info("probe.ended", acceleration=acceleration.value, seconds=trial.seconds, reason=reason or "booted")
    return trial
