"""An agent's memory without threads: virtual time sees nothing that they bring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shellwego.agent.state import NodeState

T = TypeVar("T")


async def at_once(work: Callable[[T], None], what: T) -> None:
    work(what)


def kept_in(directory: Path) -> NodeState:
    """The memory in this directory."""
    return NodeState(directory, at_once)
