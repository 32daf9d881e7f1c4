"""Join tokens, and the one moment at which a stranger becomes a node or an edge.

A host asks to join with a token and a key. What it says is believed only as far as it proves it. The request is signed
by its key, and the token was given by an operator for one key. Everything else (region, zone, labels, subnet, and a
name where the operator chose one) comes from the token and the server, and not from the host.

The answer can be lost on its way. So the same key may ask again with the same token, and becomes nothing new by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shellwego.control import certificates, nodeauthority
from shellwego.control.authentication import new_secret, secret_hash
from shellwego.control.certificates import PublicKey
from shellwego.control.nodeauthority import NodeAuthorities
from shellwego.control.servers import Servers
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.errors import (
    ConflictError,
    FieldError,
    ForbiddenError,
    InvalidError,
    ShellWeGoError,
    UnauthenticatedError,
)
from shellwego.core.joins import (
    CERTIFICATE_S,
    LIFE_S,
    CertificateAnswer,
    JoinRequest,
    JoinToken,
    JoinTokenState,
    MemberKind,
    Membership,
    NodeKey,
    check_name,
    is_fingerprint,
    is_secret,
)
from shellwego.core.nodes import Node, NodeFacts, NodeHealth, label_faults, place_faults
from shellwego.core.routing import Edge
from shellwego.core.subnets import free_subnet
from shellwego.core.tenancy import Principal, TokenKind
from shellwego.ports.store import Transaction, eq

MAX_OPEN = 1000
KEPT_S = 30 * 24 * 3600.0
"""How long a token is listed after its time."""
MIN_LIFE_S = 60.0
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWish:
    """What an operator says of a host that is to come."""

    kind: MemberKind = MemberKind.NODE
    name: str = ""
    region: str = "local"
    zone: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict)
    life_s: float = LIFE_S


def join_secret() -> str:
    """A secret such as `join_…`, shown once, with the authority's fingerprint behind it."""
    return new_secret(TokenKind.JOIN)


def create_join_token(unit: Unit, principal: Principal, wish: JoinWish, secret: str) -> JoinToken:
    """Let one host in that brings this secret.

    Raises:
        InvalidError: a name, place, label or life that cannot be.
        ConflictError: the name is taken, or too many tokens are open.
    """
    _check(wish)
    if wish.name:
        _check_free(unit.tx, wish.kind, wish.name)
    if len(_open_ones(unit)) >= MAX_OPEN:
        raise ConflictError("too-many-join-tokens", f"{MAX_OPEN} join tokens are open", resolution="Revoke some.")
    token = unit.tx.join_tokens.insert(
        JoinToken(
            id=unit.new_id("jtk"),
            kind=wish.kind,
            name=wish.name,
            region=wish.region,
            zone=wish.zone,
            labels=dict(wish.labels),
            secret_hash=secret_hash(secret),
            created_by=principal.principal_id,
            created_at=unit.now(),
            expires_at=unit.now() + wish.life_s,
        )
    )
    unit.emit("join_token.created", token.id, data={"kind": token.kind.value, "region": token.region})
    return token


def revoke_join_token(unit: Unit, token: JoinToken) -> JoinToken:
    """Let nobody in by it any more; once more changes nothing.

    Raises:
        ConflictError: somebody came in by it already.
    """
    state = token.state(unit.now())
    if state is JoinTokenState.USED:
        raise ConflictError(
            "join-token-used",
            f"{token.used_by} joined with it already",
            resolution="To shut it out: swg nodes keys ls, swg nodes keys revoke",
        )
    if state is JoinTokenState.REVOKED:
        return token
    unit.emit("join_token.revoked", token.id)
    return unit.tx.join_tokens.update(replace(token, revoked_at=unit.now()))


