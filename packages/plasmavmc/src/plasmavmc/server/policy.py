"""The stand-alone server's policy: who is known, by what, and what they may do where. Pure.

    [[principals]]
    name = "ci"
    token_sha256 = "…"                                   # of the token's bytes, in hexadecimal; or, or besides:
    unix_uid = 1000                                      # by the socket made for this user
    certificate_subject = "CN=ci,O=Acme"                 # of a client certificate, as RFC 4514 writes it
    home = { org = "acme", project = "web" }             # what an empty scope means; else the only project granted
    grants = [{ role = "operator", org = "acme", project = "web" }]   # no project: all of the org; no org: everything

Theory. What is not granted is denied. A grant holds for its scope and all below it; roles are sets of actions, each
containing the one before: `viewer` reads (logs too), `operator` does everything with VMs and images, `admin` also with
nodes. Nodes, and images for all, lie in the System scope, so only a grant without org reaches them.

A file that says anything we do not know is refused whole: a word misspelt must not silently grant less, or more.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from plasmavmc.errors import HostError
from plasmavmc.rpc.access import Action, Decision, Principal, Reach, Request
from plasmavmc.types import SYSTEM_SCOPE, Scope

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_SCOPE_PART = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROOT_UID = 0

VIEWER = frozenset({Action.VM_READ, Action.VM_LOGS, Action.IMAGE_READ, Action.NODE_READ})
OPERATOR = VIEWER | frozenset(action for action in Action if action.value.startswith(("vm:", "image:")))
ROLES: Mapping[str, frozenset[Action]] = {"viewer": VIEWER, "operator": OPERATOR, "admin": frozenset(Action)}


@dataclass(frozen=True, slots=True)
class Grant:
    """A role on a scope: the System's without org, an organization's without project."""

    role: str
    org: str = ""
    project: str = ""

    def covers(self, scope: Scope) -> bool:
        """Whether a scope is this grant's or below it."""
        return (not self.org or scope.org == self.org) and (not self.project or scope.project == self.project)

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.org, self.project) if part) or "everything"


@dataclass(frozen=True, slots=True)
class Known:
    """A principal of the policy, and how it is known."""

    name: str
    grants: tuple[Grant, ...] = ()
    token_sha256: str = field(default="", repr=False)
    unix_uid: int | None = None
    certificate_subject: str = ""
    home: Scope | None = None

    @property
    def principal(self) -> Principal:
        return Principal(self.name, self.home or self._only_project())

    def _only_project(self) -> Scope | None:
        places = {(grant.org, grant.project) for grant in self.grants}
        if len(places) != 1:
            return None
        org, project = places.pop()
        return Scope(org, project) if project else None


class Policy:
    """All principals. Decides from them alone."""

    def __init__(self, principals: tuple[Known, ...]) -> None:
        self._by_name = {known.name: known for known in principals}
        self._by_token = {known.token_sha256: known for known in principals if known.token_sha256}
        self._by_uid = {known.unix_uid: known for known in principals if known.unix_uid is not None}
        self._by_subject = {known.certificate_subject: known for known in principals if known.certificate_subject}

    @property
    def uids(self) -> frozenset[int]:
        """Users who are known by a socket of their own."""
        return frozenset(self._by_uid)

    # Who is it?

    def of_token(self, token: str) -> Principal | None:
        """Looked up by its hash, so the time that it takes says nothing about the tokens there are."""
        return _principal(self._by_token.get(hashlib.sha256(token.encode()).hexdigest()))

    def of_uid(self, uid: int) -> Principal | None:
        return _principal(self._by_uid.get(uid))

    def of_subject(self, subject: str) -> Principal | None:
        return _principal(self._by_subject.get(subject))

    # May it?

    def decide(self, principal: Principal, request: Request) -> Decision:
        """Whether a grant of the principal allows it, and which."""
        for grant in self._grants(principal):
            if request.action in ROLES[grant.role] and grant.covers(request.scope):
                return Decision(True, f"{principal.id} is {grant.role} of {grant.place}")
        where = f"{request.scope.org}/{request.scope.project}"
        return Decision(False, f"no grant of {principal.id} allows {request.action} in {where}")

    def reach(self, principal: Principal, action: Action) -> Reach:
        """Where the principal may do this."""
        grants = [grant for grant in self._grants(principal) if action in ROLES[grant.role]]
        return Reach(
            everything=any(not grant.org for grant in grants),
            orgs=frozenset(grant.org for grant in grants if grant.org and not grant.project),
            projects=frozenset(Scope(grant.org, grant.project) for grant in grants if grant.project),
        )

    def _grants(self, principal: Principal) -> tuple[Grant, ...]:
        known = self._by_name.get(principal.id)
        return () if known is None else known.grants


