"""What is believed of what a node says. Pure.

What a node sends is input from outside, and others act on it: edges send requests to its addresses, the scheduler fills the
host that it tells of, people read its reasons. So all of it is cut to its bounds; or it is dropped, where a part of it would
mean something else: a digest, an address, the traits of a host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

from shellwego.core.assignments import NodeReport, Registration
from shellwego.core.convergence import vm_id
from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.instances import PHASE_MOVES, Observed, Phase
from shellwego.core.nodes import MAX_IMAGES, MAX_OVERCOMMIT, ROADS, Backend, Node, NodeFacts
from shellwego.core.peers import is_host_address, is_public_key
from shellwego.core.subnets import is_subnet
from shellwego.core.traffic import NodeTraffic, Passed

MAX_TEXT = 1000
MAX_LOG_LINES = 50
MAX_INSTANCES = 10_000
"""In one report."""
MAX_EPOCH = 1 << 30
"""That a node may claim to know. An epoch rises once whenever the node is lost, so no honest one comes near, and what the
store can hold stays beyond it."""
MAX_WORD = 64
"""Characters of what is a name or a kind, and no sentence."""
MAX_TRAITS = 32
"""Of a host, on which its snapshots depend."""
_MAX_COUNT = 2**63 - 1
_MAX_REASONS = 32
_REASON = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_VM_SOCKET = re.compile(r"unix:/run/shellwego/[a-z0-9]{1,40}/vm/[a-z2-7]{12}/http\.sock")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPORTABLE = frozenset(
    {
        Phase.STARTING,
        Phase.HEALTHY,
        Phase.UNHEALTHY,
        Phase.ASLEEP,
        Phase.STOPPING,
        Phase.STOPPED,
        Phase.FAILED,
    }
)


def check_registration(registration: Registration) -> None:
    """Raises `InvalidError`: the name is not usable, or the epoch cannot be."""
    if registration.known_epoch > MAX_EPOCH:
        fault = FieldError("known_epoch", "out-of-range", f"no node knows an epoch above {MAX_EPOCH}")
        raise InvalidError("bad-epoch", f"known_epoch: {fault.message}", errors=(fault,))
    if not registration.name or len(registration.name) > 253 or not registration.name.isprintable():
        raise InvalidError("bad-node-name", "a node's name has 1 to 253 printable characters")


def check_report(report: NodeReport) -> None:
    """Raises `InvalidError`: it names more instances than a node can hold."""
    if max(map(len, (report.instances, report.volumes, report.backups, report.replicas))) > MAX_INSTANCES:
        raise InvalidError("report-too-large", f"a report names at most {MAX_INSTANCES} instances, and as many volumes")


def may_follow(phase: Phase, said: Phase) -> bool:
    """Whether a node may say this of an instance that was of that phase."""
    return said in _REPORTABLE and (said is phase or said in PHASE_MOVES[phase])


def is_vm_address(text: str, node: Node) -> bool:
    """None, or one that a VM of this node can have: edges will send requests to it. A node that joined has its own subnet,
    and VMs that are reached by addresses only; on the platform's own host no socket is one but a VM's own."""
    if not text or (_VM_SOCKET.fullmatch(text) and not node.subnet):
        return True
    try:
        address = IPv4Address(text)
    except ValueError:
        return False
    if node.subnet:
        return address in IPv4Network(node.subnet)
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


def bounded_observation(instance_id: str, observed: Observed) -> Observed:
    """The observation within bounds. The VM that it names is the one of this attempt of this instance, or none: names and
    published ports lead to it by its id, and with another's a node would have what is for that. An honest one names another
    only where its engine refused an attempt: the VM of the one before, which has ended."""
    return replace(
        observed,
        vm_id=observed.vm_id if observed.vm_id == vm_id(instance_id, observed.attempt) else "",
        reason=observed.reason[:MAX_TEXT],
        reason_code=observed.reason_code[:MAX_WORD],
        detail=observed.detail[:MAX_WORD],
        log_tail=tuple(line[:MAX_TEXT] for line in observed.log_tail[-MAX_LOG_LINES:]),
    )


def bounded_facts(facts: NodeFacts) -> NodeFacts:
    """What it tells of its host within bounds."""
    return replace(
        facts,
        hostname=facts.hostname[:253],
        version=facts.version[:MAX_WORD],
        cpu_milli=max(0, facts.cpu_milli),
        memory_bytes=max(0, facts.memory_bytes),
        disk_bytes=max(0, facts.disk_bytes),
        disk_free_bytes=None if facts.disk_free_bytes is None else max(0, facts.disk_free_bytes),
        cpu_overcommit=min(max(1, facts.cpu_overcommit), MAX_OVERCOMMIT),
        disk_overcommit=min(max(1, facts.disk_overcommit), MAX_OVERCOMMIT),
        backends=tuple(map(_bounded_backend, facts.backends[:16])),
        confinement=facts.confinement[:MAX_WORD],
        warnings=_texts(facts.warnings),
        subnet=facts.subnet if is_subnet(facts.subnet) else "",
        address=facts.address if is_host_address(facts.address) else "",
        images=tuple(sorted(filter(_DIGEST.fullmatch, facts.images[:MAX_IMAGES]))),
        hints=facts.hints if facts.hints in ROADS else "",
        tunnel_keys=facts.tunnel_keys if _are_keys(facts.tunnel_keys) and _is_port(facts.tunnel_port) else (),
        tunnel_port=facts.tunnel_port if _is_port(facts.tunnel_port) else 0,
    )


def bounded_traffic(told: NodeTraffic) -> NodeTraffic:
    """What it counted within bounds: of as many apps as it may have instances."""
    reasons = islice(filter(_REASON.fullmatch, told.dropped), _MAX_REASONS)
    return NodeTraffic(
        apps={app_id[:MAX_WORD]: _bounded_passed(each) for app_id, each in islice(told.apps.items(), MAX_INSTANCES)},
        dropped={reason: _count(told.dropped[reason]) for reason in reasons},
    )


def _bounded_passed(passed: Passed) -> Passed:
    return Passed(
        transmit_packets=_count(passed.transmit_packets),
        transmit_bytes=_count(passed.transmit_bytes),
        receive_packets=_count(passed.receive_packets),
        receive_bytes=_count(passed.receive_bytes),
    )


def _count(said: int) -> int:
    return min(max(0, said), _MAX_COUNT)


def _is_port(first: int) -> bool:
    """Whether it can be the first of two ports above root's own."""
    return 1024 <= first < 65535


def _are_keys(keys: tuple[str, ...]) -> bool:
    return len(keys) == len(set(keys)) == 2 and all(map(is_public_key, keys))


def _bounded_backend(backend: Backend) -> Backend:
    return replace(
        backend,
        name=backend.name[:MAX_WORD],
        status=backend.status[:MAX_WORD],
        acceleration=backend.acceleration[:MAX_WORD],
        isolation=backend.isolation[:MAX_WORD],
        reason=backend.reason[:MAX_TEXT],
        max_vcpus=max(0, backend.max_vcpus),
        max_memory_bytes=max(0, backend.max_memory_bytes),
        snapshot_host=backend.snapshot_host if _is_bounded(backend.snapshot_host) else (),
    )


def _is_bounded(words: tuple[tuple[str, str], ...]) -> bool:
    """Cut short they would stand for another host."""
    return len(words) <= MAX_TRAITS and all(len(name) <= MAX_WORD and len(word) <= MAX_TEXT for name, word in words)


def _texts(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(line[:MAX_TEXT] for line in list(lines)[:32])
