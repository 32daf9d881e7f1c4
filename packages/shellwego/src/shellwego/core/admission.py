"""May this be asked for at all? Judged against what the nodes can do, before anything is stored.

A wish that no node's backend could ever serve is refused here, with the field at fault, not found out on a node minutes
later. "Ever" leaves room: a backend that still boots its probe's guest, or a node that is full now, is no reason to
refuse; the deployment waits in stage `placing` and says so. What a config may hold in itself is checked by its use case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from shellwego.core.apps import MIB, AppConfig, Process
from shellwego.core.errors import FieldError
from shellwego.core.images import ImageKind
from shellwego.core.nodes import Backend, Node, NodeFacts
from shellwego.core.placement import rules_objection
from shellwego.core.placement_rules import PlacementRules

WASM_BACKEND = "wasm"
_USABLE = ("ready", "probing")
_HOLDS = {ImageKind.LINUX: "a Linux system", ImageKind.WASM: "a WebAssembly module"}


def with_backend(config: AppConfig, kind: ImageKind | None) -> AppConfig:
    """The config with the backend that an image of this kind needs, where it names none."""
    chosen = WASM_BACKEND if kind is ImageKind.WASM else None
    return replace(config, backend=config.backend or chosen)


def admit(
    config: AppConfig, nodes: Iterable[Node], kind: ImageKind | None = None, *, encrypted: bool = False
) -> tuple[FieldError, ...]:
    """The faults of a config on this platform; none where some node could run each process. `kind` is that of the image,
    where it is known; `encrypted` whether it mounts a volume that is.

    A platform without nodes refuses nothing: its first node may join later.
    """
    known = tuple(nodes)
    if not known:
        return ()
    faults = tuple(_rules_faults(config.placement, known))
    if faults:
        return faults
    allowed = _allowed(config, known)
    faults = (
        *_backend_faults(config, allowed),
        *_kind_faults(config, allowed, kind),
        *_volume_faults(config, allowed, encrypted=encrypted),
    )
    return faults or tuple(fault for process in config.processes for fault in _size_faults(config, process, allowed))


def encryption_fault(nodes: Iterable[Node]) -> FieldError | None:
    """Why no volume can be encrypted on this platform; None where some node could have one, or none keeps any yet."""
    backends = (backend for node in nodes for backend in node.facts.backends)
    keeping = [backend for backend in backends if _is_usable(backend) and backend.volumes]
    if not keeping or any(backend.encryption for backend in keeping):
        return None
    return FieldError("encrypted", "not-offered", "no node that keeps volumes can encrypt them")


def admit_counts(config: AppConfig, counts: Mapping[str, int], nodes: Iterable[Node]) -> tuple[FieldError, ...]:
    """The faults of counts by process: more than all its nodes together could hold, were nothing else on them."""
    known = _allowed(config, nodes)
    return tuple(
        FieldError(f"counts.{process.name}", "too-large", f"{asked} asked, the nodes hold {most} of this size at most")
        for process in config.processes
        if known
        and (asked := counts.get(process.name, 0)) > (most := sum(_most(process, node.facts) for node in known))
    )


def _allowed(config: AppConfig, nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(node for node in nodes if rules_objection(config.placement, node) is None)


def _rules_faults(rules: PlacementRules, nodes: Sequence[Node]) -> Iterator[FieldError]:
    """What no node has, else that none has it all."""
    told = False
    names = (("region", rules.region, {n.region for n in nodes}), ("zone", rules.zone, {n.zone for n in nodes}))
    for name, wanted, known in names:
        if wanted and wanted not in known:
            told = True
            message = f"no node is in the {name} “{wanted}”; there is: {', '.join(sorted(known)[:20])}"
            yield FieldError(f"placement.{name}", "not-offered", message)
    for label, value in sorted(rules.require.items()):
        if not any(node.labels.get(label) == value for node in nodes):
            told = True
            yield FieldError(f"placement.require.{label}", "not-offered", f"no node has the label {label}={value}")
    fitting = [found for found in (rules_objection(rules, node) for node in nodes) if found is None or found.taint]
    if not told and not fitting:
        yield FieldError("placement", "not-offered", "no node meets all of its conditions together")
    elif not told and None not in fitting:
        taints = sorted({found.taint for found in fitting if found is not None})
        message = f"every such node has a taint that it does not tolerate: {', '.join(taints[:20])}"
        yield FieldError("placement.tolerate", "not-offered", message)


def _most(process: Process, facts: NodeFacts) -> int:
    return min(
        facts.memory_bytes // process.memory_bytes,
        facts.cpu_milli * facts.cpu_overcommit // process.cpu_milli,
        facts.disk_bytes * facts.disk_overcommit // process.disk_bytes,
    )


def _backend_faults(config: AppConfig, nodes: Sequence[Node]) -> Iterator[FieldError]:
    if config.backend is not None and not any(_usable(config, node) for node in nodes):
        offered = sorted({backend.name for node in nodes for backend in node.facts.backends if _is_usable(backend)})
        known = f"; the nodes offer {', '.join(offered)}" if offered else ""
        yield FieldError("backend", "not-offered", f"no node offers the backend “{config.backend[:40]}”{known}")


def _kind_faults(config: AppConfig, nodes: Sequence[Node], kind: ImageKind | None) -> Iterator[FieldError]:
    """A backend of that name that runs what the image holds is enough, be it usable or not."""
    named = [backend for node in nodes for backend in node.facts.backends if backend.name == config.backend]
    if kind is not None and named and not any(backend.runs(kind) for backend in named):
        message = f"the image holds {_HOLDS[kind]}, which the backend “{config.backend}” does not run"
        yield FieldError("backend", "wrong-kind", message)


def _volume_faults(config: AppConfig, nodes: Sequence[Node], *, encrypted: bool) -> Iterator[FieldError]:
    usable = [backend for node in nodes for backend in _usable(config, node)]
    keeping = [backend for backend in usable if backend.volumes]
    by = f" with the backend “{config.backend}”" if config.backend else ""
    if config.mounts and usable and not keeping:
        yield FieldError("mounts", "not-offered", f"no node gives volumes to VMs{by}")
    elif encrypted and keeping and not any(backend.encryption for backend in keeping):
        yield FieldError("mounts", "not-offered", f"no node gives encrypted volumes to VMs{by}")


def _size_faults(config: AppConfig, process: Process, nodes: Sequence[Node]) -> Iterator[FieldError]:
    """Each limit is judged alone, so that the field named is the one to change."""
    backends = [backend for node in nodes for backend in _usable(config, node)]
    at = f"processes.{process.name}"
    limits: tuple[tuple[str, int, Iterable[int], Callable[[int], str]], ...] = (
        ("memory", process.memory_bytes, (node.facts.memory_bytes for node in nodes), _mib),
        ("memory", process.memory_bytes, _limits(backend.max_memory_bytes for backend in backends), _mib),
        ("cpu", process.cpu_milli, (node.facts.cpu_milli for node in nodes), lambda milli: f"{milli}m"),
        ("vcpus", process.vcpus, _limits(backend.max_vcpus for backend in backends), str),
        ("disk", process.disk_bytes, (node.facts.disk_bytes for node in nodes), _mib),
    )
    told: set[str] = set()
    for name, need, offers, show in limits:
        best = max(offers, default=None)
        if best is not None and need > best and name not in told:
            told.add(name)
            yield FieldError(f"{at}.{name}", "too-large", f"{show(need)} asked, the largest node has {show(best)}")


def _usable(config: AppConfig, node: Node) -> list[Backend]:
    return [b for b in node.facts.backends if _is_usable(b) and b.serves(config.backend)]


def _is_usable(backend: Backend) -> bool:
    return backend.status in _USABLE


def _limits(values: Iterable[int]) -> list[int]:
    """Limits that bind; one backend without a known limit lifts them all."""
    known = list(values)
    return [] if 0 in known else known


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"
