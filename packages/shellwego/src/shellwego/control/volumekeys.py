"""Keys of encrypted volumes: drawn when a volume is asked for, sealed as secrets are, and given to the one node that is to
have the volume; each handing over is audited before the node has it.

What begins as a copy of a snapshot is a copy of its ciphertext, so it has the same key; that is sealed anew for it, under a
data key of its own. So each volume's key goes with the volume, and what nobody has any more opens nothing.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from shellwego.control.nodecalls import calling_node
from shellwego.control.scopes import missing
from shellwego.control.sealing import Sealer, Sealing
from shellwego.control.unit import Caller, Control
from shellwego.core.assignments import VolumeKey, VolumeKeyRequest
from shellwego.core.envelope import Label, SealedValue, seal_broken
from shellwego.core.sensitive import Sensitive
from shellwego.core.tenancy import Project
from shellwego.core.volumes import KEY_BYTES, Volume, key_label
from shellwego.ports.store import Transaction


@dataclass(frozen=True, slots=True)
class _Stored:
    """A key as it is stored, and what it is bound to."""

    sealed: SealedValue
    label: Label


class VolumeKeys:
    """Draws keys, and is the control plane's end of `ports.uplink.NodeUplink.volume_key`."""

    def __init__(self, control: Control, sealer: Sealer) -> None:
        self._control = control
        self._sealer = sealer

    async def for_new(self, project: Project, origin: Volume | None) -> Sealing:
        """The key of a volume that is to be made: a fresh one, or that of the volume whose snapshot it begins as a copy of.
        Its label says the new volume's id. Raises what `ports.kms.Kms` raises."""
        key = (
            Sensitive(secrets.token_bytes(KEY_BYTES)) if origin is None else await self._open(_stored(project, origin))
        )
        id_ = self._control.clock.new_id("vol")
        return await self._sealer.seal(key, key_label(id_, project.organization_id, project.id))

    async def hand_out(self, request: VolumeKeyRequest) -> VolumeKey:
        """See `ports.uplink.NodeUplink.volume_key`."""
        stored = await self._control.read(lambda tx: _look(tx, request))
        key = await self._open(stored)
        await self._control.commit(
            lambda unit: unit.audit(
                "volumes:unlock",
                request.volume_id,
                organization_id=stored.label.organization_id,
                project_id=stored.label.project_id,
            ),
            Caller(actor=request.node_id),
        )
        return VolumeKey(key=key)

    async def _open(self, stored: _Stored) -> Sensitive:
        return await self._sealer.unseal(stored.sealed, stored.label)


def _look(tx: Transaction, request: VolumeKeyRequest) -> _Stored:
    node = calling_node(tx, request.node_id, request.epoch)
    volume = tx.volumes.get(request.volume_id)
    project = tx.projects.get(volume.project_id) if volume else None
    if volume is None or project is None or not volume.sealed_key or volume.node_id != node.id or volume.lost:
        raise missing("volume", request.volume_id)
    return _stored(project, volume)


def _stored(project: Project, volume: Volume) -> _Stored:
    if volume.sealed_key is None:
        raise seal_broken()
    return _Stored(volume.sealed_key, key_label(volume.id, project.organization_id, project.id))
