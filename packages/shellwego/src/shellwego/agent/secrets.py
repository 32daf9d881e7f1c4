"""The secrets of this node's instances: asked for just before a VM starts, and held in memory alone; and the keys of its
volumes, which the engine holds.

Secrets are held so that an attempt after the first can begin while the control plane is away. What was held is gone with the
agent, and with the instance's assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from shellwego.core.assignments import SecretsRequest, VolumeKeyRequest
from shellwego.core.convergence import RunVm
from shellwego.core.errors import ForbiddenError, ShellWeGoError, ThrottledError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.uplink import NodeUplink


class SecretKeeper:
    """`identity` is the node's id and epoch, as they are now."""

    def __init__(self, uplink: NodeUplink, identity: Callable[[], tuple[str, int]]) -> None:
        self._uplink = uplink
        self._identity = identity
        self._held: dict[str, Mapping[str, Sensitive]] = {}

    async def values(self, order: RunVm) -> Mapping[str, Sensitive]:
        """What the order's VM is to be given: as the control plane has it, or as it had it when it was last reached.

        Raises:
            UnavailableError: they cannot be had now.
            NotFoundError: this node should not run the instance any more.
            ConflictError: a value was destroyed, or does not open any more.
        """
        if not order.workload.secrets:
            return {}
        node_id, epoch = self._identity()
        try:
            answer = await self._uplink.secrets(
                SecretsRequest(node_id=node_id, epoch=epoch, instance_id=order.instance_id)
            )
        except ForbiddenError as error:  # the daemon registers again
            raise _later(error) from error
        except (UnavailableError, ThrottledError) as error:
            if order.instance_id not in self._held:
                raise _later(error) from error
        else:
            self._held[order.instance_id] = answer.values
        return self._held[order.instance_id]

    async def volume_key(self, volume_id: str) -> Sensitive:
        """The key of an encrypted volume; it is not held here.

        Raises:
            UnavailableError: it cannot be had now.
            NotFoundError: the volume is not to be on this node any more.
            ConflictError: the key does not open any more.
        """
        node_id, epoch = self._identity()
        try:
            answer = await self._uplink.volume_key(VolumeKeyRequest(node_id=node_id, epoch=epoch, volume_id=volume_id))
        except (ForbiddenError, UnavailableError, ThrottledError) as error:
            raise _later(error) from error
        return answer.key

    def keep_only(self, instances: Collection[str]) -> None:
        """Forget what belongs to any other instance."""
        self._held = {id_: values for id_, values in self._held.items() if id_ in instances}


def _later(error: ShellWeGoError) -> UnavailableError:
    """It cannot be had now, for this reason."""
    return UnavailableError(error.code, error.message, resolution=error.resolution)
