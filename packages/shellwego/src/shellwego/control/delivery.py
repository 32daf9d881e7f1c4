"""Secrets on their way to a guest: unwrapped when a node asks for them just before a boot, and never sooner.

A node gets the values of an instance that it should run now, and of no other; each handing over is audited, and noted as
the version's last use, before the node has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.nodecalls import calling_node
from shellwego.control.references import versions_of
from shellwego.control.scopes import missing, project_scope
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.apps import App, Release
from shellwego.core.assignments import SecretsRequest, SecretValues
from shellwego.core.envelope import Label
from shellwego.core.errors import ConflictError
from shellwego.core.instances import Desired, Instance
from shellwego.core.secrets import Secret, SecretRef, SecretVersion, label
from shellwego.ports.store import Transaction


@dataclass(frozen=True, slots=True)
class _Asked:
    """One variable, and what is stored of its value."""

    variable: str
    secret: Secret
    version: SecretVersion
    label: Label


class Delivery:
    """The control plane's end of `ports.uplink.NodeUplink.secrets`."""

    def __init__(self, control: Control, sealer: Sealer) -> None:
        self._control = control
        self._sealer = sealer

    async def values(self, request: SecretsRequest) -> SecretValues:
        """See `ports.uplink.NodeUplink.secrets`."""
        asked = await self._control.read(lambda tx: _look(tx, request))
        values = {}
        for each in asked:
            if each.version.sealed is None:
                raise _gone(each.secret.name, each.version.number)
            key = await self._sealer.open(each.version.sealed.key_id, each.label)
            values[each.variable] = key.unseal(each.version.sealed, each.version.number)
        await self._control.commit(lambda unit: _record(unit, request, asked), Caller(actor=request.node_id))
        return SecretValues(values=values)


def _look(tx: Transaction, request: SecretsRequest) -> list[_Asked]:
    node = calling_node(tx, request.node_id, request.epoch)
    instance = tx.instances.get(request.instance_id)
    if instance is None or not _may_have(instance, node.id):
        raise missing("instance", request.instance_id)
    app, release = tx.apps.get(instance.app_id), tx.releases.get(instance.release_id)
    if app is None or release is None:
        raise missing("instance", request.instance_id)
    return _references(tx, app, release)


def _may_have(instance: Instance, node_id: str) -> bool:
    return instance.node_id == node_id and instance.live and instance.desired is not Desired.STOP


def _references(tx: Transaction, app: App, release: Release) -> list[_Asked]:
    """By the project of the app: a secret whose row was moved there from elsewhere does not open."""
    project = tx.projects.get(app.project_id)
    if project is None:
        raise missing("app", app.id)
    scope, found = project_scope(project), []
    for variable, ref in release.config.secrets.items():
        secret, version = _version(tx, ref)
        if secret is None or version is None or secret.project_id != scope.project_id:
            raise _gone(ref.secret, ref.number)
        found.append(_Asked(variable, secret, version, label(secret, scope.organization_id)))
    return found


def _version(tx: Transaction, ref: SecretRef) -> tuple[Secret | None, SecretVersion | None]:
    secret = tx.secrets.get(ref.secret_id)
    versions = versions_of(tx, secret) if secret else []
    return secret, next((each for each in versions if each.number == ref.number), None)


def _record(unit: Unit, request: SecretsRequest, asked: list[_Asked]) -> None:
    for each in asked:
        detail = f"version {each.version.number}, to start {request.instance_id}"
        unit.audit("secrets:use", each.secret.id, detail=detail)
        stored = unit.tx.secret_versions.get(each.version.id)
        if stored is None or stored.sealed is None:
            raise _gone(each.secret.name, each.version.number)
        unit.tx.secret_versions.update(replace(stored, last_used_at=unit.now()))


def _gone(name: str, number: int) -> ConflictError:
    return ConflictError(
        "secret-gone",
        f"version {number} of the secret {name} is gone, and the release needs it",
        resolution="Deploy again, with a version that is there.",
    )
