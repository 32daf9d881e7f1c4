"""The names by which the apps of a project find each other in its private network. Pure.

Theory. A name stands for what serves now: instances that are healthy, wanted and awake. One that drains, or is to sleep,
leaves its app's names as it leaves the routes. An instance asleep has no address (it is given back, and may be another's
soon), and no request wakes it, from the private network or over an edge: somebody has to (`control.sleep`). So it is in no
name until it is awake, and the name of an app that sleeps as a whole is known, and leads nowhere.

`<app>` stands for the processes that have a service, which is what one connects to; for all, where none has. Beside that,
each process has a name, and each VM: that of its instance, which stays, and its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shellwego.core.apps import App, AppConfig, Release
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase, Sleep
from shellwego.core.routes import service_port

MAX_INSTANCES = 10_000
"""Of one network that have names: those of apps whose names come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedService:
    """Where one instance serves: a name below `internal`, and a port."""

    target: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkNames:
    """The names of one private network, as they stand below `internal`."""

    network_id: str
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Addresses; a name without any is known, and leads nowhere now."""
    services: Mapping[str, tuple[NamedService, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    identities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By app id: private addresses of all its VMs, by which security groups know them on other nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNames:
    """The names that a node's guests may ask for."""

    version: str
    """Another one for other names."""
    networks: tuple[NetworkNames, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedApp:
    """What an app's names follow from."""

    app: App
    instances: tuple[Instance, ...]
    """Those that live."""
    releases: Mapping[str, Release]
    """By id: the one that the app aims at, and those of its instances."""


def instance_name(id_: str) -> str:
    """The name of what has this id, an instance or a VM: a host's name has no underscore."""
    return f"{id_.replace('_', '-')}.vm"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppNames:
    """The names that one app has in its network."""

    app: str
    """What it is called."""
    app_id: str = ""
    addresses: tuple[str, ...] = ()
    """Private ones of all its VMs, whether or not they serve."""
    instances: int = 0
    """Those that live."""
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    services: Mapping[str, tuple[NamedService, ...]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def names_of_app(facts: NamedApp) -> AppNames | None:
    """The names of an app; None: it has none any more."""
    if facts.app.deleting:
        return None
    instances = sorted(facts.instances, key=lambda instance: instance.id)
    serving = [instance for instance in instances if _serves(instance)]
    return AppNames(
        app=facts.app.name,
        app_id=facts.app.id,
        addresses=tuple(sorted(filter(None, (each.observed.private_address for each in instances if _has_vm(each))))),
        instances=len(instances),
        hosts={**dict(_vms(instances)), **dict(_app(facts, serving))},
        services=dict(_services(facts, serving)),
        texts={f"_instances.{facts.app.name}": tuple(map(_described, serving))},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NameStep:
    """Where an instance that may serve stands."""

    since: float
    routed_version: int | None
    version: int
    """Of the row."""


def steps(instances: Iterable[Instance]) -> dict[str, NameStep]:
    """By instance: what is another value once it may have left its app's names, or entered them, and come back."""
    return {
        instance.id: NameStep(
            since=instance.phase_since, routed_version=instance.routed_version, version=instance.version
        )
        for instance in instances
        if instance.desired is Desired.SERVE and instance.observed.ipv4 and _has_vm(instance)
    }


def detoured(before: Mapping[str, NameStep], now: Mapping[str, NameStep]) -> bool:
    """Whether names that were read between two looks may have been others than at both, alike as they may be."""
    return any(_detoured(before[id_], step) for id_, step in now.items() if id_ in before)


def _detoured(before: NameStep, now: NameStep) -> bool:
    """Its first number is no detour: it comes once the instance is healthy. What gets none, since it serves nothing, may
    have been about to sleep whenever its row changed."""
    if before.routed_version == now.routed_version is None:
        return before.version != now.version
    renumbered = before.routed_version is not None and before.routed_version != now.routed_version
    return renumbered or before.since != now.since


def names_of_network(network_id: str, apps: Iterable[AppNames]) -> NetworkNames:
    """The names of a project's apps together."""
    hosts: dict[str, tuple[str, ...]] = {}
    services: dict[str, tuple[NamedService, ...]] = {}
    texts: dict[str, tuple[str, ...]] = {}
    identities: dict[str, tuple[str, ...]] = {}
    shown, room = [], MAX_INSTANCES
    for app in sorted(apps, key=lambda app: app.app):
        room -= app.instances
        if room < 0:
            break
        shown.append(app.app)
        hosts |= app.hosts
        services |= app.services
        texts |= app.texts
        if app.addresses:
            identities[app.app_id] = app.addresses
    return NetworkNames(
        network_id=network_id,
        hosts=hosts,
        services=services,
        texts={**texts, "_apps": (",".join(shown),)},
        identities=identities,
    )


def _serves(instance: Instance) -> bool:
    wanted = instance.desired is Desired.SERVE and instance.sleep is Sleep.AWAKE
    healthy = instance.phase is Phase.HEALTHY and bool(instance.observed.ipv4)
    return instance.owner is OwnerKind.APP and wanted and healthy


def _has_vm(instance: Instance) -> bool:
    """One that is asleep has given its addresses back."""
    return instance.live and instance.phase is not Phase.ASLEEP


def _addresses(instances: Iterable[Instance]) -> tuple[str, ...]:
    """All by which a VM is reached on the private network."""
    seen = [instance.observed for instance in instances]
    return tuple(address for each in seen for address in (each.ipv4, each.private_address) if address)


def _vms(instances: Iterable[Instance]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All that have an address, one-off runs and those that are ill too: who asks for one by its id wants that one."""
    for instance in instances:
        if _has_vm(instance) and instance.observed.ipv4:
            for id_ in filter(None, (instance.id, instance.observed.vm_id)):
                yield instance_name(id_), _addresses([instance])


def _app(facts: NamedApp, serving: Sequence[Instance]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names of an app and its processes, those that have no instance now too."""
    name = facts.app.name
    release = facts.releases.get(facts.app.release_id)
    config = release.config if release is not None else AppConfig(processes=())
    processes = {process.name for process in config.processes} | {instance.process for instance in serving}
    reached = [instance for instance in serving if _port(facts, instance)] or serving
    yield name, _addresses(reached)
    for process in sorted(processes):
        yield f"{process}.{name}", _addresses(instance for instance in serving if instance.process == process)


def _services(facts: NamedApp, serving: Iterable[Instance]) -> Iterator[tuple[str, tuple[NamedService, ...]]]:
    found: dict[str, list[NamedService]] = {}
    for instance in serving:
        if port := _port(facts, instance):
            place = NamedService(target=instance_name(instance.id), port=port)
            found.setdefault(instance.process, []).append(place)
    for process, places in found.items():
        yield f"_{process}._tcp.{facts.app.name}", tuple(places)


def _port(facts: NamedApp, instance: Instance) -> int:
    """Where an instance takes requests, by its own release; 0: nowhere."""
    release = facts.releases.get(instance.release_id)
    return service_port(release.config, instance.process) if release is not None else 0


def _described(instance: Instance) -> str:
    where = f"process={instance.process},slot={instance.slot},ip={instance.observed.ipv4}"
    return f"instance={instance.id},{where},node={instance.node_id}"
