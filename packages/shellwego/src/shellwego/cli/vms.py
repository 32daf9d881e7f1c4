"""`swg vms`: microVMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.apps import LIVE, all_apps
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, cores, show, show_one, size
from shellwego.cli.session import Session, shared

if TYPE_CHECKING:
    from shellwego.client.generated import InstanceView


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def vms() -> None:
    """List and show microVMs."""


def _row(vm: InstanceView) -> dict[str, object]:
    return {
        "instance": vm.id,
        "process": vm.process,
        "phase": vm.phase,
        "release": f"v{vm.release}" if vm.release else None,
        "address": vm.address,
        "memory": size(vm.memory_bytes),
        "node": vm.node_id,
        "age": age(vm.created_at.isoformat()),
    }


@vms.command("ls")
@click.option("--all", "everything", is_flag=True, help="Also those that ended.")
@shared
def list_vms(session: Session, everything: bool) -> None:
    """List the microVMs of the project, or with -a of one app."""
    import msgspec  # noqa: PLC0415

    client, project, phase = session.client, session.project, None if everything else LIVE
    if session.app_option:
        found = client.list_instances(session.app_option, project=project, phase=phase, limit=100).data
    else:
        found = client.list_vms(project=project, phase=phase, limit=100).data
    names = {app.id: app.name for app in all_apps(session)} if session.output == "table" else {}
    rows = [{"app": names.get(vm.app_id, vm.app_id), **_row(vm)} for vm in found]
    show(session, msgspec.to_builtins(found), rows, name="instance", empty="no microVMs run")


def _usage(vm: InstanceView) -> dict[str, object]:
    """Nothing where the node does not tell."""
    used = vm.usage
    if not used:
        return {}
    waited = ", ".join(f"{name} {share:.0%}" for name, share in used.pressure.items())
    words = f"{size(used.memory_bytes)} memory, {size(used.disk_bytes)} disk, {used.cpu_seconds:.1f} s CPU"
    return {"uses": words, **({"pressure": f"{waited} of the last 10 s waited"} if waited else {})}


@vms.command("show")
@click.argument("instance")
@shared
def show_vm(session: Session, instance: str) -> None:
    """Show one microVM, by the id of its instance; with -a APP also by an end of it, or by its place such as web.0."""
    import msgspec  # noqa: PLC0415

    if session.app_option:
        vm = session.client.get_instance(session.app_option, instance, project=session.project)
    else:
        vm = session.client.get_vm(instance)
    pairs = {
        **_row(vm),
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
        click.echo("\nlast lines:\n" + "\n".join(f"  | {line}" for line in vm.log_tail[-20:]))
