"""Inviting people to an organization, and accepting.

Theory. An invitation gives its role when it is accepted, so what the inviter may give is asked twice: when he invites, and
when it is accepted. Whoever lost a role meanwhile, or is disabled, gives it to nobody. The secret alone is not enough: it
is for one address, either of a user who is signed in or of one who is made by accepting. No mail is sent from here, so the
address is as good as the way on which the inviter sent the secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from shellwego.control import tokens
from shellwego.control.authentication import new_secret, secret_hash
from shellwego.control.authorization import Access
from shellwego.control.passwords import Passwords
from shellwego.control.roles import NamedRole, choose_role, refuse_to_give, roles_of
from shellwego.control.scopes import Scope, missing
from shellwego.control.signin import source_hash
from shellwego.control.throttling import Counted, Throttle
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core import iam
from shellwego.core.attenuation import Power
from shellwego.core.credentials import Credentials
from shellwego.core.emails import normalized
from shellwego.core.errors import ConflictError, FieldError, InvalidError, NotFoundError
from shellwego.core.invitations import LIFE_S, Invitation, InvitationState
from shellwego.core.passwords import chosen
from shellwego.core.tenancy import Grant, Issuer, Organization, Principal, Token, TokenKind, User
from shellwego.core.throttle import SOURCE
from shellwego.ports.store import Transaction, eq

MAX_PENDING = 100
"""Of one organization."""
KEPT_S = 90 * 24 * 3600.0
"""How long an invitation is listed after its time."""
_SECRET = re.compile(r"inv_[0-9A-Za-z]{43}")


def invitation_secret() -> str:
    """A secret such as `inv_…`, shown once."""
    return "inv_" + new_secret(TokenKind.PERSONAL).partition("_")[2]


def invite(
    unit: Unit, principal: Principal, organization: Organization, *, email: str, role: str, secret: str
) -> Invitation:
    """Keep a role for whoever has this address; an earlier invitation of it is revoked.

    Raises:
        InvalidError: no address, or no such role.
        ForbiddenError: the role holds what the inviter does not hold himself.
        ConflictError: he is a member already, or too many are invited.
    """
    address = _address(email)
    chosen_role = choose_role(unit.tx, organization.id, role)
    refuse_to_give(principal, chosen_role.permissions, Scope(organization.id), "role")
    known = next(iter(unit.tx.users.select(eq("email", address), limit=1)), None)
    if known is not None and _is_member(unit.tx, organization.id, known.id):
        raise _member_already("email")
    pending = _open_ones(unit, organization)
    for earlier in (each for each in pending if each.email == address):
        unit.tx.invitations.update(replace(earlier, revoked_at=unit.now()))
    if sum(each.email != address for each in pending) >= MAX_PENDING:
        raise ConflictError(
            "too-many-invitations",
            f"{MAX_PENDING} invitations are open already",
            resolution="Revoke some, or wait until they are accepted or expire.",
        )
    invitation = unit.tx.invitations.insert(
        Invitation(
            id=unit.new_id("ivt"),
            organization_id=organization.id,
            email=address,
            role=chosen_role.key,
            secret_hash=secret_hash(secret),
            invited_by=principal.principal_id,
            created_at=unit.now(),
            expires_at=unit.now() + LIFE_S,
        )
    )
    _tell(unit, "invitation.created", invitation)
    return invitation


def find_invitation(tx: Transaction, organization: Organization, id_: str) -> Invitation:
    """An invitation of this organization; raises `NotFoundError`."""
    invitation = tx.invitations.get(id_)
    if invitation is None or invitation.organization_id != organization.id:
        raise missing("invitation", id_)
    return invitation


def revoke_invitation(unit: Unit, invitation: Invitation) -> Invitation:
    """Have nobody accept it any more; once more changes nothing.

    Raises:
        ConflictError: somebody did.
    """
    state = invitation.state(unit.now())
    if state is InvitationState.ACCEPTED:
        raise ConflictError(
            "invitation-accepted", "it was accepted already", resolution="Remove the member to undo what it gave."
        )
    if state is InvitationState.REVOKED:
        return invitation
    _tell(unit, "invitation.revoked", invitation)
    return unit.tx.invitations.update(replace(invitation, revoked_at=unit.now()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a new user gives. `source` as in `signin.Attempt`."""

    secret: str = field(repr=False)
    password: str = field(repr=False)
    name: str = ""
    source: str
    trace_id: str = ""


class Invitations:
    """Accepting invitations."""

    def __init__(self, control: Control, passwords: Passwords, throttle: Throttle) -> None:
        self._control = control
        self._passwords = passwords
        self._throttle = throttle

    async def accept(self, access: Access, secret: str) -> Grant:
        """Give the caller, who is signed in, what he was invited to.

        Raises:
            NotFoundError: there is no such invitation for him, or none any more.
            ConflictError: he is a member already, or its inviter may not give it any more.
        """
        await access.account()

        def work(unit: Unit) -> Grant:
            user = tokens.own_user(unit.tx, access.principal)
            invitation = _pending(unit.tx, secret, user.email)
            return _take(unit, invitation, user)

        return await self._control.commit(work, access.caller)

    async def register(self, registration: Registration, wish: tokens.TokenWish, secret: str) -> Token:
        """Make the user who was invited, with a password, and a token for him.

        Raises:
            NotFoundError: there is no such invitation, or none any more.
            ConflictError: its address has an account, or its inviter may not give it any more.
            InvalidError: the password will not do.
            ThrottledError, UnavailableError: too many try at once, or too often.
        """
        counted = (Counted(SOURCE, registration.source),)
        self._throttle.begin(counted, self._control.clock.monotonic())
        invitation = await self._control.read(lambda tx: _to_register(tx, registration.secret))
        hashed = await self._passwords.hash(_checked_password(registration.password, invitation.email))

        def work(unit: Unit) -> Token:
            found = _to_register(unit.tx, registration.secret)
            user = _new_user(unit, found, registration, hashed)
            unit.caller = Caller(actor=user.id, trace_id=registration.trace_id)
            _take(unit, found, user)
            power = Power(expires_at=unit.now() + tokens.life(wish))
            unit.audit("auth:register", user.id, detail=f"from {registration.source}")
            return tokens.insert_token(unit, user.id, wish, secret, power=power, issued_by=Issuer.LOGIN)

        token = await self._control.commit(work, Caller(trace_id=registration.trace_id))
        self._throttle.succeed(counted, own=())
        return token


