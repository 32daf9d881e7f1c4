"""Which node is calling: for what is told to one node alone, or accepted from one alone."""

from __future__ import annotations

from shellwego.core.errors import ForbiddenError, UnavailableError
from shellwego.core.nodes import Node
from shellwego.ports.store import Transaction


def known_node(tx: Transaction, node_id: str) -> Node:
    """The node of this id.

    Raises:
        ForbiddenError: this platform does not know it.
    """
    node = tx.nodes.get(node_id)
    if node is None:
        raise ForbiddenError("node-unknown", f"this platform has no node {node_id[:64]}", resolution="Register again.")
    return node


def calling_node(tx: Transaction, node_id: str, epoch: int) -> Node:
    """The node that asks, of its current epoch.

    Raises:
        ForbiddenError: this platform does not know it.
        UnavailableError: it speaks of another epoch, as one that was judged lost; it will hear of the current one.
    """
    node = known_node(tx, node_id)
    if epoch != node.epoch:
        raise UnavailableError("node-epoch", f"the node is of epoch {epoch}, and {node.epoch} is the current one")
    return node
