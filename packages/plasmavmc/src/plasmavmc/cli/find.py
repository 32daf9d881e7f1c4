"""Which VM a word of the command line means: its id, its name, or the beginning of its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plasmavmc.cli.ends import NOT_FOUND, USAGE, Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import Scope, Vm


def choose(word: str, vms: Sequence[Vm]) -> Vm:
    """The one VM that is meant: by id, else by name, else by the beginning of its id. Of several with a name, the one that
    has not ended."""
    from plasmavmc.states import ENDED  # noqa: PLC0415

    for fits in (
        [vm for vm in vms if vm.spec.id == word],
        [vm for vm in vms if vm.spec.name == word and vm.status.state not in ENDED],
        [vm for vm in vms if vm.spec.name == word],
        [vm for vm in vms if len(word) >= 2 and vm.spec.id.removeprefix("vm_").startswith(word.removeprefix("vm_"))],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            found = ", ".join(vm.spec.id for vm in fits[:5])
            raise Failure(f"{word!r} may mean any of {len(fits)} VMs: {found}", code=USAGE, resolution="Give the id.")
    raise Failure(f"there is no VM {word[:80]!r}", code=NOT_FOUND, resolution="See: plasmavmc vm ls -a")


async def find(engine: EngineClient, word: str, scope: Scope | None) -> Vm:
    """The VM that is meant, as the server has it now."""
    from plasmavmc.rpc.api import VmFilter  # noqa: PLC0415

    return choose(word, [vm async for vm in engine.vms.list_vms(VmFilter(scope=scope))])
