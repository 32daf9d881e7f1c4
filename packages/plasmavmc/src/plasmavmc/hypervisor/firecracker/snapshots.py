"""Keeping a VM as files, and loading one: the steps at the VMM, apart from where the files lie.

Theory. A snapshot is two files that the VMM writes into its jail: its state, which carries a checksum, and the guest's
memory, which does not, so that whoever keeps them hashes it. Disks are not in it: they are copied while the VM is paused,
which `keep` leaves it. A snapshot is loaded by a VMM that has done nothing yet, and whose vsock's socket is not there any
more; a load that fails ends that VMM, which answers 400 and then exits with 1, while one that is refused for what was asked
leaves it as it was. Either way the VMM is of no use for this VM, so both are one error, and the caller makes a new VMM.

The memory file is mapped privately: it must stay, unchanged, as long as the VM lives that was loaded from it. Connections
over the vsock do not survive; the guest's init is found again by a resync.

Source: docs/snapshotting/snapshot-support.md of Firecracker, and what 1.12.1 was seen to do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from plasmavmc.errors import HostError, PlasmaError
from plasmavmc.hypervisor.firecracker.client import FirecrackerClient
from plasmavmc.hypervisor.firecracker.requests import load_request, pause_request, resume_request, snapshot_request

ENDS_WITHIN_S = 1.0
"""A VMM that failed to load a snapshot ends in milliseconds."""


async def keep(client: FirecrackerClient, state: str, memory: str) -> None:
    """Pause the VM and write its snapshot to two paths of its jail. It stays paused; where writing fails it runs on.

    Raises:
        HostError, ConflictError, UnavailableError: as `FirecrackerClient.perform`.
    """
    await client.perform(pause_request())
    try:
        await client.perform(snapshot_request(state, memory))
    except HostError:
        await client.perform(resume_request())
        raise


async def load(
    client: FirecrackerClient,
    state: str,
    memory: str,
    *,
    ended: Callable[[float], Awaitable[bool]],
) -> None:
    """Load a snapshot into a fresh VMM; its guest stays paused. `ended` tells whether the VMM ended within some seconds.

    Raises:
        HostError: `snapshot-unusable`, with what the VMM said; it has ended, or must be.
        UnavailableError: as `FirecrackerClient.perform`.
    """
    try:
        await client.perform(load_request(state, memory))
    except PlasmaError as error:
        if error.temporary and not await ended(ENDS_WITHIN_S):
            raise
        raise HostError(
            "snapshot-unusable",
            "Firecracker could not load the snapshot",
            details=error.details or error.brief,
            resolution="start the VM anew, or from another snapshot",
        ) from error
