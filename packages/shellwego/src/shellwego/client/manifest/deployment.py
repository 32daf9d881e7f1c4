"""From a manifest to the deployment that it asks for.

A manifest is the whole of an app's config: processes, services and checks that it does not name, the app has not any more.
Variables are the exception, since `swg env set` sets them too: those that it does not name stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from shellwego.client.generated import (
    CheckBody,
    ConfigBody,
    DeploymentCreate,
    MountBody,
    PlacementBody,
    ProcessBody,
    RestartBody,
    SecretRefBody,
    ServiceBody,
)
from shellwego.client.manifest.document import Check, EnvValue, Manifest, Mount, Restart, SecretReference, Vm
from shellwego.client.manifest.faults import Fault, ManifestError, Place
from shellwego.client.manifest.values import arguments, env_text, seconds

_WEB = "web"
_ALL = ""


class _Entry(Protocol):
    """A table that is about one process, or about all that have none of their own."""

    @property
    def process(self) -> str | None: ...


T = TypeVar("T")
V = TypeVar("V")
E = TypeVar("E", bound=_Entry)


def deployment_of(
    path: Path, text: str, manifest: Manifest, existing: Iterable[str] = (), counted: Iterable[str] = ()
) -> DeploymentCreate:
    """The deployment that a manifest of this text asks for. `existing` are the processes that the app has now, `counted`
    those of them that were deployed before: how many there are of them is no longer the manifest's to say.

    Raises:
        ManifestError: its parts do not fit together, or a value makes no sense.
    """
    reader = _Reader(manifest)
    wish = reader.deployment(tuple(existing), tuple(counted))
    if reader.faults:
        raise ManifestError(path, text, tuple(reader.faults))
    return wish


@dataclass(slots=True)
class _Reader:
    """Goes through a manifest and gathers what is wrong, so that all of it is told at once."""

    manifest: Manifest
    faults: list[Fault] = field(default_factory=list)

    @property
    def processes(self) -> list[str]:
        return list(self.manifest.processes) or [_WEB]

    @property
    def routed(self) -> str:
        """The process that requests go to."""
        service = self.manifest.http_service
        if service is not None and service.process is not None:
            return service.process
        return self.processes[0] if len(self.processes) == 1 else _WEB

    def deployment(self, existing: Sequence[str], counted: Sequence[str]) -> DeploymentCreate:
        deploy = self.manifest.deploy
        sizes = self._by_process("vm", self.manifest.vm)
        wish = DeploymentCreate(
            image=self.manifest.build.image,
            config=self._config(existing, sizes),
            counts={name: vm.count for name, vm in sizes.items() if vm.count is not None and name not in counted},
            env={name: _variable(value) for name, value in self.manifest.env.items()},
            backend=self._backend(),
        )
        if deploy.strategy is not None:
            wish.strategy = deploy.strategy
        if deploy.rollback_on_failure is not None:
            wish.rollback_on_failure = deploy.rollback_on_failure
        for key in ("max_unavailable", "surge"):
            share = getattr(deploy, key)
            setattr(wish, key, None if share is None else str(share))
        wish.canary_steps = deploy.canary_steps
        wish.canary_pause = self._seconds(("deploy", "canary_pause"), deploy.canary_pause)
        if deploy.wait_timeout is not None:
            wish.wait_timeout = self._value(("deploy", "wait_timeout"), seconds, deploy.wait_timeout, 0.0)
        return wish

    def _by_process(self, table: str, entries: Sequence[E]) -> dict[str, E]:
        """The entry of each process: its own, else the one for all."""
        own: dict[str, E] = {}
        for number, entry in enumerate(entries):
            name = entry.process or _ALL
            place: Place = (table, number, "process") if entry.process else (table, number)
            self._check_process(place, entry.process)
            if name in own:
                whose = f"the process {name}" if entry.process else "processes without one of their own"
                self.faults.append(Fault(place, f"there is an entry for {whose} already"))
            own[name] = entry
        return {name: own[name if name in own else _ALL] for name in self.processes if own.keys() & {name, _ALL}}

    def _config(self, existing: Iterable[str], sizes: Mapping[str, Vm]) -> ConfigBody:
        service = self.manifest.http_service
        deploy = self.manifest.deploy
        if service is not None:
            self._check_process(("http_service", "process"), self.routed)
        restarts = self._by_process("restart", self.manifest.restart)
        return ConfigBody(
            processes={
                name: self._process(name, sizes.get(name, Vm()), restarts.get(name, Restart()))
                for name in self.processes
            },
            remove_processes=[name for name in existing if name not in self.processes],
            services=[] if service is None else [ServiceBody(process=self.routed, port=service.internal_port)],
            checks=[self._check(number, check) for number, check in enumerate(self.manifest.checks)],
            mounts=[self._mount(number, mount) for number, mount in enumerate(self.manifest.mounts)],
            release_command=self._arguments(("deploy", "release_command"), deploy.release_command),
            drain_timeout=self._seconds(("deploy", "drain_timeout"), deploy.drain_timeout),
            placement=self._placement(),
        )

    def _placement(self) -> PlacementBody:
        wanted = self.manifest.placement
        return PlacementBody(
            region=wanted.region,
            zone=wanted.zone,
            require=dict(wanted.require),
            tolerate=dict(wanted.tolerate),
            spread=wanted.spread,
            priority=wanted.priority,
        )

    def _process(self, name: str, vm: Vm, restart: Restart) -> ProcessBody:
        return ProcessBody(
            command=self._arguments(("processes", name), self.manifest.processes.get(name)),
            memory=vm.memory,
            cpu=None if vm.cpu is None else str(vm.cpu),
            disk=vm.disk,
            restart=RestartBody(
                policy=restart.policy,
                retries=restart.retries,
                backoff=self._backoff(restart),
            ),
        )

    def _mount(self, number: int, mount: Mount) -> MountBody:
        process = mount.process or self.routed
        self._check_process(("mounts", number, "process"), process)
        return MountBody(source=mount.source, destination=mount.destination, process=process, read_only=mount.read_only)

    def _check(self, number: int, check: Check) -> CheckBody:
        place: Place = ("checks", number)
        process = check.process or self.routed
        self._check_process((*place, "process"), process)
        return CheckBody(
            type=check.type,
            process=process,
            port=check.port,
            path=check.path,
            command=self._arguments((*place, "command"), check.command),
            interval=self._value((*place, "interval"), seconds, check.interval, 0.0),
            timeout=self._value((*place, "timeout"), seconds, check.timeout, 0.0),
            grace=self._value((*place, "grace"), seconds, check.grace, 0.0),
            retries=check.retries,
        )

    def _backend(self) -> str | None:
        """What all VMs of the app run on."""
        found = {vm.backend: number for number, vm in enumerate(self.manifest.vm) if vm.backend is not None}
        if len(found) > 1:
            number = max(found.values())
            self.faults.append(Fault(("vm", number, "backend"), "all processes of an app run on one backend"))
        return next(iter(found), None)

    def _check_process(self, place: Place, name: str | None) -> None:
        if name is not None and name not in self.processes:
            self.faults.append(Fault(place, f"there is no process {name}; there is: {', '.join(self.processes)}"))

    def _arguments(self, place: Place, command: str | list[str] | None) -> list[str]:
        """Of a command; none of none, which is the image's own."""
        none: list[str] = []
        return none if command is None else self._value(place, arguments, command, none)

    def _backoff(self, restart: Restart) -> float | None:
        number = next((n for n, each in enumerate(self.manifest.restart) if each is restart), 0)
        return self._seconds(("restart", number, "backoff"), restart.backoff)

    def _seconds(self, place: Place, duration: float | str | None) -> float | None:
        return None if duration is None else self._value(place, seconds, duration, 0.0)

    def _value(self, place: Place, parse: Callable[[V], T], value: V, otherwise: T) -> T:
        try:
            return parse(value)
        except ValueError as error:
            self.faults.append(Fault(place, str(error)))
            return otherwise


def _variable(value: EnvValue) -> str | SecretRefBody:
    if isinstance(value, SecretReference):
        return SecretRefBody(secret=value.secret, version=value.version)
    return env_text(value)
