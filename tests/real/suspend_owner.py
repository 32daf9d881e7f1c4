"""A process that takes over the engine of a test, suspends a VM, and may be killed while it does: its argument tells which.

It says `suspending` when it begins, and `done` when it is through.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from plasmavmc.host.configuration import HelperConfiguration
from tests.contract.host_rig import LISTENER, NOBODY, Namespace, RealHelper
from tests.contract.images_samples import image, layer
from tests.real.suspend_world import World


class KnownNamespace(Namespace):
    """A namespace that somebody else keeps."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net"]


class TakenOver(RealHelper):
    """A helper for an installation that exists."""

    def __init__(self, namespace: Namespace, run_root: Path, installation_id: str, uids: range) -> None:
        self.namespace = namespace
        self._wrapper = []
        self.configuration = HelperConfiguration(
            installation_id, NOBODY, NOBODY, listeners=(LISTENER,), vm_uids=uids, run_root=run_root
        )
        self.names = self.configuration.names
        self.start()


async def main() -> None:
    told = json.loads(sys.argv[1])
    namespace = KnownNamespace(told["namespace"])
    helper = TakenOver(namespace, Path(told["run_root"]), told["id"], range(*told["uids"]))
    world = World(helper, Path(told["directory"]), image(layer()), Path(told["images"]))
    manager = await world.engine()
    print("suspending", flush=True)
    await manager.suspend(told["vm"])
    print("done", flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
