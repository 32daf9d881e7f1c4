"""The first start: the first organization with its project, the administrator, and a token for him.

There is no default password. The caller makes the secret, passes it in, and keeps it (the store may run a use case more
than once, and learns the hash only). A lost token is replaced by whoever holds the data directory, with
`issue_admin_token`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.authentication import secret_hash
from shellwego.control.networks import establish, next_number
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.plans import UNLIMITED
from shellwego.core.tenancy import Grant, Issuer, Organization, Project, Token, TokenKind, User
from shellwego.ports.store import eq

ADMIN_EMAIL = "admin@localhost"
ORGANIZATION = "default"
PROJECT = "default"
TOKEN_LIFE_S = 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStart:
    organization: Organization
    project: Project
    user: User


def bootstrap(unit: Unit, secret: str) -> FirstStart | None:
    """Make what the platform needs to be used; None where that was done before, but for what an older version did not."""
    establish(unit)
    if unit.tx.organizations.count():
        return None
    now = unit.now()
    organization = unit.tx.organizations.insert(
        Organization(id=unit.new_id("org"), name=ORGANIZATION, plan=UNLIMITED, created_at=now)
    )
    project = unit.tx.projects.insert(
        Project(
            id=unit.new_id("prj"),
            organization_id=organization.id,
            name=PROJECT,
            network_id=unit.new_id("net"),
            network_number=next_number(unit),
            first=True,
            created_at=now,
        )
    )
    user = unit.tx.users.insert(User(id=unit.new_id("usr"), email=ADMIN_EMAIL, created_at=now))
    unit.tx.grants.insert(Grant(id=unit.new_id("grn"), principal_id=user.id, role="owner", scope_id="", created_at=now))
    _insert_token(unit, user.id, secret)
    unit.emit("platform.initialized", organization.id, organization_id=organization.id)
    unit.audit("platform:initialize", organization.id)
    return FirstStart(organization=organization, project=project, user=user)


def issue_admin_token(unit: Unit, secret: str) -> Token:
    """A further token for the administrator.

    Raises:
        ConflictError: there is no administrator; the platform was never started.
    """
    users = unit.tx.users.select(eq("email", ADMIN_EMAIL), limit=1)
    if not users:
        raise ConflictError("not-initialized", "this platform has no administrator yet", resolution="Start it once.")
    token = _insert_token(unit, users[0].id, secret)
    unit.audit("tokens:write", token.id, detail="issued on the host")
    return token


def adopt_admin_token(unit: Unit, secret: str) -> bool:
    """Let in the token that the host holds, at each start; False: it was revoked or has expired, and stays so, since
    somebody may have had his reasons. Raises as `issue_admin_token`."""
    token = next(iter(unit.tx.tokens.select(eq("secret_hash", secret_hash(secret)), limit=1)), None)
    if token is None:
        token = issue_admin_token(unit, secret)
    elif token.issued_by is not Issuer.HOST:  # made by a version that did not tell them apart
        token = unit.tx.tokens.update(replace(token, issued_by=Issuer.HOST))
    return token.holds(unit.now())


def _insert_token(unit: Unit, principal_id: str, secret: str) -> Token:
    now = unit.now()
    return unit.tx.tokens.insert(
        Token(
            id=unit.new_id("tok"),
            kind=TokenKind.PERSONAL,
            principal_id=principal_id,
            name="first start",
            secret_hash=secret_hash(secret),
            scopes=(),
            created_at=now,
            expires_at=now + TOKEN_LIFE_S,
            issued_by=Issuer.HOST,
        )
    )
