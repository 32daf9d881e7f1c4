"""The platform's own certificate authority for its nodes, edges and servers: made at first need, exchanged, asked to sign.

Its key is sealed under the platform's master key, and opened in memory where something is to be signed. See `core.joins` for
how two of them hold at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shellwego.control import certificates
from shellwego.control.certificates import Signer
from shellwego.control.sealing import Sealer, Sealing, forget, keep
from shellwego.control.unit import Control, Unit
from shellwego.core.envelope import Label
from shellwego.core.errors import ConflictError, UnavailableError
from shellwego.core.joins import NodeAuthority, newest, oldest
from shellwego.core.sensitive import Sensitive
from shellwego.ports.store import Op, Order, Transaction, Where, eq

MAX_HOLDING = 4
"""Authorities that hold at once: each is sent with each certificate."""
_LISTED = 100


@dataclass(frozen=True, slots=True)
class Fresh:
    """An authority that was made, and not yet stored."""

    row: NodeAuthority
    sealing: Sealing


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a server shows on the node port, and whom it believes there. All in PEM."""

    chain: str
    key: Sensitive = field(repr=False)
    authorities: tuple[str, ...]
    expires_at: float
    """By the store's clock."""


class NodeAuthorities:
    """The authorities of one platform."""

    def __init__(self, control: Control, sealer: Sealer) -> None:
        self._control = control
        self._sealer = sealer

    async def prepare(self) -> Fresh:
        """Make an authority, to be stored with `add`. Raises what `ports.kms.Kms` raises."""
        id_ = self._control.clock.new_id("nca")
        now = self._control.clock.now()
        key = certificates.new_key()
        certificate = certificates.authority_certificate(key, id_, now)
        sealing = await self._sealer.seal(certificates.private_bytes(key), _label(id_))
        row = NodeAuthority(
            id=id_,
            certificate=certificate,
            fingerprint=certificates.fingerprint(certificate),
            sealed=sealing.value,
            created_at=now,
            expires_at=now + certificates.AUTHORITY_S,
        )
        return Fresh(row, sealing)

    async def shown(self) -> NodeAuthority:
        """The authority of the servers' certificates, by whose fingerprint a host knows them; the first is made."""
        known = await self._control.read(lambda tx: oldest(authorities(tx), tx.now()))
        if known is not None:
            return known
        fresh = await self.prepare()

        def first(unit: Unit) -> NodeAuthority:
            return oldest(authorities(unit.tx), unit.now()) or add(unit, fresh)

        return await self._control.commit(first)

    async def signer(self, authority: NodeAuthority) -> Signer:
        """An authority's hand; raises as `Sealer.unseal`."""
        return Signer.load(authority.certificate, await self._sealer.unseal(authority.sealed, _label(authority.id)))

    async def newest(self) -> NodeAuthority:
        """The authority that signs for nodes."""
        await self.shown()
        known = await self._control.read(lambda tx: newest(authorities(tx), tx.now()))
        if known is None:
            raise UnavailableError("node-authority-changed", "the node authority was exchanged just now")
        return known

    async def changed(self, identity: ServerIdentity) -> bool:
        """Whether other authorities hold than when this was made."""
        return identity.authorities != await self._control.read(believed)

    async def server_identity(self) -> ServerIdentity:
        """A key and a certificate for this process, to be made anew before it expires and whenever an authority comes or
        goes."""
        authority = await self.shown()
        signer = await self.signer(authority)
        key = certificates.new_key()
        now = await self._control.read(lambda tx: tx.now())
        leaf = signer.for_server(key.public_key(), now)
        return ServerIdentity(
            chain=leaf + authority.certificate,
            key=certificates.private_pem(key),
            authorities=await self._control.read(believed),
            expires_at=now + certificates.SERVER_S,
        )


def authorities(tx: Transaction) -> list[NodeAuthority]:
    """All, newest first."""
    return tx.node_authorities.select(order=Order("created_at", descending=True), limit=_LISTED)


def believed(tx: Transaction) -> tuple[str, ...]:
    """The certificates of those that hold."""
    return tuple(each.certificate for each in authorities(tx) if each.holds(tx.now()))


def add(unit: Unit, fresh: Fresh) -> NodeAuthority:
    """Store a new authority, which signs for nodes from now on.

    Raises:
        ConflictError: too many hold already.
        UnavailableError: see `sealing.keep`.
    """
    holding = [each for each in authorities(unit.tx) if each.holds(unit.now())]
    if len(holding) >= MAX_HOLDING:
        raise ConflictError(
            "too-many-authorities",
            f"{len(holding)} node authorities hold already",
            resolution="Retire the oldest first: swg nodes authorities retire",
        )
    keep(unit, fresh.sealing)
    unit.emit("node_authority.created", fresh.row.id, data={"fingerprint": fresh.row.fingerprint})
    return unit.tx.node_authorities.insert(fresh.row)


def keys_under(tx: Transaction, authority_id: str) -> int:
    """Keys that may be let in by nothing but a certificate of this authority: it is what their holders showed last."""
    now = Where("expires_at", Op.GT, tx.now())
    return sum(key.retired_at is None for key in tx.node_keys.select(eq("authority_id", authority_id), now))


def retire(unit: Unit, row: NodeAuthority) -> NodeAuthority:
    """Believe an authority no more, and destroy its key; once more changes nothing.

    Raises:
        ConflictError: it is the newest, or nodes that were not seen with one of another have certificates of it.
    """
    if row.retired_at is not None:
        return row
    latest = newest(authorities(unit.tx), unit.now())
    if latest is None or latest.id == row.id:
        raise ConflictError(
            "node-authority-in-use", "it signs for nodes", resolution="Make another first: swg nodes authorities rotate"
        )
    left = keys_under(unit.tx, row.id)
    if left:
        raise ConflictError(
            "node-authority-in-use",
            f"{left} nodes or edges called with certificates of it last",
            resolution="They get new ones with 30 days left, or when their agent is started anew; those of hosts that are"
            " gone for good: swg nodes keys revoke.",
        )
    unit.emit("node_authority.retired", row.id, data={"fingerprint": row.fingerprint})
    forget(unit, row.sealed.key_id)
    return unit.tx.node_authorities.update(replace(row, retired_at=unit.now()))


def _label(id_: str) -> Label:
    return Label(purpose="node-authority", subject=id_)
