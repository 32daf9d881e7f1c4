"""A joined host keeps its certificate fresh by itself, where its process may write, and believes nothing else there."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shellwego.boot.membership import FILE, Membership
from shellwego.boot.nodedir import Joined, Member
from shellwego.control import nodeauthority
from shellwego.control.certificates import new_key, private_pem
from shellwego.core.errors import ForbiddenError
from shellwego.core.joins import CERTIFICATE_S, RENEW_S, CertificateAnswer, MemberKind
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.files import replace_file
from shellwego.wire.tls import Credentials, expires_at
from shellwego.wire.uplink import RenewCall
from tests.control.join_world import JoinWorld, join_request, make_join_world


@dataclass
class Wire:
    """The way to the servers, which may be gone."""

    world: JoinWorld
    member_id: str
    calls: int = 0
    cut: bool = False

    async def call(self, method: str, asked: object, answer: type[CertificateAnswer]) -> CertificateAnswer:
        assert (method, answer) == ("renew", CertificateAnswer)
        assert isinstance(asked, RenewCall)
        self.calls += 1
        if self.cut:
            raise ForbiddenError("node-key-refused", "no")
        return await self.world.joins.renew(self.member_id, asked.request)


@dataclass
class Host:
    world: JoinWorld
    joined: Joined
    wire: Wire
    directory: Path

    @property
    def clock(self) -> VirtualClock:
        return self.world.clock

    def membership(self) -> Membership:
        return Membership(self.joined, self.directory, self.clock)


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    world, key = make_join_world(), new_key()
    answer = await world.joins.join(join_request(await world.token(), key))
    member = Member(
        id=answer.id,
        kind=MemberKind.NODE,
        name="a1",
        region="r",
        zone="z",
        subnet=answer.subnet,
        servers=("https://x",),
    )
    credentials = Credentials(
        certificate=answer.granted.certificate.encode(),
        key=private_pem(key),
        authorities="".join(answer.granted.authorities).encode(),
    )
    return Host(world, Joined(member, credentials), Wire(world, answer.id), tmp_path)


async def keep(host: Host, membership: Membership, for_s: float) -> None:
    """Let it be kept for a while."""
    keeping = asyncio.create_task(membership.keep(host.wire))
    await host.clock.advance(for_s)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_it_is_renewed_at_the_start_and_then_when_a_third_is_left(host: Host) -> None:
    membership = host.membership()
    keeping = asyncio.create_task(membership.keep(host.wire))
    await host.clock.advance(10)
    assert host.wire.calls == 1
    await host.clock.advance(CERTIFICATE_S - RENEW_S - 7200)
    assert host.wire.calls == 1
    await host.clock.advance(3 * 3600)
    assert host.wire.calls == 2
    assert expires_at(membership.credentials()) - host.clock.now() > CERTIFICATE_S - 2 * 3600
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_server_that_is_gone_is_asked_again_and_what_there_is_is_shown(host: Host) -> None:
    host.wire.cut = True
    membership = host.membership()
    before = membership.credentials()
    await keep(host, membership, 200)
    assert host.wire.calls >= 3
    assert membership.credentials() is before
    host.wire.cut = False
    await keep(host, membership, 100)
    assert membership.credentials() is not before


async def test_the_next_life_goes_on_with_what_was_renewed(host: Host) -> None:
    await host.clock.advance(1000)
    membership = host.membership()
    await keep(host, membership, 10)
    renewed = membership.credentials()
    assert expires_at(renewed) > expires_at(host.joined.credentials)
    assert host.membership().credentials().certificate == renewed.certificate
    assert (host.directory / FILE).stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in (host.directory / FILE).read_bytes()


def test_a_file_is_on_disk_under_its_name_once_it_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (tmp_path / "a").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    replace_file(tmp_path / "a", b"1")
    assert synced == [(tmp_path / ".a.new", False), (tmp_path, True)]


async def test_one_that_could_not_be_written_is_not_shown(host: Host, tmp_path: Path) -> None:
    """Who has shown it counts as moved to its authority; in the next life there would be none but the one before."""
    full = Membership(host.joined, tmp_path / "none", host.clock)
    await keep(host, full, 10)
    assert (host.wire.calls, full.credentials()) == (1, host.joined.credentials)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"certificate":"x","authorities":[]}', b"\xff"])
async def test_what_is_no_certificate_is_passed_over(host: Host, content: bytes) -> None:
    (host.directory / FILE).write_bytes(content)
    assert host.membership().credentials() is host.joined.credentials


async def test_a_certificate_of_another_key_is_passed_over(host: Host) -> None:
    await host.clock.advance(1000)
    await keep(host, host.membership(), 10)
    other = replace(host.joined.credentials, key=private_pem(new_key()))
    anew = Membership(Joined(host.joined.member, other), host.directory, host.clock)
    assert anew.credentials() is other


async def test_a_renewal_brings_the_authorities_that_hold_now(host: Host) -> None:
    fresh = await host.world.authorities.prepare()
    await host.world.commit(lambda unit: nodeauthority.add(unit, fresh))
    membership = host.membership()
    await keep(host, membership, 10)
    assert membership.credentials().authorities.count(b"BEGIN CERTIFICATE") == 2
