"""`plasmavmc vm create`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from plasmavmc.cli.connection import connection
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import result_options, show_one
from plasmavmc.cli.views import vm_document
from plasmavmc.cli.vm.making import created
from plasmavmc.cli.vm.wish import Wish, make, wish_options
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import Vm


@click.command(context_settings={**HELP, "allow_interspersed_args": False})
@wish_options
@result_options
def create(output: str, **given: Any) -> None:
    """Make a VM without starting it, and print its id. Its image is pulled where it is missing."""
    wish, scope = Wish(given), connection().scope()
    wish.check()

    async def work(engine: EngineClient) -> Vm:
        spec = await make(engine, wish, scope, attached=False, quiet=output != "table")
        return await created(engine, spec)

    vm = with_engine(work, running=True)
    show_one("name" if output == "table" else output, vm_document(vm), {}, name=vm.spec.id)
