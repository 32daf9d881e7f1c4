"""The first start, and the tokens it begins with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.control.authentication import Authenticator, new_secret, secret_hash
from shellwego.control.bootstrap import adopt_admin_token, bootstrap, issue_admin_token
from shellwego.control.unit import Control
from shellwego.core import iam
from shellwego.core.errors import ConflictError, UnauthenticatedError
from shellwego.core.tenancy import Issuer, TokenKind
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.store.memory import MemoryStore


@pytest.fixture
def control() -> Control:
    clock = VirtualClock()
    return Control(MemoryStore(clock), MemoryBus(), clock)


async def test_the_first_start_makes_an_owner_of_the_whole_platform(control: Control) -> None:
    secret = new_secret(TokenKind.PERSONAL)
    first = await control.commit(lambda unit: bootstrap(unit, secret))
    assert first is not None
    session = await Authenticator(control).session(secret)
    assert session.principal.principal_id == first.user.id
    assert session.plan == "unlimited"
    assert iam.allowed(session.principal, "nodes:admin", ("",))
    assert first.project.first


async def test_a_second_start_changes_nothing(control: Control) -> None:
    first = await control.commit(lambda unit: bootstrap(unit, new_secret(TokenKind.PERSONAL)))
    again = await control.commit(lambda unit: bootstrap(unit, new_secret(TokenKind.PERSONAL)))
    assert first is not None
    assert again is None
    assert len(await control.read(lambda tx: tx.tokens.select())) == 1


async def test_the_secret_is_stored_nowhere(control: Control) -> None:
    secret = new_secret(TokenKind.PERSONAL)
    await control.commit(lambda unit: bootstrap(unit, secret))
    everything = await control.read(
        lambda tx: repr((tx.tokens.select(), tx.users.select(), tx.events.select(), tx.audit.select()))
    )
    assert secret not in everything
    assert secret_hash(secret) in everything


async def test_a_lost_token_is_replaced_on_the_host_only_after_the_first_start(control: Control) -> None:
    secret = new_secret(TokenKind.PERSONAL)
    with pytest.raises(ConflictError):
        await control.commit(lambda unit: issue_admin_token(unit, secret))
    await control.commit(lambda unit: bootstrap(unit, new_secret(TokenKind.PERSONAL)))
    await control.commit(lambda unit: issue_admin_token(unit, secret))
    assert (await Authenticator(control).session(secret)).principal.grants


async def test_the_hosts_token_is_let_in_at_each_start_unless_it_was_revoked(control: Control) -> None:
    secret = new_secret(TokenKind.PERSONAL)
    await control.commit(lambda unit: bootstrap(unit, secret))
    before = (await control.read(lambda tx: tx.tokens.select()))[0]
    await control.commit(lambda unit: unit.tx.tokens.update(replace(before, issued_by=Issuer.TOKEN)))
    assert await control.commit(lambda unit: adopt_admin_token(unit, secret))
    known = (await control.read(lambda tx: tx.tokens.select()))[0]
    assert known.issued_by is Issuer.HOST, "also one of a version that did not tell them apart"
    await control.commit(lambda unit: unit.tx.tokens.update(replace(known, revoked_at=unit.now())))
    assert not await control.commit(lambda unit: adopt_admin_token(unit, secret))
    fresh = new_secret(TokenKind.PERSONAL)
    assert await control.commit(lambda unit: adopt_admin_token(unit, fresh))
    assert (await Authenticator(control).session(fresh)).principal.grants


def test_secrets_are_long_different_and_of_letters_and_digits() -> None:
    secrets = {new_secret(TokenKind.PERSONAL) for _ in range(1000)}
    assert len(secrets) == 1000
    assert {len(secret) for secret in secrets} == {47}
    assert all(secret.removeprefix("pat_").isalnum() for secret in secrets)


async def test_a_session_is_not_believed_for_longer_than_a_second(control: Control) -> None:
    secret = new_secret(TokenKind.PERSONAL)
    await control.commit(lambda unit: bootstrap(unit, secret))
    authenticator = Authenticator(control)
    await authenticator.session(secret)
    token = (await control.read(lambda tx: tx.tokens.select()))[0]
    await control.commit(lambda unit: unit.tx.tokens.delete(token.id))
    assert isinstance(control.clock, VirtualClock)
    await control.clock.advance(1.0)
    with pytest.raises(UnauthenticatedError):
        await authenticator.session(secret)


async def test_strangers_do_not_push_out_more_than_their_share_of_memory(control: Control) -> None:
    authenticator = Authenticator(control)
    for _ in range(50):
        with pytest.raises(UnauthenticatedError):
            await authenticator.session(new_secret(TokenKind.PERSONAL))
    assert not authenticator._sessions