class Joins:
    """The node port's end of a join, and of the renewal of certificates."""

    def __init__(self, control: Control, authorities: NodeAuthorities, servers: Servers) -> None:
        self._control = control
        self._authorities = authorities
        self._servers = servers

    async def join(self, request: JoinRequest) -> Membership:
        """Take a host in.

        Raises:
            UnauthenticatedError: the token is unknown, expired or revoked.
            ConflictError: it was used by another key, the name is taken, or the key is known already.
            InvalidError: the certificate request, the name or the kind will not do.
        """
        key = certificates.requested_key(request.request)
        try:
            await self._control.read(lambda tx: _usable(tx, request, key))  # no stranger has the master key asked
            return await self._join(request, key)
        except ShellWeGoError as error:
            await self._note_refusal(request.secret, error)
            raise

    async def _join(self, request: JoinRequest, key: PublicKey) -> Membership:
        authority = await self._authorities.newest()
        signer = await self._authorities.signer(authority)

        def work(unit: Unit) -> tuple[Membership, NodeKey]:
            token = _usable(unit.tx, request, key)
            unit.caller = Caller(actor=token.id)
            return _take_in(unit, token, request, key, authority.id)

        member, row = await self._control.commit(work)
        certificate = signer.for_member(key, member.id, row.expires_at - CERTIFICATE_S, row.expires_at)
        return replace(member, granted=await self._granted(certificate))

    async def renew(self, member_id: str, request: bytes) -> CertificateAnswer:
        """Another certificate for a key of this node or edge. A key that is none of its own joins anew, with a token. It
        counts for the new authority only when its holder shows what it was given (`nodekeys.note_shown`).

        Raises:
            InvalidError: the request will not do.
            ForbiddenError: its key is none of this member's, or retired.
        """
        key = certificates.requested_key(request)
        authority = await self._authorities.newest()
        signer = await self._authorities.signer(authority)

        def work(unit: Unit) -> NodeKey:
            row = find_key(unit.tx, key.fingerprint)
            if row is None or row.member_id != member_id or not row.holds(unit.now()):
                raise refused_key()
            unit.caller = Caller(actor=row.member_id)
            unit.audit("nodes:renew", row.member_id, detail=key.fingerprint)
            end = unit.now() + CERTIFICATE_S
            return unit.tx.node_keys.update(replace(row, expires_at=end))

        row = await self._control.commit(work)
        end = row.expires_at
        return await self._granted(signer.for_member(key, row.member_id, end - CERTIFICATE_S, end))

    async def _granted(self, certificate: str) -> CertificateAnswer:
        believed = await self._control.read(nodeauthority.believed)
        servers = await self._servers.told()
        return CertificateAnswer(certificate=certificate, authorities=believed, servers=servers)

    async def _note_refusal(self, secret: str, error: ShellWeGoError) -> None:
        """Audit what was tried with a token that there is; who brings none at all fills no table."""

        def note(unit: Unit) -> None:
            token = find_token(unit.tx, secret)
            if token is not None:
                unit.audit("nodes:join", token.id, allowed=False, detail=error.code)

        await self._control.commit(note)


def refused_key() -> ForbiddenError:
    """The one answer to every key that is not let in."""
    return ForbiddenError(
        "node-key-refused",
        "the key is unknown, retired, or its node is gone",
        resolution="Join again: swg nodes join-token, then swg nodes join on the host.",
    )


def _usable(tx: Transaction, request: JoinRequest, key: PublicKey) -> JoinToken:
    """The token that lets this request in."""
    token = find_token(tx, request.secret)
    state = token.state(tx.now()) if token else None
    again = token is not None and state is JoinTokenState.USED and token.used_key == key.fingerprint
    if token is None:
        raise _refused_token("unknown", "there is no such join token")
    if state is JoinTokenState.REVOKED:
        raise _refused_token("revoked", "the join token was revoked")
    if state is JoinTokenState.EXPIRED or (again and tx.now() >= token.expires_at):
        raise _refused_token("expired", "the join token has expired")
    if state is JoinTokenState.USED and not again:
        raise ConflictError(
            "join-token-used",
            "another host joined with this token; each is for one",
            resolution="Make another: swg nodes join-token. If it was not yours: swg nodes keys ls, swg nodes keys revoke.",
        )
    if token.kind is not request.kind:
        fault = FieldError("kind", "wrong-kind", f"the token is for a host that joins as {token.kind}")
        flag = "with" if token.kind is MemberKind.EDGE else "without"
        remedy = f"Run the line as it was printed, {flag} --edge; or make another token."
        raise InvalidError("wrong-kind", f"kind: {fault.message}", resolution=remedy, errors=(fault,))
    return token


def find_key(tx: Transaction, fingerprint: str) -> NodeKey | None:
    """The key with this fingerprint, retired or not."""
    if not is_fingerprint(fingerprint):
        return None
    return next(iter(tx.node_keys.select(eq("fingerprint", fingerprint), limit=1)), None)


def find_token(tx: Transaction, secret: str) -> JoinToken | None:
    """The token with this secret, whatever its state."""
    if not is_secret(secret):
        return None
    return next(iter(tx.join_tokens.select(eq("secret_hash", secret_hash(secret)), limit=1)), None)


def _refused_token(kind: str, words: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"join-token-{kind}", words, resolution="Make another: swg nodes join-token")


