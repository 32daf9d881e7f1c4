"""Changes to an app's current config: what a request wishes, merged and checked as a whole.

Nothing here knows of releases; the result is frozen into one by `releases.freeze`. The bounds keep a hostile or mistaken
request from filling a node, the store or a command line; what a node can serve is judged by `core.admission`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shellwego.core.admission import admit, admit_counts
from shellwego.core.apps import MIB, AppConfig, Check, CheckKind, Mount, Process, RestartPolicy, Service
from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.images import ImageKind
from shellwego.core.nodes import Node, label_faults, place_faults
from shellwego.core.placement_rules import MOST_PRIORITY, PlacementRules, Spread
from shellwego.core.secrets import NAME as SECRET_NAME
from shellwego.core.secrets import SecretRef
from shellwego.core.volumes import mount_faults

PROCESS_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
MAX_PROCESSES = 16
MAX_CHECKS = 32
MAX_COUNT = 1000
MAX_ENV = 256
MAX_ENV_VALUE = 32 * 1024
MAX_ENV_TOTAL = 128 * 1024
MAX_ARGUMENTS = 128
MAX_ARGUMENT = 4096
_RESERVED_ENV = "SHELLWEGO_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessWish:
    """Changes to one process; None leaves as it is. An empty `command` or `entrypoint` goes back to the image's own."""

    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    memory_bytes: int | None = None
    cpu_milli: int | None = None
    vcpus: int | None = None
    disk_bytes: int | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Variables of this process alone to set; None unsets."""
    restart: RestartPolicy | None = None
    stop_signal: str | None = None
    stop_grace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementWish:
    """Changes to where instances may go; None leaves as it is, and empty is any."""

    region: str | None = None
    zone: str | None = None
    require: Mapping[str, str] | None = None
    tolerate: Mapping[str, str] | None = None
    spread: Spread | None = None
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigWish:
    """Changes to an app's config; None leaves as it is."""

    image: str | None = None
    processes: Mapping[str, ProcessWish] = field(default_factory=dict)
    """Processes to change or to add."""
    remove_processes: tuple[str, ...] = ()
    services: tuple[Service, ...] | None = None
    checks: tuple[Check, ...] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Variables to set; None unsets."""
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    """Variables to fill with secrets; each takes the place of a plain one."""
    drain_timeout_s: float | None = None
    release_command: tuple[str, ...] | None = None
    """Empty: none any more."""
    mounts: tuple[Mount, ...] | None = None
    backend: str | None = None
    """The backend that VMs must have; empty: whichever a node has for Linux images."""
    placement: PlacementWish = PlacementWish()


def merge(config: AppConfig, wish: ConfigWish) -> AppConfig:
    """The config after the wish.

    Raises:
        InvalidError: the result makes no sense; every fault is named by its field.
    """
    merged = merge_unchecked(config, wish)
    check_config(merged)
    return merged


def merge_unchecked(config: AppConfig, wish: ConfigWish) -> AppConfig:
    """The config after the wish, for who has something to add before it is checked."""
    return replace(
        config,
        image=config.image if wish.image is None else wish.image,
        processes=tuple(_merge_processes(config.processes, wish)),
        services=config.services if wish.services is None else wish.services,
        checks=config.checks if wish.checks is None else wish.checks,
        mounts=config.mounts if wish.mounts is None else wish.mounts,
        env=merge_env(config.env, {**wish.env, **dict.fromkeys(wish.secrets)}),
        secrets=_merge_secrets(config.secrets, wish),
        drain_timeout_s=config.drain_timeout_s if wish.drain_timeout_s is None else wish.drain_timeout_s,
        release_command=config.release_command if wish.release_command is None else (wish.release_command or None),
        backend=config.backend if wish.backend is None else (wish.backend or None),
        placement=_merge_placement(config.placement, wish.placement),
    )


def _merge_placement(rules: PlacementRules, wish: PlacementWish) -> PlacementRules:
    return PlacementRules(
        region=rules.region if wish.region is None else wish.region,
        zone=rules.zone if wish.zone is None else wish.zone,
        require=rules.require if wish.require is None else dict(sorted(wish.require.items())),
        tolerate=rules.tolerate if wish.tolerate is None else dict(sorted(wish.tolerate.items())),
        spread=wish.spread or rules.spread,
        priority=_or(wish.priority, rules.priority),
    )


def merge_env(env: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The variables after the changes, in the order of their names."""
    merged = {**env, **changes}
    return {name: value for name, value in sorted(merged.items()) if value is not None}