def _new_user(unit: Unit, invitation: Invitation, registration: Registration, hashed: str) -> User:
    now = unit.now()
    user = unit.tx.users.insert(
        User(id=unit.new_id("usr"), email=invitation.email, name=registration.name, created_at=now)
    )
    sources = (source_hash(user.id, registration.source),)
    unit.tx.credentials.insert(Credentials(id=user.id, password_hash=hashed, password_at=now, known_sources=sources))
    return user


def _to_register(tx: Transaction, secret: str) -> Invitation:
    invitation = _pending(tx, secret, None)
    if tx.users.select(eq("email", invitation.email), limit=1):
        raise ConflictError(
            "account-exists",
            "the address that was invited has an account",
            resolution="Sign in with it, then: swg invitations accept",
        )
    return invitation


def _pending(tx: Transaction, secret: str, email: str | None) -> Invitation:
    """The open invitation with this secret, for this address if one is given. What is wrong about it is not told."""
    found = None
    if _SECRET.fullmatch(secret):
        found = next(iter(tx.invitations.select(eq("secret_hash", secret_hash(secret)), limit=1)), None)
    open_ = found is not None and found.state(tx.now()) is InvitationState.PENDING
    if found is None or not open_ or email not in (None, found.email):
        raise NotFoundError(
            "invitation-not-found",
            "there is no such invitation for you, or none any more",
            resolution="Ask for a new one; each is for one address, once, for a week.",
            errors=(FieldError("invitation", "not-found", "is unknown, used, revoked, expired, or somebody else's"),),
        )
    return found


def _take(unit: Unit, invitation: Invitation, user: User) -> Grant:
    """Give what was kept, and note that it is taken: the single use."""
    if _is_member(unit.tx, invitation.organization_id, user.id):
        raise _member_already("invitation")
    role = _still_given(unit, invitation)
    grant = unit.tx.grants.insert(
        Grant(
            id=unit.new_id("grn"),
            principal_id=user.id,
            role=role.key,
            scope_id=invitation.organization_id,
            created_at=unit.now(),
        )
    )
    unit.tx.invitations.update(replace(invitation, accepted_at=unit.now(), accepted_by=user.id))
    unit.audit("invitations:accept", invitation.id, detail=grant.id)
    _tell(unit, "invitation.accepted", invitation)
    return grant


def _still_given(unit: Unit, invitation: Invitation) -> NamedRole:
    """The role, if there is one and its inviter could give it now.

    Raises:
        ConflictError: neither.
    """
    tx = unit.tx
    inviter = tx.users.get(invitation.invited_by)
    grants = tuple(tx.grants.select(eq("principal_id", invitation.invited_by)))
    principal = Principal(
        principal_id=invitation.invited_by, token_id="", scopes=(), grants=grants, roles=roles_of(tx, grants)
    )
    chain = Scope(invitation.organization_id).chain
    try:
        role = choose_role(tx, invitation.organization_id, invitation.role)
    except InvalidError:
        role = None
    disabled = inviter is not None and inviter.disabled_at is not None
    may_invite = iam.allowed(principal, "members:write", chain)
    if role is None or disabled or not may_invite or not iam.may_give(principal, role.permissions, chain):
        raise ConflictError(
            "invitation-void",
            "who sent the invitation may not give this role any more",
            resolution="Ask for a new one of somebody who may.",
        )
    return role


def _open_ones(unit: Unit, organization: Organization) -> list[Invitation]:
    """The organization's open invitations; those that are long past are forgotten."""
    found = unit.tx.invitations.select(eq("organization_id", organization.id))
    for past in (each for each in found if each.expires_at < unit.now() - KEPT_S):
        unit.tx.invitations.delete(past.id)
    return [each for each in found if each.state(unit.now()) is InvitationState.PENDING]


def _is_member(tx: Transaction, organization_id: str, user_id: str) -> bool:
    return bool(tx.grants.select(eq("scope_id", organization_id), eq("principal_id", user_id), limit=1))


def _member_already(field_: str) -> ConflictError:
    fault = FieldError(field_, "already-exists", "has a role in the organization")
    return ConflictError(
        "member-exists", "the user has a role in the organization already", resolution="Change it.", errors=(fault,)
    )


def _address(email: str) -> str:
    try:
        return normalized(email)
    except ValueError as error:
        fault = FieldError("email", "bad-email", str(error))
        raise InvalidError("bad-email", f"email: {error}", errors=(fault,)) from None


def _checked_password(password: str, email: str) -> str:
    try:
        return chosen(password, email)
    except ValueError as error:
        fault = FieldError("password", "refused", str(error))
        raise InvalidError("refused", f"password: {error}", errors=(fault,)) from None


def _tell(unit: Unit, type_: str, invitation: Invitation) -> None:
    unit.emit(
        type_,
        invitation.id,
        organization_id=invitation.organization_id,
        data={"email": invitation.email, "role": invitation.role},
    )
