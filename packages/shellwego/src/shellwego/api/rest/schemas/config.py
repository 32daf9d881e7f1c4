"""What a release is made of: processes, environment, services, checks, mounts, placement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from shellwego.api.rest.schemas.common import Arguments, Body, Cpu, Name, Seconds, Size, View, parse_cpu
from shellwego.api.rest.schemas.secrets import SecretRefBody, SecretRefView, ref_view
from shellwego.api.rest.schemas.volumes import Destination
from shellwego.control.config import ConfigWish, PlacementWish, ProcessWish
from shellwego.core.apps import AppConfig, Check, CheckKind, Mount, Process, RestartMode, RestartPolicy, Service
from shellwego.core.nodes import MAX_LABELS
from shellwego.core.placement_rules import MOST_PRIORITY, PlacementRules, Spread
from shellwego.core.quantities import parse_size
from shellwego.core.secrets import SecretRef

Port = Annotated[int, Field(ge=1, le=65535)]
EnvValue = Annotated[str, Field(max_length=32 * 1024)]
Env = Annotated[dict[Name, EnvValue | SecretRefBody], Field(max_length=256)]
PlainChanges = Annotated[dict[Name, EnvValue | None], Field(max_length=256)]
EnvChanges = Annotated[dict[Name, EnvValue | SecretRefBody | None], Field(max_length=256)]
Counts = Annotated[dict[Name, Annotated[int, Field(ge=0, le=1000)]], Field(max_length=16)]


def plain(env: Mapping[str, str | SecretRefBody | None]) -> dict[str, str | None]:
    """The variables with values of their own, and those that are unset."""
    return {name: value for name, value in env.items() if not isinstance(value, SecretRefBody)}


def references(env: Mapping[str, str | SecretRefBody | None]) -> dict[str, SecretRef]:
    """The variables that are filled with secrets."""
    return {name: value.ref() for name, value in env.items() if isinstance(value, SecretRefBody)}


class RestartBody(Body):
    """When an ended workload is started again on its node."""

    policy: Literal["always", "on-failure", "never"] = "always"
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    backoff: Annotated[float, Field(ge=0.1, le=3600)] | None = None
    """Seconds before each start; left out: a pause that rises with the ends, from 0.2 to 30."""

    def policy_of(self) -> RestartPolicy:
        return RestartPolicy(mode=RestartMode(self.policy), retries=self.retries, backoff_s=self.backoff)


class ProcessBody(Body):
    """Changes to a process; what is left out stays as it is. An empty `command` or `entrypoint` is the image's own."""

    command: Arguments | None = None
    entrypoint: Arguments | None = None
    memory: Size | None = None
    cpu: Cpu | None = None
    vcpus: Annotated[int, Field(ge=1, le=256)] | None = None
    disk: Size | None = None
    env: PlainChanges = Field(default_factory=dict)
    """Variables of this process alone, which come before those of the app; null unsets."""
    restart: RestartBody | None = None
    stop_signal: Annotated[str, Field(max_length=16)] | None = None
    stop_grace: Seconds | None = None

    def wish(self) -> ProcessWish:
        return ProcessWish(
            command=None if self.command is None else tuple(self.command),
            entrypoint=None if self.entrypoint is None else tuple(self.entrypoint),
            memory_bytes=None if self.memory is None else parse_size(self.memory),
            cpu_milli=None if self.cpu is None else parse_cpu(self.cpu),
            vcpus=self.vcpus,
            disk_bytes=None if self.disk is None else parse_size(self.disk),
            env=self.env,
            restart=None if self.restart is None else self.restart.policy_of(),
            stop_signal=self.stop_signal,
            stop_grace_s=self.stop_grace,
        )


class CheckBody(Body):
    """A health check. `port` is that of the service where it is left out."""

    type: Literal["http", "tcp", "exec"]
    process: Name = "web"
    port: Port | None = None
    path: Annotated[str, Field(max_length=1024)] = "/"
    command: Arguments = Field(default_factory=list)
    interval: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    timeout: Annotated[float, Field(ge=0.1, le=300)] = 3.0
    grace: Annotated[float, Field(ge=0, le=3600)] = 0.0
    retries: Annotated[int, Field(ge=1, le=100)] = 3

    def check(self) -> Check:
        return Check(
            kind=CheckKind(self.type),
            process=self.process,
            port=self.port or 0,
            path=self.path,
            command=tuple(self.command),
            interval_s=self.interval,
            timeout_s=self.timeout,
            grace_s=self.grace,
            retries=self.retries,
        )


class ServiceBody(Body):
    """The port of a process that requests go to."""

    process: Name = "web"
    port: Port

    def service(self) -> Service:
        return Service(process=self.process, port=self.port)


class MountBody(Body):
    """A volume of the project, and where a process is to have it. One process has a volume, in one instance."""

    source: Name
    """Its name."""
    destination: Destination
    process: Name = "web"
    read_only: bool = False

    def mount(self) -> Mount:
        return Mount(source=self.source, destination=self.destination, process=self.process, read_only=self.read_only)


Labels = Annotated[dict[Name, Annotated[str, Field(max_length=63)]], Field(max_length=MAX_LABELS)]