def _principal(known: Known | None) -> Principal | None:
    return None if known is None else known.principal


ROOT_ONLY = Policy((Known("root", (Grant("admin"),), unix_uid=_ROOT_UID, home=Scope("default", "default")),))
"""Where there is no policy file: whoever is root on this host may do everything, by the unix socket; nobody else may."""


class _Document(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    principals: list[_Entry] = []


class _Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    grants: list[_Grant]
    token_sha256: str = ""
    unix_uid: int | None = None
    certificate_subject: str = ""
    home: _Home | None = None


class _Grant(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    role: str
    org: str = ""
    project: str = ""


class _Home(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    org: str
    project: str


def parse_policy(text: str) -> Policy:
    """A policy file.

    Raises:
        HostError: `bad-policy`, with what is wrong and where.
    """
    try:
        document = msgspec.convert(tomllib.loads(text), _Document)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise _refused(str(error)) from error
    principals = tuple(_known(entry) for entry in document.principals)
    for what, values in (
        ("name", [known.name for known in principals]),
        ("token_sha256", [known.token_sha256 for known in principals if known.token_sha256]),
        ("unix_uid", [known.unix_uid for known in principals if known.unix_uid is not None]),
        ("certificate_subject", [known.certificate_subject for known in principals if known.certificate_subject]),
    ):
        if len(set(values)) != len(values):
            raise _refused(f"two principals have the same {what}")
    return Policy(principals)


def _known(entry: _Entry) -> Known:
    where = f"principal {entry.name[:64]!r}"
    if not _NAME.fullmatch(entry.name):
        raise _refused(f"{where}: a name has 1 to 64 characters of A-Z, a-z, 0-9, _ . @ and -")
    if entry.token_sha256 and not _DIGEST.fullmatch(entry.token_sha256):
        raise _refused(f"{where}: token_sha256 is not 64 hexadecimal digits in lower case")
    if entry.unix_uid is not None and entry.unix_uid < 0:
        raise _refused(f"{where}: unix_uid is not a user id")
    if not (entry.token_sha256 or entry.unix_uid is not None or entry.certificate_subject):
        raise _refused(f"{where}: give token_sha256, unix_uid or certificate_subject")
    grants = tuple(_grant(grant, where) for grant in entry.grants)
    home = None if entry.home is None else Scope(entry.home.org, entry.home.project)
    if home is not None and not any(grant.covers(home) for grant in grants):
        raise _refused(f"{where}: its home {home.org}/{home.project} is in none of its grants")
    return Known(entry.name, grants, entry.token_sha256, entry.unix_uid, entry.certificate_subject, home)


def _grant(grant: _Grant, where: str) -> Grant:
    if grant.role not in ROLES:
        raise _refused(f"{where}: there is no role {grant.role[:40]!r}; choose one of {', '.join(ROLES)}")
    if grant.project and not grant.org:
        raise _refused(f"{where}: a grant on a project names its org")
    if any(part and not _SCOPE_PART.fullmatch(part) for part in (grant.org, grant.project)):
        raise _refused(f"{where}: org and project have 1 to 64 characters of a-z, 0-9, - and _")
    if grant.org == SYSTEM_SCOPE.org:
        raise _refused(f"{where}: the System scope is granted by leaving org out")
    return Grant(grant.role, grant.org, grant.project)


def _refused(why: str) -> HostError:
    return HostError("bad-policy", f"the policy cannot be used: {why}")
