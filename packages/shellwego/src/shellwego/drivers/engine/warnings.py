"""What is weaker on a host than it should be, in plain words, each with its remedy where there is one. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from plasmavmc.host.operations import MAX_SOURCES, Guarding
from shellwego.core.nodes import Backend

_GUARDED_BY = {
    "clsact": "older filters (clsact) check and count what VMs send",
    "nft": "the firewall alone checks what VMs send, which is slower, and nothing is counted",
}
_GUARD_REMEDY = "Boot Linux 6.6 or later with BPF_SYSCALL, NET_XGRESS and a bpf file system."


def emulation(backends: Iterable[Backend]) -> tuple[str, ...]:
    """Of backends whose CPU is not the host's."""
    return tuple(
        f"the CPU is emulated, so VMs are slow and isolated by software only: {backend.reason}"
        for backend in backends
        if backend.acceleration == "tcg"
    )


def confinement(found: str) -> tuple[str, ...]:
    """Of what bounds processes here."""
    if found != "rlimits":
        return ()
    return ("no cgroups are available: VMs are bounded by rlimits only, CPU shares are not enforced",)


def volume_driver(name: str) -> tuple[str, ...]:
    """Of where volumes lie."""
    if name != "file":
        return ()
    return (
        "its file system shares no blocks: each snapshot of a volume is a whole copy, and the VM stands still meanwhile"
        " — Have the data directory on XFS or Btrfs.",
    )


def guarding(found: Guarding) -> tuple[str, ...]:
    """Of what checks the frames of VMs."""
    if not found.lack:
        return ()
    return (f"{_GUARDED_BY.get(found.by, found.by)}: {found.lack} — {_GUARD_REMEDY}",)


def without_ipv6(lack: str) -> tuple[str, ...]:
    """Of the private network, which is IPv6 between nodes."""
    return (f"VMs have no private address, so those of a project meet on one node only: {lack}",) if lack else ()


def slow_tunnel(encrypted_by: str) -> tuple[str, ...]:
    """Of who encrypts what goes to other nodes."""
    if encrypted_by != "wireguard-go":
        return ()
    return (
        "what goes to other nodes is encrypted by a program (wireguard-go), far slower than by the kernel, which has no"
        " WireGuard — Boot a kernel with WIREGUARD (Linux 5.6 or later).",
    )


def unrecognized(count: int) -> tuple[str, ...]:
    """Of VMs of other nodes that security groups here name."""
    if not count:
        return ()
    return (
        f"{count} VMs of other nodes, which security groups here let in, are more than the firewall can know"
        f" ({MAX_SOURCES}): they get in as anybody of their project does, or not at all — Let in the whole project, or have"
        " fewer VMs of the apps that are let in.",
    )


def nameless(trouble: str) -> tuple[str, ...]:
    """Of the resolver, in its own words."""
    return (f"VMs find no other by name here: {trouble}",) if trouble else ()