def _merge_secrets(refs: Mapping[str, SecretRef], wish: ConfigWish) -> dict[str, SecretRef]:
    """The references after the wish; a variable that is set plainly, or unset, is none any more."""
    kept = {name: ref for name, ref in refs.items() if name not in wish.env}
    return dict(sorted({**kept, **wish.secrets}.items()))


def _merge_processes(processes: Iterable[Process], wish: ConfigWish) -> Iterator[Process]:
    known = {process.name: process for process in processes if process.name not in wish.remove_processes}
    for name in {**known, **wish.processes}:
        yield _merge_process(known.get(name, Process(name=name)), wish.processes.get(name, ProcessWish()))


def _merge_process(process: Process, wish: ProcessWish) -> Process:
    return replace(
        process,
        command=process.command if wish.command is None else (wish.command or None),
        entrypoint=process.entrypoint if wish.entrypoint is None else (wish.entrypoint or None),
        memory_bytes=_or(wish.memory_bytes, process.memory_bytes),
        cpu_milli=_or(wish.cpu_milli, process.cpu_milli),
        vcpus=_vcpus(process, wish),
        disk_bytes=_or(wish.disk_bytes, process.disk_bytes),
        env=merge_env(process.env, wish.env),
        restart=wish.restart or process.restart,
        stop_signal=process.stop_signal if wish.stop_signal is None else (wish.stop_signal or None),
        stop_grace_s=process.stop_grace_s if wish.stop_grace_s is None else wish.stop_grace_s,
    )


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _vcpus(process: Process, wish: ProcessWish) -> int:
    """A share of more than the vCPUs could never be used, so the vCPUs follow the share unless they are given."""
    if wish.vcpus is not None:
        return wish.vcpus
    return process.vcpus if wish.cpu_milli is None else max(1, -(-wish.cpu_milli // 1000))


def check_config(config: AppConfig) -> None:
    """Refuse a config that no node could ever run, with every fault named by its field.

    Raises:
        InvalidError: with one `FieldError` for each fault.
    """
    faults = (
        *_process_faults(config),
        *_service_faults(config),
        *_check_faults(config),
        *_env_faults("env", config.env),
        *_secret_faults(config),
        *_placement_faults(config.placement),
        *mount_faults(config),
    )
    if config.release_command is not None:
        faults = (*faults, *_command_faults("release_command", config.release_command))
    if not 0 <= config.drain_timeout_s <= 3600:
        faults = (*faults, FieldError("drain_timeout", "out-of-range", "between 0 and 3600 seconds"))
    refuse("config-refused", faults)


def refuse(code: str, faults: tuple[FieldError, ...], *, resolution: str = "") -> None:
    """Raise one error for all the faults, if there are any."""
    if faults:
        first = faults[0]
        raise InvalidError(code, f"{first.field}: {first.message}", resolution=resolution, errors=faults)


def refuse_unknown(config: AppConfig, processes: Mapping[str, str]) -> None:
    """Raise an error for names of processes that the config has not; each by the field that gave it."""
    known = [process.name for process in config.processes]
    faults = tuple(
        FieldError(at, "no-such-process", f"there is no process “{name[:40]}”")
        for at, name in processes.items()
        if name not in known
    )
    refuse("no-such-process", faults, resolution=processes_there(config))


def processes_there(config: AppConfig) -> str:
    """What to tell who named a process that the config has not."""
    known = ", ".join(process.name for process in config.processes)
    return f"The app has: {known}. A deploy with --process and --command makes a new one."


def refuse_unplaceable(
    config: AppConfig, nodes: Iterable[Node], kind: ImageKind | None = None, *, encrypted: bool = False
) -> None:
    """Raise an error for what no node could ever run; `kind` and `encrypted` are as of `admit`."""
    faults = admit(config, nodes, kind, encrypted=encrypted)
    resolution = "Ask for less (scale --memory, --cpu, --disk), or give a node more room."
    if any(fault.field == "backend" for fault in faults):
        resolution = 'Name another backend (deploy --backend NAME), or none (--backend "").'
    if any(fault.field == "mounts" for fault in faults):
        resolution = "Leave the mounts out, or have a node join that keeps volumes."
    if any(fault.field.partition(".")[0] == "placement" for fault in faults):
        resolution = (
            "Ask for what a node has (deploy --region, --zone, --require, --tolerate), or have a node join that has it."
        )
    refuse("cannot-be-placed", faults, resolution=resolution)


def refuse_uncontainable(config: AppConfig, counts: Mapping[str, int], nodes: Iterable[Node]) -> None:
    """Raise an error for counts that all nodes together could never hold."""
    resolution = "Ask for fewer, or for less of each (scale --memory, --cpu, --disk), or give a node more room."
    refuse("cannot-be-placed", admit_counts(config, counts, nodes), resolution=resolution)


def _process_faults(config: AppConfig) -> Iterator[FieldError]:
    if not 1 <= len(config.processes) <= MAX_PROCESSES:
        yield FieldError("processes", "out-of-range", f"an app has 1 to {MAX_PROCESSES} processes")
    for process in config.processes:
        at = f"processes.{process.name[:40]}"
        if not PROCESS_NAME.fullmatch(process.name):
            yield FieldError(at, "bad-name", "a process is named by a-z, 0-9 and -, at most 31 characters")
        yield from _size_faults(at, process)
        yield from _argument_faults(f"{at}.command", process.command or ())
        yield from _argument_faults(f"{at}.entrypoint", process.entrypoint or ())
        yield from _env_faults(f"{at}.env", process.env)


def _size_faults(at: str, process: Process) -> Iterator[FieldError]:
    if not 32 * MIB <= process.memory_bytes <= 1024 * 1024 * MIB:
        yield FieldError(f"{at}.memory", "out-of-range", "between 32m and 1tb")
    if not 50 <= process.cpu_milli <= 256_000:
        yield FieldError(f"{at}.cpu", "out-of-range", "between 50m and 256 cores")
    if not 1 <= process.vcpus <= 256:
        yield FieldError(f"{at}.vcpus", "out-of-range", "between 1 and 256")
    if not 64 * MIB <= process.disk_bytes <= 1024 * 1024 * MIB:
        yield FieldError(f"{at}.disk", "out-of-range", "between 64m and 1tb")
    if not 0 <= process.stop_grace_s <= 600:
        yield FieldError(f"{at}.stop_grace", "out-of-range", "between 0 and 600 seconds")
    if not 0 <= process.restart.retries <= 100:
        yield FieldError(f"{at}.restart.retries", "out-of-range", "between 0 and 100")
    if process.restart.backoff_s is not None and not 0.1 <= process.restart.backoff_s <= 3600:
        yield FieldError(f"{at}.restart.backoff", "out-of-range", "between 0.1 and 3600 seconds")
    if process.stop_signal is not None and not re.fullmatch(r"SIG[A-Z0-9]{2,9}", process.stop_signal):
        yield FieldError(f"{at}.stop_signal", "bad-signal", "a signal's name such as SIGTERM")


def _placement_faults(rules: PlacementRules) -> Iterator[FieldError]:
    """What cannot be asked of nodes: places and labels that none of them could have."""
    if not 0 <= rules.priority <= MOST_PRIORITY:
        yield FieldError("placement.priority", "out-of-range", f"between 0 and {MOST_PRIORITY}")
    places = {"placement.region": rules.region, "placement.zone": rules.zone}
    yield from place_faults({field: place for field, place in places.items() if place})
    for name, labels in (("require", rules.require), ("tolerate", rules.tolerate)):
        for fault in label_faults(labels):
            yield replace(fault, field=fault.field.replace("labels", f"placement.{name}", 1))


def _argument_faults(at: str, arguments: tuple[str, ...]) -> Iterator[FieldError]:
    if len(arguments) > MAX_ARGUMENTS:
        yield FieldError(at, "too-many", f"at most {MAX_ARGUMENTS} arguments")
    if any(len(argument.encode()) > MAX_ARGUMENT or "\0" in argument for argument in arguments):
        yield FieldError(at, "bad-argument", f"an argument has at most {MAX_ARGUMENT} bytes and no NUL")


def check_command(command: tuple[str, ...], at: str = "command") -> None:
    """Refuse a command that cannot be run; raises `InvalidError`."""
    refuse("command-refused", tuple(_command_faults(at, command)))


def _command_faults(at: str, command: tuple[str, ...]) -> Iterator[FieldError]:
    if not command or not command[0]:
        yield FieldError(at, "missing", "a program to run")
    yield from _argument_faults(at, command)


def _service_faults(config: AppConfig) -> Iterator[FieldError]:
    names = {process.name for process in config.processes}
    routed = [service.process for service in config.services]
    if len(routed) > 1:
        yield FieldError("services", "too-many", "requests go to one process of an app")
    for service in config.services:
        if service.process not in names:
            yield FieldError("services", "no-such-process", f"there is no process “{service.process[:40]}”")
        if not 1 <= service.port <= 65535:
            yield FieldError("services.port", "out-of-range", "a port is between 1 and 65535")


def _check_faults(config: AppConfig) -> Iterator[FieldError]:
    if len(config.checks) > MAX_CHECKS:
        yield FieldError("checks", "too-many", f"at most {MAX_CHECKS}")
    names = {process.name for process in config.processes}
    ports = {service.process: service.port for service in config.services}
    for number, check in enumerate(config.checks):
        yield from _one_check_faults(f"checks[{number}]", check, names, ports)


def _one_check_faults(at: str, check: Check, names: set[str], ports: Mapping[str, int]) -> Iterator[FieldError]:
    if check.process not in names:
        yield FieldError(f"{at}.process", "no-such-process", f"there is no process “{check.process[:40]}”")
    if check.kind is CheckKind.EXEC:
        if not check.command:
            yield FieldError(f"{at}.command", "missing", "an exec check needs a command")
        yield from _argument_faults(f"{at}.command", check.command)
    elif not check.port and check.process not in ports:
        yield FieldError(f"{at}.port", "missing", "the process has no port of its own (--port), so the check needs one")
    if not 0 <= check.port <= 65535:
        yield FieldError(f"{at}.port", "out-of-range", "a port is between 1 and 65535")
    if not re.fullmatch(r"/[!-~]{0,1023}", check.path):
        yield FieldError(f"{at}.path", "bad-path", "begins with / and has printable ASCII without spaces")
    if not (0.1 <= check.interval_s <= 3600 and 0.1 <= check.timeout_s <= 300 and 0 <= check.grace_s <= 3600):
        yield FieldError(at, "out-of-range", "interval 0.1 to 3600, timeout 0.1 to 300, grace 0 to 3600 seconds")
    if not 1 <= check.retries <= 100:
        yield FieldError(f"{at}.retries", "out-of-range", "between 1 and 100")


def _secret_faults(config: AppConfig) -> Iterator[FieldError]:
    """Whether there is such a secret is seen when the release is made."""
    if len(config.env) + len(config.secrets) > MAX_ENV:
        yield FieldError("env", "too-large", f"at most {MAX_ENV} variables")
    for name, ref in config.secrets.items():
        yield from _env_name_faults("env", name)
        if not SECRET_NAME.fullmatch(ref.secret):
            yield FieldError(f"env.{name[:40]}.secret", "bad-name", "no secret can have this name")
        if not 0 <= ref.version < 1_000_000:
            yield FieldError(f"env.{name[:40]}.version", "out-of-range", "a version's number, or latest")


def _env_name_faults(at: str, name: str) -> Iterator[FieldError]:
    if not ENV_NAME.fullmatch(name):
        yield FieldError(f"{at}.{name[:40]}", "bad-name", "letters, digits and _, not beginning with a digit")
    elif name.startswith(_RESERVED_ENV):
        yield FieldError(f"{at}.{name}", "reserved", f"names that begin with {_RESERVED_ENV} are the platform's")


def _env_faults(at: str, env: Mapping[str, str]) -> Iterator[FieldError]:
    if len(env) > MAX_ENV or sum(len(k) + len(v.encode()) for k, v in env.items()) > MAX_ENV_TOTAL:
        yield FieldError(at, "too-large", f"at most {MAX_ENV} variables and {MAX_ENV_TOTAL} bytes in all")
    for name, value in env.items():
        yield from _env_name_faults(at, name)
        if "\0" in value or len(value.encode()) > MAX_ENV_VALUE:
            yield FieldError(f"{at}.{name[:40]}", "bad-value", f"at most {MAX_ENV_VALUE} bytes and no NUL")
