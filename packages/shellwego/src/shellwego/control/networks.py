"""Private networks of projects: the platform's prefix, and numbers that are given once.

Both are kept among the store's counters. The prefix is chosen at the first start and stays, also over a restored backup.
"""

from __future__ import annotations

from dataclasses import replace

from shellwego.control.marks import mark, set_mark
from shellwego.control.unit import Unit
from shellwego.core.addresses import MAX_NUMBER, global_id_from, prefix_of, private_address
from shellwego.core.errors import ConflictError
from shellwego.core.nodes import Node
from shellwego.core.peers import subnet_of
from shellwego.ports.store import Transaction

_GLOBAL_ID = "networks.global-id"
_NUMBERS = "networks.numbers"
"""The last number that was given."""


def next_number(unit: Unit) -> int:
    """A number that no network had before.

    Raises:
        ConflictError: there is none.
    """
    number = mark(unit.tx, _NUMBERS) + 1
    if number > MAX_NUMBER:
        raise ConflictError("no-network-number", "each number of a private network was given once")
    set_mark(unit.tx, _NUMBERS, number)
    return number


def private_prefix(tx: Transaction) -> str:
    """The platform's /48; empty before its first start."""
    global_id = mark(tx, _GLOBAL_ID)
    return prefix_of(global_id) if global_id else ""


def address_of(tx: Transaction, node: Node, project_id: str, ipv4: str) -> str:
    """The private address of the project's VM that has this IPv4 address on the node; empty where it has none."""
    project, prefix, subnet = tx.projects.get(project_id), private_prefix(tx), subnet_of(node)
    if project is None or not (project.network_number and prefix and subnet and ipv4):
        return ""
    return private_address(prefix, subnet, project.network_number, ipv4)


def establish(unit: Unit) -> None:
    """Choose the prefix, and give numbers to projects that servers of an older version made, in the order of their making.
    Idempotent; to be called at each start."""
    if not mark(unit.tx, _GLOBAL_ID):
        set_mark(unit.tx, _GLOBAL_ID, global_id_from(unit.new_id("net")))
    unnumbered = [project for project in unit.tx.projects.select() if not project.network_number]
    for project in sorted(unnumbered, key=lambda each: (each.created_at, each.id)):
        unit.tx.projects.update(replace(project, network_number=next_number(unit)))
