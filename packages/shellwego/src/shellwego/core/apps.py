"""Apps and releases.

An app holds its *current config* and, apart from it, how many of each process should run. A release is a frozen copy of
the config with the image resolved to a digest; the count is not in it, so that a rollback never undoes a scale. What runs
is compared with what should run by `content_hash` and the app's `generation` (which a restart raises).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from shellwego.core.destinations import EVERYWHERE, Egress
from shellwego.core.placement_rules import ANYWHERE, PlacementRules
from shellwego.core.secrets import SecretRef

MIB = 1024 * 1024


class AppState(StrEnum):
    STOPPED = "stopped"
    DEPLOYING = "deploying"
    RUNNING = "running"
    DEGRADED = "degraded"
    SLEEPING = "sleeping"
    FAILED = "failed"


class RestartMode(StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    mode: RestartMode = RestartMode.ALWAYS
    retries: int = 3
    """Ends of the workload, before the instance counts as failed and the control plane replaces it. The count is
    forgotten after five minutes of health."""
    backoff_s: float | None = None
    """Pause before the workload is started again; None: one that rises with the ends, from 0.2 to 30 s."""


class CheckKind(StrEnum):
    HTTP = "http"
    TCP = "tcp"
    EXEC = "exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    kind: CheckKind
    process: str = "web"
    port: int = 0
    path: str = "/"
    command: tuple[str, ...] = ()
    interval_s: float = 5.0
    timeout_s: float = 3.0
    grace_s: float = 0.0
    """Failures this soon after the start are not counted."""
    retries: int = 3
    """Failures in a row that turn a healthy instance unhealthy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A named group of equal instances. `command` and `entrypoint`: None means what the image says."""

    name: str = "web"
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    memory_bytes: int = 256 * MIB
    cpu_milli: int = 1000
    vcpus: int = 1
    disk_bytes: int = 4096 * MIB
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of this process alone; they come before those of the app."""
    restart: RestartPolicy = RestartPolicy()
    stop_signal: str | None = None
    stop_grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The port of a process that the edge sends requests to."""

    process: str = "web"
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume in the file system of a process. It is exclusive: one process of one app has it, in one instance."""

    source: str
    """The volume's name, in the app's project."""
    destination: str
    process: str = "web"
    read_only: bool = False
    volume_id: str = ""
    """In a release: what the name meant."""

    def wish(self) -> Mount:
        """As it was wished, without what it was resolved to."""
        return replace(self, volume_id="")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """What is frozen into a release, except the image's digest."""

    image: str = ""
    """The reference as the user gave it: a name loaded before, or a registry reference."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    """Variables that are filled with secrets when a VM starts. In a release they are resolved to version numbers; an app's
    current config has them as they were wished."""
    processes: tuple[Process, ...] = (Process(),)
    services: tuple[Service, ...] = ()
    checks: tuple[Check, ...] = ()
    mounts: tuple[Mount, ...] = ()
    backend: str | None = None
    placement: PlacementRules = ANYWHERE
    drain_timeout_s: float = 30.0
    release_command: tuple[str, ...] | None = None
    """Run once before each rollout, in a VM of its own; where it fails nothing is rolled out."""

    def mounts_of(self, process: str) -> tuple[Mount, ...]:
        """The volumes that an instance of this process has."""
        return tuple(mount for mount in self.mounts if mount.process == process)

    def volumes_of(self, process: str) -> frozenset[str]:
        """Their ids, in a release."""
        return frozenset(mount.volume_id for mount in self.mounts_of(process))


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    id: str
    project_id: str
    name: str
    hostname: str
    config: AppConfig
    counts: Mapping[str, int]
    """Wanted instances of each process; a process that is not named here has one."""
    stopped: bool = False
    generation: int = 0
    release_id: str = ""
    """The release that the planner aims at: that of the running deployment, or the last that succeeded. Empty: none."""
    stable_release_id: str = ""
    """The last release that was rolled out in full; where an automatic rollback returns to."""
    stable_generation: int = 0
    """The generation that was rolled out with it: a restart that fails returns to its instances."""
    last_release_number: int = 0
    egress: Egress = EVERYWHERE
    """Policy of now, in no release."""
    groups: tuple[str, ...] = ()
    """Likewise: ids of the security groups that it is in."""
    created_at: float
    updated_at: float
    deleting: bool = False
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    id: str
    app_id: str
    number: int
    config: AppConfig
    image_digest: str
    content_hash: str
    created_at: float
    created_by: str
    description: str = ""
    version: int = 1


_UNHASHED = ("spread", "priority")
"""Rules of placement that are kept without a new instance."""


def content_hash(config: AppConfig, image_digest: str) -> str:
    """Hash of what a VM of this release is: equal hash, equal VM. The image's *name* is left out, its digest counts; of a
    secret its id and the number of its version, of a volume its id beside its name. Where it may be counts, too, how the
    instances are spread, and how much they matter, does not.

    What came later than the first hashes were made is left out where it says nothing, or an upgrade would have every
    instance differ from its own release.
    """
    content = asdict(config) | {"image": image_digest}
    del content["release_command"], content["secrets"], content["placement"]
    rules = config.placement
    if rules.binding:
        content["placement"] = {name: value for name, value in asdict(rules).items() if name not in _UNHASHED}
    if config.secrets:
        content["secrets"] = {name: [ref.secret_id, ref.number] for name, ref in config.secrets.items()}
    if not config.mounts:
        del content["mounts"]
    for process in content["processes"]:
        if not process["env"]:
            del process["env"]
        if process["restart"]["backoff_s"] is None:
            del process["restart"]["backoff_s"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def wanted_counts(app: App, config: AppConfig) -> dict[str, int]:
    """How many instances of each process of `config` should run now.

    A volume has room for one. More are refused where they are asked for; but a release that mounts it comes back by itself
    where a later one fails that did without, and was scaled meanwhile.
    """
    if app.stopped or app.deleting:
        return {process.name: 0 for process in config.processes}
    counts = {process.name: app.counts.get(process.name, 1) for process in config.processes}
    return {name: min(count, 1) if config.mounts_of(name) else count for name, count in counts.items()}
