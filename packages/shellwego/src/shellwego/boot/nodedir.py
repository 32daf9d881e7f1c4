"""What a joined host keeps of itself, in a directory that is root's: its key, its certificate, whom it believes, who it is.

The key is made first and stays, so that a join whose answer was lost can be asked for again; `member.json` is written last,
and says that the host has joined. Each file is replaced as a whole.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from shellwego.boot import joincall
from shellwego.boot.joincall import Address
from shellwego.control.certificates import certificate_request, new_key, private_pem
from shellwego.core.errors import ConflictError, InvalidError, ShellWeGoError
from shellwego.core.joins import JoinRequest, MemberKind, Membership
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.files import replace_file
from shellwego.wire.tls import Credentials

DEFAULTS = {MemberKind.NODE: Path("/etc/shellwego/node"), MemberKind.EDGE: Path("/etc/shellwego/edge")}
"""One host may be both."""
KEY, CERTIFICATE, AUTHORITIES, MEMBER = "key.pem", "certificate.pem", "authorities.pem", "member.json"
_MOST_BYTES = 64 * 1024
_FLAG = {MemberKind.NODE: "", MemberKind.EDGE: " --edge"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Who this host is."""

    id: str
    kind: MemberKind
    name: str
    region: str
    zone: str
    subnet: str
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """A host that has joined."""

    member: Member
    credentials: Credentials = field(repr=False)


def has_joined(directory: Path) -> bool:
    """Whether the directory is that of a host that has joined."""
    return (directory / MEMBER).exists()


def open_key(directory: Path) -> EllipticCurvePrivateKey:
    """The host's key, made where there is none yet.

    Raises:
        ConflictError: the directory cannot be written, others can read it, or it holds something else.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / KEY
        if not path.exists():
            replace_file(path, private_pem(new_key()).reveal())
        key = load_pem_private_key(_read(path), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(directory, error) from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _unusable(directory, ValueError("the key is of another kind"))
    return key


def become(directory: Path, address: Address, authority: str, secret: str, kind: MemberKind) -> Member:
    """Join by the secret of a token, over what `joincall` found out of the server; raises as `joincall.join`, `open_key`."""
    key = open_key(directory)
    request = JoinRequest(
        secret=secret,
        kind=kind,
        request=certificate_request(key),
        hostname=socket.gethostname(),
        version=version("shellwego"),
    )
    joined = joincall.join(address, authority, request)
    return store(directory, joined, tuple(dict.fromkeys((address.url, *joined.granted.servers))))


def store(directory: Path, joined: Membership, servers: tuple[str, ...]) -> Member:
    """Keep what a join brought; raises as `open_key`."""
    member = Member(
        id=joined.id,
        kind=joined.kind,
        name=joined.name,
        region=joined.region,
        zone=joined.zone,
        subnet=joined.subnet,
        servers=servers,
    )
    try:
        replace_file(directory / CERTIFICATE, joined.granted.certificate.encode())
        replace_file(directory / AUTHORITIES, "".join(joined.granted.authorities).encode())
        replace_file(directory / MEMBER, msgspec.json.encode(member) + b"\n")
    except OSError as error:
        raise _unusable(directory, error) from None
    return member


def load(directory: Path, kind: MemberKind) -> Joined:
    """What `store` kept, of a host that is of this kind.

    Raises:
        InvalidError: it has not joined, or as something else.
        ConflictError: as `open_key`.
    """
    if not has_joined(directory):
        raise InvalidError(
            "not-joined",
            f"this host has not joined a platform as {kind}: there is no {directory / MEMBER}",
            resolution=f"On a platform's machine: swg nodes join-token{_FLAG[kind]}; it prints what to run here."
            " Or give --dir.",
        )
    try:
        member = msgspec.json.decode(_read(directory / MEMBER), type=Member)
        credentials = Credentials(
            certificate=_read(directory / CERTIFICATE),
            key=Sensitive(_read(directory / KEY)),
            authorities=_read(directory / AUTHORITIES),
        )
    except (OSError, ValueError) as error:
        raise _unusable(directory, error) from None
    if member.kind is not kind:
        raise InvalidError(
            "wrong-kind",
            f"{directory} is of a host that joined as {member.kind}, not as {kind}",
            resolution=f"Run: swg {'edge' if member.kind is MemberKind.EDGE else 'agent'} --dir {directory}",
        )
    return Joined(member, credentials)


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if os.fstat(descriptor).st_mode & 0o077:
            raise ValueError(f"{path} can be read by others than its owner; see who did: chmod 600")
        return stream.read(_MOST_BYTES)


def _unusable(directory: Path, error: Exception) -> ShellWeGoError:
    return ConflictError(
        "node-directory",
        f"the host's own directory {directory} cannot be used: {error}",
        resolution="Mend it, or give another with --dir.",
    )