def _take_in(
    unit: Unit, token: JoinToken, request: JoinRequest, key: PublicKey, authority_id: str
) -> tuple[Membership, NodeKey]:
    known = find_key(unit.tx, key.fingerprint)
    if token.used_at is not None:
        member = _found(unit.tx, token)
        if known is None or known.retired_at is not None or member is None:
            raise refused_key()
    elif known is not None:
        raise ConflictError(
            "node-key-known",
            f"this key is that of {known.member_id} already",
            resolution="Each join makes its own key; remove the directory that this one lies in.",
        )
    else:
        member = _insert(unit, token, request)
        unit.tx.join_tokens.update(replace(token, used_at=unit.now(), used_by=member.id, used_key=key.fingerprint))
        data = {"name": member.name, "token": token.id, "key": key.fingerprint}
        unit.emit(f"{token.kind.value}.joined", member.id, data=data)
    unit.audit("nodes:join", member.id, detail=key.fingerprint)
    return member, _put_key(unit, token, member.id, key.fingerprint, authority_id)


def _put_key(unit: Unit, token: JoinToken, member_id: str, fingerprint: str, authority_id: str) -> NodeKey:
    known = find_key(unit.tx, fingerprint)
    end = unit.now() + CERTIFICATE_S
    if known is not None:
        return unit.tx.node_keys.update(replace(known, expires_at=end))
    return unit.tx.node_keys.insert(
        NodeKey(
            id=unit.new_id("nky"),
            fingerprint=fingerprint,
            member_id=member_id,
            kind=token.kind,
            token_id=token.id,
            authority_id=authority_id,
            created_at=unit.now(),
            expires_at=end,
        )
    )


def _insert(unit: Unit, token: JoinToken, request: JoinRequest) -> Membership:
    """The node or edge itself. It is not there until its own process says so: nothing is placed on it, nobody waits."""
    name = token.name or request.hostname
    check_name(name, "hostname")
    _check_free(unit.tx, token.kind, name)
    if token.kind is MemberKind.EDGE:
        edge = Edge(id=unit.new_id("edg"), name=name, lease_until=0.0, created_at=unit.now())
        return _membership(token, unit.tx.edges.insert(edge))
    facts = NodeFacts(
        hostname=_text(request.hostname, 253),
        version=_text(request.version, 64),
        cpu_milli=0,
        memory_bytes=0,
        disk_bytes=0,
    )
    node = Node(
        id=unit.new_id("node"),
        name=name,
        region=token.region,
        zone=token.zone,
        labels=dict(token.labels),
        subnet=free_subnet(each for node in unit.tx.nodes.select() for each in (node.subnet, node.facts.subnet)),
        facts=facts,
        health=NodeHealth.DOWN,
        last_heard_at=unit.now(),
        created_at=unit.now(),
    )
    return _membership(token, unit.tx.nodes.insert(node))


def _found(tx: Transaction, token: JoinToken) -> Membership | None:
    """What came of a token that was used."""
    found = tx.edges.get(token.used_by) if token.kind is MemberKind.EDGE else tx.nodes.get(token.used_by)
    return None if found is None else _membership(token, found)


def _membership(token: JoinToken, found: Node | Edge) -> Membership:
    node = found if isinstance(found, Node) else None
    return Membership(
        id=found.id,
        kind=token.kind,
        name=found.name,
        region=node.region if node else token.region,
        zone=node.zone if node else token.zone,
        subnet=node.subnet if node else "",
        granted=CertificateAnswer(certificate="", authorities=()),
    )


def _check(wish: JoinWish) -> None:
    if wish.name:
        check_name(wish.name)
    faults = [*place_faults({"region": wish.region, "zone": wish.zone}), *label_faults(wish.labels)]
    if faults:
        raise InvalidError(faults[0].code, f"{faults[0].field}: {faults[0].message}", errors=tuple(faults))
    if not MIN_LIFE_S <= wish.life_s <= LIFE_S:
        words = f"a join token lives {MIN_LIFE_S:.0f} to {LIFE_S:.0f} seconds"
        raise InvalidError("life-refused", words, errors=(FieldError("expires_in", "out-of-range", words),))


def _check_free(tx: Transaction, kind: MemberKind, name: str) -> None:
    same = eq("name", name)
    taken = tx.edges.select(same, limit=1) if kind is MemberKind.EDGE else tx.nodes.select(same, limit=1)
    if taken:
        words = f"the {kind} {name} is there already"
        raise ConflictError(
            "node-name-taken",
            words,
            resolution="Give another: swg nodes join-token --name NAME. If it is the same host set up anew, remove the old"
            " one first.",
            errors=(FieldError("name", "already-exists", words),),
        )


def _open_ones(unit: Unit) -> list[JoinToken]:
    """Tokens that can be used; those that are long past are forgotten."""
    found = unit.tx.join_tokens.select()
    for past in (each for each in found if each.expires_at < unit.now() - KEPT_S):
        unit.tx.join_tokens.delete(past.id)
    return [each for each in found if each.state(unit.now()) is JoinTokenState.OPEN]


def _text(text: str, limit: int) -> str:
    return _UNPRINTABLE.sub("?", text[:limit])
