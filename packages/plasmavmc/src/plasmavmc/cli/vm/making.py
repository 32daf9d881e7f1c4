"""Making a VM, with patience for a host that is just getting to know itself.

After its first start, an update or a reboot a server probes which hypervisor boots a guest here. That takes seconds, and a
VM asked for meanwhile is one that will be made: so the command waits, and says why to whoever sits before a terminal.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from plasmavmc.cli.output import say

if TYPE_CHECKING:
    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import Vm, VmSpec

PROBE_S = 180.0
"""A KVM probe that hangs is given up after 10 s; then an emulated guest boots, slowly on a busy host."""
_AGAIN_S = 0.2


async def created(engine: EngineClient, spec: VmSpec, *, start: bool = False) -> Vm:
    """Make a VM.

    Raises:
        PlasmaError: it was refused; `backend-probing` where the probe does not end.
    """
    from plasmavmc.errors import UnavailableError  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    deadline, telling = loop.time() + PROBE_S, sys.stderr.isatty()
    while True:
        try:
            return await engine.vms.create(spec, start=start)
        except UnavailableError as error:
            if error.code != "backend-probing" or loop.time() > deadline:
                raise
        if telling:
            say("plasmavmc: waiting for the host's hypervisor, which is still being probed")
            telling = False
        await asyncio.sleep(_AGAIN_S)
