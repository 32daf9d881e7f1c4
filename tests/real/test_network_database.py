"""A database in a VM, asked by whoever may and may not, as the truth table says it: PostgreSQL and its own client."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from psycopg import sql

from plasmavmc.types import vm_key
from tests.contract.host_rig import Namespace
from tests.contract.postgres_server import PostgresServer, programs, running_postgres
from tests.real import network_truth as truth
from tests.real.network_peer import DATABASE
from tests.real.network_world import World, world

pytestmark = pytest.mark.real
ASKERS = {
    "a1": ("VM", truth.OWN),
    "b1": ("VM", truth.OTHER_PROJECT),
    "other1": ("VM", truth.OTHER_INSTALLATION),
    "host": ("host", "VM"),
    "outside": ("elsewhere", "VM"),
}
"""Places of the world, by what the truth table calls them towards the database."""
LEDGER = sql.SQL("CREATE TABLE ledger (asker inet)")
ENTRY = "INSERT INTO ledger VALUES (inet_client_addr())"
_PATIENCE_S = 3


def put(namespace: Namespace, address: str) -> bool:
    """Have a client in this namespace make an entry; whether it could."""
    place = f"host={address} user=postgres dbname=postgres connect_timeout={_PATIENCE_S}"
    client = programs() / "psql"
    return namespace.run(str(client), place, "-Atqc", f"{ENTRY} RETURNING 'done'", check=False).strip() == "done"


async def entries(made: World, server: PostgresServer, family: int) -> set[str]:
    """Who of all askers has made one, by what it said and what the database holds of it."""
    places = {"host": made.host, "outside": made.outside, **{name: vm.namespace for name, vm in made.vms.items()}}
    asked = [asyncio.to_thread(put, places[name], made.address("ledger", family)) for name in ASKERS]
    done = {name for name, could in zip(ASKERS, await asyncio.gather(*asked), strict=True) if could}
    rows = server.sql(sql.SQL("DELETE FROM ledger RETURNING asker"))
    assert len(rows) == len(done)
    vms = {str(row) for (row,) in rows} & {made.address(name, family) for name in made.vms}
    assert vms == {made.address(name, family) for name in done if name in made.vms}, "each came as itself"
    return done


async def test_a_database_in_a_vm_serves_its_own_project_and_its_host_and_nobody_else(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        vm = await made.add_vm("ledger", made.networks[0], "project_a", left_out=(DATABASE,))
        with running_postgres("*", namespace=vm.namespace.pid, lets_in="all") as server:
            server.sql(LEDGER)
            for family in (4, 6):
                may = {name for name, row in ASKERS.items() if truth.may(*row, family)}
                assert await entries(made, server, family) == may
            await made.networks[0].release(vm_key("vm_ledger"))
            assert await entries(made, server, 4) == set()
