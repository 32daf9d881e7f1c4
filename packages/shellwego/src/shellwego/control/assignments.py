"""What a node is told: everything that it should hold now, resolved, so that it has no name to look up."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from shellwego.control.backupreports import backup_orders
from shellwego.control.facts import releases_of, volumes_of
from shellwego.control.instances import instances_on
from shellwego.control.networks import private_prefix
from shellwego.control.nodecalls import known_node
from shellwego.control.replicareports import replica_orders
from shellwego.control.securitygroups import landscape
from shellwego.control.volumereports import volume_orders
from shellwego.core.apps import App, Process, Release, RestartMode, RestartPolicy
from shellwego.core.assignments import Assignment, Assignments, Workload, WorkloadMount
from shellwego.core.instances import Desired, Instance, OwnerKind, Sleep
from shellwego.core.nodes import Node
from shellwego.core.openings import Ingress
from shellwego.core.routes import service_port
from shellwego.core.tenancy import Project
from shellwego.ports.store import Transaction

_log = structlog.get_logger(__name__)


def assignments(tx: Transaction, node_id: str) -> Assignments:
    """All that a node should hold now.

    Raises:
        ForbiddenError: this node is not known.
    """
    node = known_node(tx, node_id)
    held = list(_held(tx, node_id))
    grouped = {app.project_id for _, app, _, _ in held if app.groups}
    landscapes = {project_id: landscape(tx, project_id) for project_id in grouped}
    prefix = private_prefix(tx)
    return Assignments(
        node_id=node_id,
        epoch=node.epoch,
        items=tuple(
            Assignment(
                instance_id=instance.id,
                workload=workload(
                    instance,
                    app,
                    release,
                    project,
                    node,
                    mounts=_mounts(tx, instance, release),
                    private_prefix=prefix,
                    ingress=landscapes[app.project_id].ingress(app) if app.groups else None,
                ),
                present=instance.desired is not Desired.STOP,
                asleep=instance.sleep is Sleep.ASLEEP,
                memory_of=instance.memory_of,
            )
            for instance, app, release, project in held
        ),
        volumes=volume_orders(tx, node_id),
        backups=backup_orders(tx, node_id),
        replicas=replica_orders(tx, node_id),
    )


def projects_on(tx: Transaction, node_id: str) -> set[str]:
    """The projects of all that a node should hold now.

    Raises:
        ForbiddenError: this node is not known.
    """
    known_node(tx, node_id)
    return {project.id for _, _, _, project in _held(tx, node_id)}


def _held(tx: Transaction, node_id: str) -> Iterator[tuple[Instance, App, Release, Project]]:
    """What a node should hold, with whose and of what it is."""
    instances = instances_on(tx, node_id)
    releases = releases_of(tx, {instance.release_id for instance in instances})
    apps = {app_id: tx.apps.get(app_id) for app_id in {instance.app_id for instance in instances}}
    for instance in instances:
        app, release = apps[instance.app_id], releases.get(instance.release_id)
        project = tx.projects.get(app.project_id) if app else None
        if app is None or release is None or project is None:
            _log.error("assignments.dangling", instance=instance.id, app=instance.app_id)
        else:
            yield instance, app, release, project


def _mounts(tx: Transaction, instance: Instance, release: Release) -> tuple[WorkloadMount, ...]:
    """What an instance has of volumes, which are on its node from when it was placed."""
    names = {volume.id: volume.name for volume in volumes_of(tx, instance, release.config)}
    return tuple(
        WorkloadMount(
            volume_id=mount.volume_id,
            name=names.get(mount.volume_id, mount.source),
            destination=mount.destination,
            read_only=mount.read_only,
        )
        for mount in release.config.mounts_of(instance.process)
        if instance.owner is OwnerKind.APP
    )


def workload(
    instance: Instance,
    app: App,
    release: Release,
    project: Project,
    node: Node,
    *,
    mounts: tuple[WorkloadMount, ...],
    private_prefix: str,
    ingress: Ingress,
) -> Workload:
    """What a VM of the instance is, with every name resolved. A one-off run serves nothing and is tried once."""
    config = release.config
    run = instance.owner is OwnerKind.RUN
    process = next((p for p in config.processes if p.name == instance.process), Process(name=instance.process))
    port = 0 if run else service_port(config, instance.process)
    return Workload(
        organization_id=project.organization_id,
        project_id=project.id,
        network_id=project.network_id,
        network_number=project.network_number,
        egress=app.egress.held_to,
        app_id=app.id,
        app_name=app.name,
        process=instance.process,
        release=release.number,
        image_digest=release.image_digest,
        command=instance.command if instance.command is not None else process.command,
        entrypoint=() if run else process.entrypoint,
        env={**_environment(app, instance.process, release, node, port), **config.env, **process.env},
        secrets=tuple(config.secrets),
        memory_bytes=instance.memory_bytes,
        cpu_milli=instance.cpu_milli,
        vcpus=process.vcpus,
        disk_bytes=instance.disk_bytes,
        port=port,
        checks=() if run else tuple(check for check in config.checks if check.process == instance.process),
        restart=RestartPolicy(mode=RestartMode.NEVER) if run else process.restart,
        stop_signal=process.stop_signal,
        stop_grace_s=process.stop_grace_s,
        backend=config.backend,
        mounts=mounts,
        private_prefix=private_prefix,
        ingress=ingress,
    )


def _environment(app: App, process: str, release: Release, node: Node, port: int) -> dict[str, str]:
    """What every guest is told about itself; the engine adds the id of its VM."""
    told = {
        "SHELLWEGO_APP": app.name,
        "SHELLWEGO_PROCESS": process,
        "SHELLWEGO_RELEASE": f"v{release.number}",
        "SHELLWEGO_REGION": node.region,
        "SHELLWEGO_NODE": node.name,
    }
    return {**told, "PORT": str(port)} if port else told
