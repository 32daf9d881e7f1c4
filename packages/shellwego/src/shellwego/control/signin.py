"""Signing in: an email and a password, and a one-time code where the account has one, for a token.

Theory. Who signs in learns one of two things: his token, or that something of what he gave is wrong. An unknown address, a
wrong password, a wrong or missing code and a disabled account are one answer, and take one time: each attempt costs one
hash, of a decoy where there is none to compare with, and one transaction. The transaction judges all of it anew, so two
sign-ins with one code, or one with a password that is being changed, cannot both win. What a guesser is slowed down by is
in `core.throttle`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from shellwego.control import totp
from shellwego.control.addresses import email_of
from shellwego.control.passwords import Passwords
from shellwego.control.sealing import Sealer
from shellwego.control.throttling import Counted, Throttle
from shellwego.control.tokens import TokenWish, forget_ended, insert_token, life
from shellwego.control.unit import Caller, Control, Unit
from shellwego.core.attenuation import Power
from shellwego.core.credentials import Credentials
from shellwego.core.errors import UnauthenticatedError
from shellwego.core.passwords import prepared
from shellwego.core.tenancy import Issuer, Token, User
from shellwego.core.throttle import ACCOUNT, KNOWN_SOURCE, SOURCE
from shellwego.ports.store import Transaction, eq

ANONYMOUS = "anonymous"
"""The actor of what nobody known did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What somebody gave to sign in. `source` is `throttling.source_of` his address."""

    email: str
    password: str = field(repr=False)
    code: str = field(default="", repr=False)
    source: str
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """A user with his credentials; neither, where there is no such user."""

    user: User | None = None
    credentials: Credentials | None = None

    @property
    def has_totp(self) -> bool:
        return self.credentials is not None and self.credentials.totp_on

    @property
    def password_hash(self) -> str:
        return self.credentials.password_hash if self.credentials else ""


class SignIn:
    """Signs users in."""

    def __init__(self, control: Control, passwords: Passwords, sealer: Sealer, throttle: Throttle) -> None:
        self._control = control
        self._passwords = passwords
        self._sealer = sealer
        self._throttle = throttle

    async def token(self, attempt: Attempt, wish: TokenWish, secret: str) -> Token:
        """Store a token for the user who signs in.

        Raises:
            UnauthenticatedError: something of it is wrong; what is not told.
            ThrottledError: too many attempts failed.
            InvalidError: the wished life is too long.
            UnavailableError: too many sign in at this moment.
        """
        life(wish)
        email, password = email_of(attempt.email), _password(attempt.password)
        account = await self._control.read(lambda tx: account_of(tx, email))
        counted = _counted(email, account, attempt.source)
        clock = self._control.clock
        self._throttle.begin(counted, clock.monotonic())
        right = await self._passwords.matches(password or "", account.password_hash) and password is not None
        opened = await totp.opened(self._sealer, account.credentials)

        def work(unit: Unit) -> Token | None:
            fresh = account_of(unit.tx, email)
            credentials = _admitted(unit, fresh, account, attempt.code, opened) if right else None
            if credentials is None or fresh.user is None:
                wait = self._throttle.wait(counted, clock.monotonic())
                _refuse(unit, fresh, attempt.source, wait)
                return None
            return _admit(unit, fresh.user, credentials, source=attempt.source, wish=wish, secret=secret)

        actor = account.user.id if account.user else ANONYMOUS
        token = await self._control.commit(work, Caller(actor=actor, trace_id=attempt.trace_id))
        if token is None:
            raise refused()
        self._throttle.succeed(counted, own=counted[1:])
        await self._renew(token.principal_id, account.password_hash, password or "")
        return token

    async def _renew(self, user_id: str, hashed: str, password: str) -> None:
        """Hash anew what was hashed with weaker parameters, now that the password is known."""
        if not self._passwords.is_outdated(hashed):
            return
        stronger = await self._passwords.hash(password)

        def work(unit: Unit) -> None:
            credentials = unit.tx.credentials.get(user_id)
            if credentials is not None and credentials.password_hash == hashed:
                unit.tx.credentials.update(replace(credentials, password_hash=stronger))

        await self._control.commit(work)


def account_of(tx: Transaction, email: str) -> Account:
    """The account of a normalized address."""
    user = next(iter(tx.users.select(eq("email", email), limit=1)), None)
    credentials = tx.credentials.get(user.id if user else "")
    return Account(user, credentials)


def source_hash(user_id: str, source: str) -> str:
    """What is stored of a source that a user signed in from."""
    return hashlib.sha256(f"{user_id}\n{source}".encode()).hexdigest()[:32]


def refused() -> UnauthenticatedError:
    """The one answer to every failed attempt."""
    return UnauthenticatedError(
        "sign-in-refused",
        "the email, the password or the code is wrong",
        resolution="Where the account has one-time codes, give a fresh one with the password.",
    )


def _password(text: str) -> str | None:
    """Prepared; None: it can be nobody's."""
    try:
        return prepared(text)
    except ValueError:
        return None


def _counted(email: str, account: Account, source: str) -> tuple[Counted, Counted]:
    """The source, and the account as strangers or this known source try it."""
    known = account.credentials.known_sources if account.credentials else ()
    if account.user and source_hash(account.user.id, source) in known:
        return Counted(SOURCE, source), Counted(KNOWN_SOURCE, f"{email} {source}")
    return Counted(SOURCE, source), Counted(ACCOUNT, email)


def _admitted(unit: Unit, fresh: Account, seen: Account, code: str, opened: totp.Opened | None) -> Credentials | None:
    """The credentials after the code was taken; None where the account may not be entered so."""
    user, credentials = fresh.user, fresh.credentials
    if user is None or credentials is None or user.disabled_at is not None:
        return None
    if fresh.password_hash != seen.password_hash:
        return None
    return totp.take(credentials, code, unit.now(), opened) if credentials.totp_on else credentials


def _admit(unit: Unit, user: User, credentials: Credentials, *, source: str, wish: TokenWish, secret: str) -> Token:
    sources = credentials.with_source(source_hash(user.id, source))
    unit.tx.credentials.update(replace(credentials, known_sources=sources))
    power = Power(wish.scopes, wish.resources, unit.now() + life(wish))
    forget_ended(unit, user.id)
    token = insert_token(unit, user.id, wish, secret, power=power, issued_by=Issuer.LOGIN)
    unit.emit("user.signed_in", user.id, data={"source": source, "token": token.id, "kind": token.kind.value})
    unit.audit("auth:sign-in", user.id, detail=f"from {source}: {token.id}")
    return token


def _refuse(unit: Unit, account: Account, source: str, wait_s: float) -> None:
    """Who tried what is told to the operator; an unknown address is not, since it may be a password in the wrong place."""
    waits = f"; waits {wait_s:.0f} s" if wait_s else ""
    resource = account.user.id if account.user else ""
    unit.audit("auth:sign-in", resource, allowed=False, detail=f"from {source}{waits}")
