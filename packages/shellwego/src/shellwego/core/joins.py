"""How a host that nobody knows becomes a node or an edge, and by what it is known from then on.

Theory. An address says nothing about who speaks from it, and a name is only claimed. What identifies a node is a key that it
made itself and that never leaves it. A join token, given by an operator, vouches for one key once; from then on the key
speaks for itself, by a certificate of the platform's own authority. The certificate alone is not enough: the key must also
stand here and not be retired, so that a door can be closed at once and not when a certificate ends.

Two authorities may hold at once, which is how one is exchanged: nodes get certificates of the newest at their next renewal,
together with all that hold; servers show one of the oldest, which everybody believes. The old one goes when no key needs it:
when each has been seen with a certificate of another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shellwego.core.envelope import SealedValue
from shellwego.core.errors import FieldError, InvalidError

LIFE_S = 3600.0
"""Of a join token, at most, and where nothing else is said."""
CERTIFICATE_S = 90 * 24 * 3600.0
"""Of a node's certificate."""
RENEW_S = CERTIFICATE_S / 3
"""With so much of it left it is renewed."""
_HASH = r"[0-9a-f]{64}"
_SECRET = r"join_[0-9A-Za-z]{43}"  # noqa: S105 - its form
_TOKEN = re.compile(f"({_SECRET})({_HASH})")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_ID = re.compile(r"(node|edg)_[0-9a-z]{26}")
_RESERVED = frozenset({"join-tokens", "keys", "authorities"})
"""What the API has under its path of nodes."""


class MemberKind(StrEnum):
    """What a host joins as."""

    NODE = "node"
    EDGE = "edge"


class JoinTokenState(StrEnum):
    OPEN = "open"
    USED = "used"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """An operator's word for one host that is to come. Only the hash of its secret is kept."""

    id: str
    kind: MemberKind = MemberKind.NODE
    name: str = ""
    """What the node will be called; empty: as its host."""
    region: str = "local"
    zone: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict)
    secret_hash: str = field(repr=False)
    created_by: str
    created_at: float
    expires_at: float
    used_at: float | None = None
    used_by: str = ""
    """Id of the node or edge that came of it."""
    used_key: str = ""
    """Fingerprint of the key that it vouched for; that one may ask again, since an answer can be lost."""
    revoked_at: float | None = None
    version: int = 1

    def state(self, now: float) -> JoinTokenState:
        """Where it stands at this time."""
        if self.used_at is not None:
            return JoinTokenState.USED
        if self.revoked_at is not None:
            return JoinTokenState.REVOKED
        return JoinTokenState.OPEN if now < self.expires_at else JoinTokenState.EXPIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certified:
    """What holds from its making to the end of its last certificate, unless it is retired before."""

    id: str
    created_at: float
    expires_at: float
    retired_at: float | None = None
    version: int = 1

    def holds(self, now: float) -> bool:
        """Whether who shows it is believed."""
        return self.retired_at is None and now < self.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKey(_Certified):
    """A public key that stands for a node or an edge; who has it is let in while it holds."""

    fingerprint: str
    """SHA-256 of its SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), in hex. One that was retired never comes again."""
    member_id: str
    kind: MemberKind
    token_id: str
    """The join token that vouched for it."""
    authority_id: str
    """Who signed the certificate that its holder called with last; its first one, until he called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAuthority(_Certified):
    """A certificate authority of the platform's own, for its nodes, edges and servers and nothing else; what it signed is
    believed while it holds."""

    certificate: str
    """PEM."""
    fingerprint: str
    """SHA-256 of the certificate, in hex."""
    sealed: SealedValue = field(repr=False)
    """Its private key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """What a host sends to become a node or an edge."""

    secret: str = field(repr=False)
    kind: MemberKind
    """What it was told to be; the token must say the same."""
    request: bytes
    """A certificate request (PKCS #10, DER) that names nothing: all names are the server's to give."""
    hostname: str
    version: str
    """Of its software."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAnswer:
    """A certificate, and whom to believe from now on."""

    certificate: str
    """PEM."""
    authorities: tuple[str, ...]
    """PEM, each."""
    servers: tuple[str, ...] = ()
    """URLs under which servers are reached, beside the one that was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The answer to a join."""

    id: str
    kind: MemberKind
    name: str
    region: str
    zone: str
    subnet: str
    """Of its VMs, for a node."""
    granted: CertificateAnswer


def split_token(token: str) -> tuple[str, str] | None:
    """The secret of a join token and the fingerprint of the authority that it names; None where it is none."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else None


def is_secret(text: str) -> bool:
    """Whether it has the form of a join token's secret."""
    return re.fullmatch(_SECRET, text) is not None


def is_fingerprint(text: str) -> bool:
    """Whether it has the form of a key's or certificate's fingerprint."""
    return re.fullmatch(_HASH, text) is not None


def check_name(name: str, field_: str = "name") -> None:
    """Refuse what no node or edge may be called; an id is no name.

    Raises:
        InvalidError: naming the field.
    """
    if not _NAME.fullmatch(name) or _ID.fullmatch(name) or name in _RESERVED:
        words = "has 1 to 253 letters, digits, dots, dashes and underscores"
        raise InvalidError("bad-node-name", f"{field_}: {words}", errors=(FieldError(field_, "bad-node-name", words),))


def newest(authorities: Sequence[NodeAuthority], now: float) -> NodeAuthority | None:
    """The authority that signs for nodes; None where none holds."""
    return max((each for each in authorities if each.holds(now)), key=_age, default=None)


def oldest(authorities: Sequence[NodeAuthority], now: float) -> NodeAuthority | None:
    """The authority that everybody believes already, so the one to show; None where none holds."""
    return min((each for each in authorities if each.holds(now)), key=_age, default=None)


def _age(authority: NodeAuthority) -> tuple[float, str]:
    return authority.created_at, authority.id
