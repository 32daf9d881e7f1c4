"""`plasmavmc node`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import result_options, show_one
from plasmavmc.cli.views import node_document, node_pairs
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.rpc.api import Node
    from plasmavmc.rpc.client import EngineClient


@click.group(context_settings=dict(HELP))
def node() -> None:
    """This host."""


@node.command(context_settings=dict(HELP))
@result_options
def info(output: str) -> None:
    """Show the host's capacity, what is promised of it, and its backends."""

    async def work(engine: EngineClient) -> Node:
        return await engine.nodes.get()

    found = with_engine(work)
    show_one(output, node_document(found), node_pairs(found), name=found.id)
