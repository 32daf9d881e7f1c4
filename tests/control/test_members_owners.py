"""The last owner stays, whoever is removed at the same moment, on a real store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shellwego.control import members
from shellwego.control.bootstrap import bootstrap
from shellwego.control.unit import Control, Unit
from shellwego.core import iam
from shellwego.core.errors import ConflictError
from shellwego.core.tenancy import Grant, Principal, User
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.sqlite import open_sqlite

OWNERS = 20


def grant(unit: Unit, principal_id: str, scope_id: str) -> Grant:
    made = Grant(
        id=unit.new_id("grn"), principal_id=principal_id, role=iam.OWNER, scope_id=scope_id, created_at=unit.now()
    )
    return unit.tx.grants.insert(made)


@pytest.mark.parametrize("act", ["remove", "demote"])
async def test_of_all_owners_who_go_at_once_one_stays(tmp_path: Path, act: str) -> None:
    clock = VirtualClock()
    control = Control(open_sqlite(tmp_path / "state.db", clock), MemoryBus(), clock)
    first = await control.commit(lambda unit: bootstrap(unit, "pat_" + "x" * 43))
    assert first is not None
    organization = first.organization

    def add(unit: Unit) -> Principal:
        for number in range(OWNERS):
            user = User(id=unit.new_id("usr"), email=f"owner-{number}@x", created_at=unit.now())
            grant(unit, unit.tx.users.insert(user).id, organization.id)
        grant(unit, unit.new_id("svc"), organization.id)  # owns nothing: nobody could work as the last owner
        mine = tuple(unit.tx.grants.select())
        return Principal(principal_id=first.user.id, token_id="", scopes=(), grants=mine)

    operator = await control.commit(add)

    def go(unit: Unit, number: int) -> None:
        member = members.find_member(unit.tx, organization, f"owner-{number}@x")
        if act == "remove":
            members.remove_member(unit, operator, organization, member)
        else:
            members.change_member(unit, operator, member, "viewer")

    ended = await asyncio.gather(
        *(control.commit(lambda unit, n=number: go(unit, n)) for number in range(OWNERS)),  # type: ignore[misc]
        return_exceptions=True,
    )
    refused = [error for error in ended if error is not None]
    assert [getattr(error, "code", error) for error in refused] == ["last-owner"]
    assert isinstance(refused[0], ConflictError)
    await control.store.close()
