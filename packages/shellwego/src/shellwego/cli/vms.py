"""`swg vms`: microVMs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from shellwego.cli.apps import LIVE, all_apps, all_instances
from shellwego.cli.failure import FAILED, TIMED_OUT, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, cores, show, show_one, size
from shellwego.cli.progress import StageProgress
from shellwego.cli.session import Session, shared
from shellwego.client.pages import MOST, every
from shellwego.client.text import printable

if TYPE_CHECKING:
    from shellwego.client.generated import InstanceView, UsageView

_PLACE = re.compile(r"[a-z][a-z0-9-]*\.[0-9]+")
_OVER = ("stopped", "failed", "lost")
_LOOK_AGAIN_S = 2.0
_WAIT_S = 300.0


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def vms() -> None:
    """List, show, suspend and resume microVMs."""


def _row(vm: InstanceView) -> dict[str, object]:
    return {
        "instance": f"{vm.process}.{vm.slot}",
        "id": vm.id,
        "phase": vm.phase,
        "release": f"v{vm.release}" if vm.release else None,
        "address": vm.address,
        "memory": size(vm.memory_bytes),
        "node": vm.node_id,
        "age": age(vm.created_at),
    }


@vms.command("ls")
@click.option("--all", "everything", is_flag=True, help="Also those that ended.")
@shared
def list_vms(session: Session, everything: bool) -> None:
    """List the microVMs of the project, or with -a of one app."""
    import msgspec  # noqa: PLC0415

    client, project, phase = session.client, session.project, None if everything else LIVE
    if session.app_option:
        found = all_instances(session, session.app_option, phase)
    else:
        found = every(lambda cursor: client.list_vms(project=project, phase=phase, limit=MOST, cursor=cursor))
    names = {app.id: app.name for app in all_apps(session)} if session.output == "table" else {}
    rows = [{"app": names.get(vm.app_id, vm.app_id), **_row(vm)} for vm in found]
    show(session, msgspec.to_builtins(found), rows, name="id", empty="no microVMs run")


def _usage(vm: InstanceView) -> dict[str, object]:
    """Nothing where the node does not tell."""
    used = vm.usage
    if not used:
        return {}
    waited = ", ".join(f"{name} {share:.0%}" for name, share in used.pressure.items())
    words = f"{size(used.memory_bytes)} memory, {size(used.disk_bytes)} disk, {used.cpu_seconds:.1f} s CPU"
    return {"uses": words, **({"pressure": f"{waited} of the last 10 s waited"} if waited else {}), **_network(used)}


def _network(used: UsageView) -> dict[str, object]:
    """Nothing where the node does not count."""
    passed = used.network
    if passed is None:
        return {}
    sent = f"{size(passed.transmit_bytes)} in {passed.transmit_packets} packets sent"
    got = f"{size(passed.receive_bytes)} in {passed.receive_packets} received"
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(passed.dropped.items()))
    return {"network": f"{sent}, {got}", **({"dropped": f"frames: {dropped}"} if dropped else {})}


@vms.command("show")
@click.argument("instance")
@shared
def show_vm(session: Session, instance: str) -> None:
    """Show one microVM, by the id of its instance; with -a APP also by an end of it, or by its place such as web.0."""
    _show(session, _find(session, instance))


def _find(session: Session, instance: str) -> InstanceView:
    if session.app_option:
        return session.client.get_instance(session.app_option, instance, project=session.project)
    if _PLACE.fullmatch(instance):
        raise click.UsageError(f"{instance} is a place in an app: say in which one, with -a APP.")
    return session.client.get_vm(instance)


def _show(session: Session, vm: InstanceView) -> None:
    import msgspec  # noqa: PLC0415

    pairs = {
        **_row(vm),
        "private address": vm.private_address,
        "sleep": vm.sleep,
        "vm": vm.vm_id,
        "attempt": vm.attempt,
        "cpu": cores(vm.cpu_milli),
        "disk": size(vm.disk_bytes),
        **_usage(vm),
        "exit code": vm.exit_code,
        "reason": vm.reason,
    }
    show_one(session, msgspec.to_builtins(vm), pairs, name=vm.id)
    if session.output == "table" and vm.log_tail:
        click.echo("\nlast lines:\n" + "\n".join(f"  | {printable(line)}" for line in vm.log_tail[-20:]))


@vms.command("suspend")
@click.argument("instance")
@click.option("--detach", is_flag=True, help="Return at once.")
@shared
def suspend_vm(session: Session, instance: str, detach: bool) -> None:
    """Put a microVM to sleep: it leaves the routes, finishes what it has, and its memory goes to its node's disk. It costs
    no CPU, keeps its place, and is neither checked nor replaced until `swg vms resume`."""
    vm = session.client.suspend_vm(_find(session, instance).id)
    if not detach:
        vm = _settled(session, vm, lambda seen: seen.phase == "asleep")
    _show(session, vm)


@vms.command("resume")
@click.argument("instance")
@click.option("--detach", is_flag=True, help="Return at once.")
@shared
def resume_vm(session: Session, instance: str, detach: bool) -> None:
    """Wake a microVM: it goes on where it was, and takes requests once it passes its checks."""
    vm = session.client.resume_vm(_find(session, instance).id)
    if not detach:
        vm = _settled(session, vm, lambda seen: seen.phase in ("healthy", "unhealthy"))
    _show(session, vm)


def _settled(session: Session, vm: InstanceView, done: Callable[[InstanceView], bool]) -> InstanceView:
    """The instance once it is so.

    Raises:
        Failure: it ended instead, or what is wanted of it changed, or it is not so in time.
    """
    progress = StageProgress(session)
    wanted, deadline = vm.sleep, time.monotonic() + _WAIT_S
    while not done(vm):
        if vm.phase in _OVER:
            raise Failure(f"{vm.id} is {vm.phase}: {vm.reason}", code=FAILED)
        if vm.sleep == "awake" != wanted:
            raise Failure(
                f"{vm.id} could not be suspended, and runs on" + (f": {vm.reason}" if vm.reason else ""),
                resolution="The reason is in its events: swg events",
            )
        if time.monotonic() > deadline:
            raise Failure(f"{vm.id} is still {vm.phase}", code=TIMED_OUT, resolution=f"See: swg vms show {vm.id}")
        progress.update(vm.sleep if wanted != "awake" else "waking", vm.reason)
        states = ",".join(("asleep", *_OVER) if wanted != "awake" else ("healthy", "unhealthy", *_OVER))
        vm = session.client.wait_instance(vm.app_id, vm.id, state=states, timeout=_LOOK_AGAIN_S)
    progress.done(f"{vm.id} is {vm.phase}", good=True)
    return vm
