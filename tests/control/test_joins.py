"""Hosts that join: who is let in, as what, and how the door is closed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shellwego.control import certificates, joins, nodeadmin, nodeauthority, nodekeys
from shellwego.control.certificates import certificate_request, key_fingerprint, new_key
from shellwego.control.joins import JoinWish
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError, ForbiddenError, InvalidError, ShellWeGoError, UnauthenticatedError
from shellwego.core.joins import CERTIFICATE_S, MemberKind, Membership, split_token
from shellwego.core.nodecallers import SHUT_OUT, EdgeCaller, NodeCaller
from shellwego.core.nodes import NodeHealth
from shellwego.core.subnets import free_subnet, is_subnet
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import eq
from shellwego.wire.tls import SERVER_NAME, peer_of
from tests.contract.store_databases import Database
from tests.control.join_world import SERVERS, JoinWorld, join_request, make_join_world


@pytest.fixture
def world() -> JoinWorld:
    return make_join_world()


async def refusal(world: JoinWorld, secret: str, **options: Any) -> ShellWeGoError:
    with pytest.raises(ShellWeGoError) as refused:
        await world.joins.join(join_request(secret, **options))
    return refused.value


async def test_a_host_joins_as_what_the_operator_said(world: JoinWorld) -> None:
    key = new_key()
    wish = JoinWish(name="a1", region="north", zone="n1", labels={"disk": "ssd"})
    await world.servers.say()
    member = await world.joins.join(join_request(await world.token(wish), key, hostname="elsewhere"))
    node = await world.control.read(lambda tx: tx.nodes.get(member.id))
    assert node is not None
    assert (node.name, node.region, node.zone, dict(node.labels)) == ("a1", "north", "n1", {"disk": "ssd"})
    assert (node.health, node.subnet, node.facts.hostname) == (NodeHealth.DOWN, "10.64.0.0/20", "elsewhere")
    assert (member.name, member.region, member.subnet) == ("a1", "north", "10.64.0.0/20")
    assert member.granted.servers == SERVERS
    assert await world.identity.identify(key_fingerprint(key.public_key())) == NodeCaller(node_id=node.id, name="a1")


async def test_a_certificate_is_of_the_authority_for_this_key_and_for_clients_only(world: JoinWorld) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    leaf = x509.load_pem_x509_certificate(member.granted.certificate.encode())
    (authority,) = (x509.load_pem_x509_certificate(each.encode()) for each in member.granted.authorities)
    leaf.verify_directly_issued_by(authority)
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == member.id
    assert [*leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value] == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_after_utc.timestamp() == pytest.approx(world.clock.now() + CERTIFICATE_S, abs=1)


async def test_an_edge_joins_as_an_edge_that_nobody_waits_for(world: JoinWorld) -> None:
    key = new_key()
    secret = await world.token(JoinWish(kind=MemberKind.EDGE))
    refused = await refusal(world, secret)
    assert (refused.code, "with --edge" in refused.resolution) == ("wrong-kind", True)
    member = await world.joins.join(join_request(secret, key, kind=MemberKind.EDGE))
    edge = await world.control.read(lambda tx: tx.edges.get(member.id))
    assert edge is not None
    assert (edge.name, edge.lease_until, member.subnet) == ("host-one", 0.0, "")
    assert await world.identity.identify(key_fingerprint(key.public_key())) == EdgeCaller(
        edge_id=edge.id, name="host-one"
    )


async def test_a_token_is_for_one_key(world: JoinWorld) -> None:
    secret = await world.token()
    await world.joins.join(join_request(secret))
    error = await refusal(world, secret, hostname="other")
    assert (type(error), error.code) == (ConflictError, "join-token-used")
    assert await world.control.read(lambda tx: tx.nodes.count()) == 1


async def test_an_answer_that_was_lost_is_asked_for_again(world: JoinWorld) -> None:
    secret, key = await world.token(), new_key()
    first = await world.joins.join(join_request(secret, key))
    again = await world.joins.join(join_request(secret, key, hostname="renamed-meanwhile"))
    assert replace(again, granted=first.granted) == first
    assert await world.control.read(lambda tx: (tx.nodes.count(), tx.node_keys.count())) == (1, 1)


async def test_a_lost_answer_is_given_no_more_once_the_token_has_expired(world: JoinWorld) -> None:
    secret, key = await world.token(), new_key()
    await world.joins.join(join_request(secret, key))
    await world.clock.advance(3601)
    assert (await refusal(world, secret, key=key)).code == "join-token-expired"


async def test_for_a_token_that_is_none_the_master_key_is_not_asked() -> None:
    """A KMS may cost, or count; whoever reaches the node port could ask."""
    kms = MemoryKms()
    world = make_join_world(kms=kms)
    secret = await world.token()
    kms.available = False
    assert (await refusal(world, joins.join_secret())).code == "join-token-unknown"
    assert (await refusal(world, secret)).code == "kms-unavailable"


@pytest.mark.parametrize("end", ["expired", "revoked", "unknown", "malformed"])
async def test_a_token_that_does_not_hold_lets_nobody_in(world: JoinWorld, end: str) -> None:
    secret = await world.token()
    if end == "expired":
        await world.clock.advance(3600)
    elif end == "revoked":
        row = await world.stored(secret)
        await world.commit(lambda unit: joins.revoke_join_token(unit, row))
    elif end == "unknown":
        secret = joins.join_secret()
    else:
        secret = "join_x' OR 1=1"
    error = await refusal(world, secret)
    assert (type(error), error.code) == (UnauthenticatedError, f"join-token-{'unknown' if end == 'malformed' else end}")
    assert await world.control.read(lambda tx: (tx.nodes.count(), tx.node_keys.count())) == (0, 0)


async def test_what_is_tried_with_a_token_is_audited_under_it(world: JoinWorld) -> None:
    secret = await world.token()
    await world.joins.join(join_request(secret))
    await refusal(world, secret)
    await refusal(world, joins.join_secret())
    token = await world.stored(secret)
    records = await world.control.read(lambda tx: tx.audit.select(eq("action", "nodes:join")))
    assert [(each.resource, each.allowed) for each in records] == [(token.used_by, True), (token.id, False)]
    assert secret not in repr(records) + repr(token)


def csr(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, name: str = "", san: bool = False) -> bytes:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("server.shellwego.internal")]), False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def another_curve() -> bytes:
    return csr(ec.generate_private_key(ec.SECP384R1()))


def edwards() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER)


def not_held() -> bytes:
    """A request for a key of somebody else: its signature is of another."""
    good, other = certificate_request(new_key()), certificate_request(new_key())
    return good[: len(good) - 60] + other[len(other) - 60 :]


RSA_512 = bytes.fromhex(
    "3081b930650201003000305c300d06092a864886f70d0101010500034b003048024100c385ea87bf0b7a1df7b52a312837cf"
    "1d56a2eaf6c6327749213cae61fac9f4a15616ef37016a03d5c1a58d704d0e8707870ad9330374421811e9b0fbb7c4a8d502"
    "03010001a000300d06092a864886f70d01010b050003410089c984c6e258930bf15203ca96cc35c1857cae190e5ccc412f20"
    "7dc296b0d525e843b5b0b6e2037b22e484a85fe174afdbcfaee37e471f67925f60afff378a85"
)
"""A good request for an RSA key of 512 bits, as our library makes none any more."""


@pytest.mark.parametrize(
    "made",
    [
        lambda: csr(new_key(), name="node_" + "0" * 26),
        lambda: csr(new_key(), san=True),
        lambda: csr(rsa.generate_private_key(65537, 2048)),
        lambda: RSA_512,
        another_curve,
        edwards,
        not_held,
        lambda: b"",
        lambda: b"-----BEGIN CERTIFICATE REQUEST-----",
        lambda: certificate_request(new_key()) + b"x" * 9000,
        lambda: b"\x30\x84\xff\xff\xff\xff" * 100,
    ],
    ids=["cn", "san", "rsa", "rsa-512", "p384", "ed25519", "not-held", "empty", "pem", "giant", "noise"],
)
async def test_a_hostile_request_gets_no_certificate_and_uses_up_no_token(world: JoinWorld, made: object) -> None:
    assert callable(made)
    secret = await world.token()
    error = await refusal(world, secret, request=made())
    assert (type(error), error.code, error.errors[0].field) == (InvalidError, "bad-certificate-request", "request")
    await world.joins.join(join_request(secret))


async def test_requests_that_were_damaged_anywhere_are_refused_and_never_fail(world: JoinWorld) -> None:
    good, chance = certificate_request(new_key()), random.Random(7)
    for _ in range(500):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        with pytest.raises(InvalidError):
            certificates.requested_key(bytes(bad))


async def test_of_two_hosts_with_one_token_one_joins(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = open_sqlite(tmp_path / "state.db", clock)
    try:
        world = make_join_world(store, clock)
        secret = await world.token()
        asked = [world.joins.join(join_request(secret, hostname=f"h{n}")) for n in range(6)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(answer, Membership) for answer in answers) == 1
        assert {each.code for each in answers if isinstance(each, ShellWeGoError)} == {"join-token-used"}
        assert await world.control.read(lambda tx: tx.nodes.count()) == 1
    finally:
        await store.close()


async def test_one_key_is_of_one_node(world: JoinWorld) -> None:
    key = new_key()
    await world.joins.join(join_request(await world.token(), key))
    assert (await refusal(world, await world.token(), key=key, hostname="other")).code == "node-key-known"


async def test_nobody_takes_the_name_of_a_node_that_is_there(world: JoinWorld) -> None:
    await world.joins.join(join_request(await world.token()))
    assert (await refusal(world, await world.token())).code == "node-name-taken"
    with pytest.raises(ConflictError, match="is there already"):
        await world.token(JoinWish(name="host-one"))


@pytest.mark.parametrize("name", ["", "a b", "node_" + "0" * 26, "keys", "x" * 254, "-a", "a\n", "ä"])
async def test_a_host_with_a_name_that_cannot_be_is_told_so(world: JoinWorld, name: str) -> None:
    error = await refusal(world, await world.token(), hostname=name)
    assert (error.code, error.errors[0].field) == ("bad-node-name", "hostname")


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (JoinWish(name="a b"), "name"),
        (JoinWish(region="North"), "region"),
        (JoinWish(zone=""), "zone"),
        (JoinWish(labels={"": "x"}), "labels"),
        (JoinWish(labels={"a": "b c"}), "labels"),
        (JoinWish(labels={str(n): "" for n in range(65)}), "labels"),
        (JoinWish(life_s=3601), "expires_in"),
        (JoinWish(life_s=1), "expires_in"),
    ],
)
async def test_a_token_of_what_cannot_be_is_refused(world: JoinWorld, wish: JoinWish, field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await world.token(wish)
    assert refused.value.errors[0].field.startswith(field)


async def test_each_node_has_its_own_subnet_and_one_that_left_gives_it_back(world: JoinWorld) -> None:
    members = [await world.joins.join(join_request(await world.token(), hostname=f"h{n}")) for n in range(3)]
    assert [each.subnet for each in members] == ["10.64.0.0/20", "10.64.16.0/20", "10.64.32.0/20"]
    await world.commit(lambda unit: unit.tx.nodes.delete(members[1].id))
    assert (await world.joins.join(join_request(await world.token(), hostname="new"))).subnet == "10.64.16.0/20"


@pytest.mark.databases("postgres")
async def test_hosts_that_join_at_once_have_a_subnet_each(database: Database) -> None:
    clock = VirtualClock()
    world = make_join_world(database.open(clock), clock)
    secrets = [await world.token() for _ in range(6)]
    joining = (world.joins.join(join_request(secret, hostname=f"h{n}")) for n, secret in enumerate(secrets))
    members = await asyncio.gather(*joining)
    assert len({member.subnet for member in members}) == len(secrets)


def test_the_pool_of_subnets_has_an_end() -> None:
    taken: set[str] = set()
    while len(taken) < 1024:
        taken.add(free_subnet(taken))
    with pytest.raises(ConflictError, match="some node's"):
        free_subnet(taken)


@pytest.mark.parametrize("text", ["10.64.0.0/10", "10.64.0.1/20", "10.0.0.0/20", "", "x", "10.64.0.0/21", "::/20"])
def test_only_a_part_of_the_pool_is_a_nodes_subnet(text: str) -> None:
    assert not is_subnet(text)


async def test_a_retired_key_opens_nothing_within_a_second(world: JoinWorld) -> None:
    key = new_key()
    secret = await world.token()
    member = await world.joins.join(join_request(secret, key))
    id_ = key_fingerprint(key.public_key())
    await world.identity.identify(id_)

    def retire(unit: Unit) -> None:
        row = joins.find_key(unit.tx, id_)
        assert row is not None
        nodekeys.retire_key(unit, row)

    await world.commit(retire)
    await world.clock.advance(0.5)
    with pytest.raises(ForbiddenError) as refused:
        await world.identity.identify(id_)
    assert refused.value.code == SHUT_OUT, "it is told that this was meant, so that it ends what it runs"
    with pytest.raises(ForbiddenError):
        await world.joins.renew(member.id, certificate_request(key))
    assert (await refusal(world, secret, key=key)).code == "node-key-refused"


async def test_an_edge_whose_key_is_retired_is_waited_for_no_more_and_its_name_is_free(world: JoinWorld) -> None:
    async def join(key: ec.EllipticCurvePrivateKey) -> Membership:
        secret = await world.token(JoinWish(kind=MemberKind.EDGE))
        return await world.joins.join(join_request(secret, key, kind=MemberKind.EDGE))

    def retire(unit: Unit) -> None:
        row = joins.find_key(unit.tx, key_fingerprint(key.public_key()))
        assert row is not None
        nodekeys.retire_key(unit, row)

    key = new_key()
    gone = await join(key)
    await world.commit(retire)
    await world.commit(retire)
    told = await world.control.read(lambda tx: tx.events.select(eq("type", "edge.removed")))
    assert [(event.resource, event.data) for event in told] == [(gone.id, {"name": gone.name})]
    again = await join(new_key())
    assert (again.name, again.id == gone.id) == (gone.name, False)
    assert [edge.id for edge in await world.control.read(lambda tx: tx.edges.select())] == [again.id]


async def test_the_key_of_a_node_that_is_gone_opens_nothing(world: JoinWorld) -> None:
    key = new_key()
    secret = await world.token()
    member = await world.joins.join(join_request(secret, key))
    await world.commit(lambda unit: unit.tx.nodes.delete(member.id))
    with pytest.raises(ForbiddenError) as refused:
        await world.identity.identify(key_fingerprint(key.public_key()))
    assert refused.value.code == "node-key-refused", (
        "nobody decided that: a store that forgot a node ends nothing on it"
    )
    assert (await refusal(world, secret, key=key)).code == "node-key-refused"


async def test_a_node_that_was_removed_is_told_so_as_long_as_its_certificate_lasts(world: JoinWorld) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))

    def remove(unit: Unit, name: str) -> None:
        (node,) = unit.tx.nodes.select(eq("name", name))
        nodeadmin.remove_node(unit, node)

    await world.commit(lambda unit: remove(unit, member.name))
    with pytest.raises(ForbiddenError) as refused:
        await world.identity.identify(key_fingerprint(key.public_key()))
    assert refused.value.code == SHUT_OUT
    await world.clock.advance(CERTIFICATE_S + 1)
    await world.joins.join(join_request(await world.token(), hostname="other"))
    await world.commit(lambda unit: remove(unit, "other"))
    (left,) = await world.control.read(lambda tx: tx.node_keys.select())
    assert left.member_id != member.id, "what nobody can show any more is forgotten"


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 64, "0" * 65, "\0", "é" * 64])
async def test_an_unknown_key_is_nobody(world: JoinWorld, text: str) -> None:
    with pytest.raises(ForbiddenError):
        await world.identity.identify(text)


async def test_a_certificate_is_renewed_for_its_own_key_only(world: JoinWorld) -> None:
    key = new_key()
    member = await world.joins.join(join_request(await world.token(), key))
    id_ = key_fingerprint(key.public_key())
    await world.clock.advance(CERTIFICATE_S - 10)
    answer = await world.joins.renew(member.id, certificate_request(key))
    leaf = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == member.id
    await world.clock.advance(CERTIFICATE_S - 10)
    await world.identity.identify(id_)
    with pytest.raises(ForbiddenError):
        await world.joins.renew(member.id, certificate_request(new_key()))
    other = new_key()
    await world.joins.join(join_request(await world.token(), other, hostname="other"))
    with pytest.raises(ForbiddenError):
        await world.joins.renew(member.id, certificate_request(other))
    await world.clock.advance(20)
    with pytest.raises(ForbiddenError):
        await world.identity.identify(id_)


async def test_an_authority_is_exchanged_while_nodes_of_both_are_let_in(world: JoinWorld) -> None:
    old_key, new_node_key = new_key(), new_key()
    first = await world.joins.join(join_request(await world.token(), old_key))
    before = await world.authorities.shown()
    await world.clock.advance(1)
    fresh = await world.authorities.prepare()
    after = await world.commit(lambda unit: nodeauthority.add(unit, fresh))
    second = await world.joins.join(join_request(await world.token(), new_node_key, hostname="h2"))
    assert (len(first.granted.authorities), len(second.granted.authorities)) == (1, 2)
    issued = x509.load_pem_x509_certificate(second.granted.certificate.encode())
    issued.verify_directly_issued_by(x509.load_pem_x509_certificate(after.certificate.encode()))
    assert (await world.authorities.shown()).id == before.id, "those who joined before know no other"
    with pytest.raises(ConflictError, match="1 nodes or edges"):
        await world.commit(lambda unit: nodeauthority.retire(unit, before))
    renewed = await world.joins.renew(first.id, certificate_request(old_key))
    assert len(renewed.authorities) == 2
    shown = x509.load_pem_x509_certificate(renewed.certificate.encode()).public_bytes(Encoding.DER)
    await world.identity.identify(key_fingerprint(old_key.public_key()), peer_of(shown).authority_id)
    await world.commit(lambda unit: nodeauthority.retire(unit, before))
    assert (await world.authorities.shown()).id == after.id
    with pytest.raises(ConflictError, match="signs for nodes"):
        await world.commit(lambda unit: nodeauthority.retire(unit, after))


async def test_two_servers_make_one_authority(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = open_sqlite(tmp_path / "state.db", clock)
    try:
        world = make_join_world(store, clock)
        found = await asyncio.gather(*(world.authorities.shown() for _ in range(4)))
        assert len({each.id for each in found}) == 1
    finally:
        await store.close()


async def test_an_authoritys_key_lies_sealed(world: JoinWorld) -> None:
    authority = await world.authorities.shown()
    signer = await world.authorities.signer(authority)
    private = certificates.private_bytes(signer.key).reveal()
    assert private not in authority.sealed.ciphertext
    assert "PRIVATE" not in repr(authority) + repr(signer)


async def test_a_servers_certificate_is_for_servers_only_and_names_no_address(world: JoinWorld) -> None:
    identity = await world.authorities.server_identity()
    leaf, authority = x509.load_pem_x509_certificates(identity.chain.encode())
    leaf.verify_directly_issued_by(authority)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert [*leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value] == both, (
        "other servers are called too"
    )
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME]
    assert identity.authorities == (authority.public_bytes(Encoding.PEM).decode(),)


async def test_a_token_names_the_authority_behind_its_secret(world: JoinWorld) -> None:
    secret = joins.join_secret()
    fingerprint = (await world.authorities.shown()).fingerprint
    assert split_token(secret + fingerprint) == (secret, fingerprint)
    assert [split_token(bad) for bad in ("", secret, secret + fingerprint + "0", fingerprint + secret)] == [None] * 4