class PlacementBody(Body):
    """Where instances may go; what is left out stays as it is."""

    region: Annotated[str, Field(max_length=63, examples=["eu"])] | None = None
    """The region that a node must be in. Empty: any."""
    zone: Annotated[str, Field(max_length=63)] | None = None
    """The zone that a node must be in. Empty: any."""
    require: Labels | None = None
    """Labels that a node must have, all of them; they take the place of those asked for before."""
    tolerate: Labels | None = None
    """Taints that a node may have: `{"gpu": "yes"}` for a node with the label `taint/gpu=yes`, which others keep away from.
    They take the place of those tolerated before."""
    spread: Literal["zone", "node", "none"] | None = None
    """Instances of a process are kept apart by zone, then by node; by node only; or not at all, so that few nodes are
    used."""
    priority: Annotated[int, Field(ge=0, le=MOST_PRIORITY)] | None = None
    """Where no node fits, instances of apps whose priority is lower by 10 at least may be evicted. 50 where nothing is said;
    no higher than the organization's limit, which is 50 unless the platform's operator says otherwise."""

    def wish(self) -> PlacementWish:
        return PlacementWish(
            region=self.region,
            zone=self.zone,
            require=self.require,
            tolerate=self.tolerate,
            spread=None if self.spread is None else Spread(self.spread),
            priority=self.priority,
        )


class ConfigBody(Body):
    """Changes to an app's config; what is left out stays as it is."""

    processes: Annotated[dict[Name, ProcessBody], Field(max_length=16)] = Field(default_factory=dict)
    remove_processes: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=list)
    services: Annotated[list[ServiceBody], Field(max_length=1)] | None = None
    checks: Annotated[list[CheckBody], Field(max_length=32)] | None = None
    mounts: Annotated[list[MountBody], Field(max_length=32)] | None = None
    release_command: Arguments | None = None
    """Program and arguments, run once before each rollout in a VM of its own; where it fails, nothing is rolled out. Empty:
    none any more."""
    drain_timeout: Seconds | None = None
    placement: PlacementBody = PlacementBody()

    def wish(self) -> ConfigWish:
        return ConfigWish(
            processes={name: body.wish() for name, body in self.processes.items()},
            remove_processes=tuple(self.remove_processes),
            services=None if self.services is None else tuple(body.service() for body in self.services),
            checks=None if self.checks is None else tuple(body.check() for body in self.checks),
            mounts=None if self.mounts is None else tuple(body.mount() for body in self.mounts),
            release_command=None if self.release_command is None else tuple(self.release_command),
            drain_timeout_s=self.drain_timeout,
            placement=self.placement.wish(),
        )


class ProcessView(View):
    """A process of an app or of a release. `command` null is the image's own."""

    name: str
    command: list[str] | None
    entrypoint: list[str] | None
    memory_bytes: int
    cpu_milli: int
    vcpus: int
    disk_bytes: int
    env_names: list[str]
    """Variables of this process alone; their values are not shown."""
    restart: str
    retries: int
    backoff: float | None
    stop_signal: str | None
    stop_grace: float


class CheckView(View):
    type: str
    process: str
    port: int | None
    path: str
    command: list[str]
    interval: float
    timeout: float
    grace: float
    retries: int


class ServiceView(View):
    process: str
    port: int


class MountView(View):
    """A volume of a process, and where it has it."""

    source: str
    destination: str
    process: str
    read_only: bool


class PlacementView(View):
    """Where instances may go, and what keeps them apart. An empty `region` or `zone` is any."""

    region: str
    zone: str
    require: dict[str, str]
    tolerate: dict[str, str]
    spread: str
    priority: int


class ConfigView(View):
    """A config. Of the environment it shows names only."""

    image: str
    env_names: list[str]
    secrets: dict[str, SecretRefView] = Field(default_factory=dict)
    """Variables that are filled with secrets, and with which."""
    processes: list[ProcessView]
    services: list[ServiceView]
    checks: list[CheckView]
    mounts: list[MountView]
    release_command: list[str] | None
    drain_timeout: float
    placement: PlacementView


def secret_refs(config: AppConfig) -> dict[str, SecretRefView]:
    """What the variables of a config are filled with."""
    return {name: ref_view(ref) for name, ref in config.secrets.items()}


def config_view(config: AppConfig) -> ConfigView:
    return ConfigView(
        image=config.image,
        env_names=sorted(config.env),
        secrets=secret_refs(config),
        processes=[_process_view(process) for process in config.processes],
        services=[ServiceView(process=service.process, port=service.port) for service in config.services],
        checks=[_check_view(check) for check in config.checks],
        mounts=[
            MountView(source=m.source, destination=m.destination, process=m.process, read_only=m.read_only)
            for m in config.mounts
        ],
        release_command=None if config.release_command is None else list(config.release_command),
        drain_timeout=config.drain_timeout_s,
        placement=_placement_view(config.placement),
    )


def _placement_view(rules: PlacementRules) -> PlacementView:
    return PlacementView(
        region=rules.region,
        zone=rules.zone,
        require=dict(rules.require),
        tolerate=dict(rules.tolerate),
        spread=rules.spread.value,
        priority=rules.priority,
    )


def _process_view(process: Process) -> ProcessView:
    return ProcessView(
        name=process.name,
        command=None if process.command is None else list(process.command),
        entrypoint=None if process.entrypoint is None else list(process.entrypoint),
        memory_bytes=process.memory_bytes,
        cpu_milli=process.cpu_milli,
        vcpus=process.vcpus,
        disk_bytes=process.disk_bytes,
        env_names=sorted(process.env),
        restart=process.restart.mode.value,
        retries=process.restart.retries,
        backoff=process.restart.backoff_s,
        stop_signal=process.stop_signal,
        stop_grace=process.stop_grace_s,
    )


def _check_view(check: Check) -> CheckView:
    return CheckView(
        type=check.kind.value,
        process=check.process,
        port=check.port or None,
        path=check.path,
        command=list(check.command),
        interval=check.interval_s,
        timeout=check.timeout_s,
        grace=check.grace_s,
        retries=check.retries,
    )
