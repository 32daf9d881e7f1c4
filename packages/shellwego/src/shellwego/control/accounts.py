"""The caller's own account: name, password, one-time codes.

Theory. A token alone does not change how its user proves who he is: whoever took it would keep the account. So each change
asks for the password again, and to turn codes off a code as well; with a new password alone nobody signs in where there are
codes. Guesses are slowed down as at the sign-in. A token that was issued on the host needs neither: whoever holds the
platform's machine holds everything on it, and this is how he sets the administrator's first password, or one in place of a
lost one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shellwego.control import tokens, totp
from shellwego.control.authorization import Access
from shellwego.control.passwords import Passwords
from shellwego.control.sealing import Sealer, forget, keep
from shellwego.control.signin import Account
from shellwego.control.throttling import Counted, Throttle
from shellwego.control.unit import Control, Unit
from shellwego.core import totp as codes
from shellwego.core.credentials import Credentials
from shellwego.core.errors import ConflictError, FieldError, InvalidError
from shellwego.core.passwords import chosen, prepared
from shellwego.core.sensitive import Sensitive
from shellwego.core.tenancy import Issuer, Principal, Token, User
from shellwego.core.throttle import ACCOUNT, SOURCE
from shellwego.ports.store import Transaction, eq

T = TypeVar("T")
_CHANGED = "credentials-changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the caller gives again to change his account. `source` as in `signin.Attempt`."""

    password: str | None = field(default=None, repr=False)
    code: str = field(default="", repr=False)
    source: str = "local"


@dataclass(frozen=True, slots=True)
class _Proven:
    """The account that a proof was judged on; the transaction must find it unchanged."""

    account: Account
    on_host: bool


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A secret to be typed or scanned into an authenticator app, and shown once."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)


class Accounts:
    """Changes to the caller's account. Each asks its `Access` first."""

    def __init__(self, control: Control, passwords: Passwords, sealer: Sealer, throttle: Throttle) -> None:
        self._control = control
        self._passwords = passwords
        self._sealer = sealer
        self._throttle = throttle

    async def set_password(self, access: Access, new: str, proof: Proof) -> int:
        """Change the password, and end all other sign-ins of the user; returns how many tokens that were.

        Raises:
            InvalidError: the old password is wrong, or the new one will not do; names the field.
            ThrottledError, UnavailableError: as at the sign-in.
        """
        await access.account()
        proven = await self._prove(access, proof, field_="old_password", codes_too=False)
        user = _user(proven.account)
        ready = _checked("new_password", lambda: chosen(new, user.email))
        hashed = await self._passwords.hash(ready)

        def work(unit: Unit) -> int:
            before = _unchanged(unit.tx, proven)
            now = unit.now()
            _put(unit.tx, replace(before, password_hash=hashed, password_at=now))
            ended = _end_sign_ins(unit, access.principal)
            unit.emit("user.password_changed", user.id)
            unit.audit(access.permission, user.id, detail="password changed")
            return ended

        return await self._control.commit(work, access.caller)

    async def enrol_totp(self, access: Access, proof: Proof, issuer: str) -> Enrolment:
        """Make a secret for one-time codes. They are asked for once `confirm_totp` has seen one.

        Raises:
            ConflictError: there are codes already.
            InvalidError, ThrottledError, UnavailableError: as `set_password`.
        """
        await access.account()
        proven = await self._prove(access, proof, field_="password", codes_too=False)
        user = _user(proven.account)
        secret = codes.secret_text(secrets.token_bytes(codes.SECRET_BYTES))
        sealing = await self._sealer.seal(Sensitive.of(secret), totp.label(user.id))

        def work(unit: Unit) -> None:
            before = _unchanged(unit.tx, proven)
            if before.totp_on:
                raise ConflictError("totp-on", "one-time codes are on already", resolution="Disable them first.")
            _drop_totp(unit, before)
            _put(unit.tx, replace(before, totp_sealed=keep(unit, sealing)))
            unit.audit(access.permission, user.id, detail="one-time codes enrolled")

        await self._control.commit(work, access.caller)
        from pyotp import TOTP  # noqa: PLC0415 - loads what few starts need

        return Enrolment(secret, TOTP(secret).provisioning_uri(name=user.email, issuer_name=issuer))

    async def confirm_totp(self, access: Access, code: str, source: str) -> tuple[str, ...]:
        """Turn one-time codes on, given the first; returns the recovery codes, which are shown once.

        Raises:
            ConflictError: nothing was enrolled, or they are on already.
            InvalidError: the code is wrong.
        """
        await access.account()
        account = await self._control.read(lambda tx: _own_account(tx, access.principal))
        opened = await totp.opened(self._sealer, account.credentials)
        user = _user(account)
        counted = _counted(user, source)
        self._throttle.begin(counted, self._control.clock.monotonic())
        recovery = tuple(
            codes.recovery_code(secrets.token_bytes(codes.RECOVERY_BYTES)) for _ in range(codes.RECOVERY_CODES)
        )

        def work(unit: Unit) -> bool:
            before = _own_account(unit.tx, access.principal).credentials
            if before is None or before.totp_sealed is None or before.totp_on:
                raise ConflictError("totp-not-enrolled", "there are no one-time codes to confirm")
            taken = totp.take(before, code, unit.now(), opened)
            if taken is None:
                unit.audit(access.permission, user.id, allowed=False, detail="wrong code")
                return False
            hashes = tuple(codes.recovery_hash(each) for each in recovery)
            unit.tx.credentials.update(replace(taken, totp_on=True, recovery_hashes=hashes))
            unit.emit("user.totp_enabled", user.id)
            unit.audit(access.permission, user.id, detail="one-time codes on")
            return True

        if not await self._control.commit(work, access.caller):
            raise _wrong("code")
        self._throttle.succeed(counted, own=counted[1:])
        return recovery

    async def disable_totp(self, access: Access, proof: Proof) -> None:
        """Ask for one-time codes no more; nothing where there are none. Raises as `set_password`."""
        await access.account()
        proven = await self._prove(access, proof, field_="password", codes_too=True)
        user = _user(proven.account)

        def work(unit: Unit) -> None:
            before = _unchanged(unit.tx, proven)
            if before.totp_sealed is None:
                return
            _drop_totp(unit, before)
            _put(unit.tx, replace(before, totp_sealed=None, totp_on=False, totp_step=0, recovery_hashes=()))
            unit.emit("user.totp_disabled", user.id)
            unit.audit(access.permission, user.id, detail="one-time codes off")

        await self._control.commit(work, access.caller)

    async def _prove(self, access: Access, proof: Proof, *, field_: str, codes_too: bool) -> _Proven:
        """That the caller is who the token says; a failure is stored as such before it is told."""
        principal = access.principal
        account, asking = await self._control.read(
            lambda tx: (_own_account(tx, principal), tx.tokens.get(principal.token_id))
        )
        proven = _Proven(account, on_host=_is_of_host(asking))
        if proven.on_host:
            return proven
        if proof.password is None:
            raise _missing(field_)
        password = proof.password
        ready = _checked(field_, lambda: prepared(password))
        opened = await totp.opened(self._sealer, account.credentials)
        user = _user(account)
        counted = _counted(user, proof.source)
        self._throttle.begin(counted, self._control.clock.monotonic())
        right = await self._passwords.matches(ready, account.password_hash)

        def work(unit: Unit) -> bool:
            before = _unchanged(unit.tx, proven)
            after: Credentials | None = before if right else None
            if right and codes_too and before.totp_on:
                after = totp.take(before, proof.code, unit.now(), opened)
            if after is None:
                unit.audit(access.permission, user.id, allowed=False, detail="wrong password or code")
            elif after is not before:
                unit.tx.credentials.update(after)
            return after is not None

        if not await self._control.commit(work, access.caller):
            raise _wrong(field_, *(["code"] if codes_too and account.has_totp else []))
        self._throttle.succeed(counted, own=counted[1:])
        return proven


def rename(unit: Unit, principal: Principal, name: str) -> User:
    """Change the caller's name."""
    user = tokens.own_user(unit.tx, principal)
    unit.audit("user:write", user.id, detail="renamed")
    return unit.tx.users.update(replace(user, name=name))


def _own_account(tx: Transaction, principal: Principal) -> Account:
    user = tokens.own_user(tx, principal)
    return Account(user, tx.credentials.get(user.id))


def _user(account: Account) -> User:
    assert account.user is not None  # noqa: S101 - `_own_account` refused otherwise
    return account.user


def _unchanged(tx: Transaction, proven: _Proven) -> Credentials:
    """The credentials as they are now, if the password is still the one that was proven.

    Raises:
        ConflictError: it was changed in between.
    """
    user = _user(proven.account)
    credentials = tx.credentials.get(user.id) or Credentials(id=user.id)
    if credentials.password_hash != proven.account.password_hash:
        raise ConflictError(_CHANGED, "the password was changed in between", resolution="Do it again.")
    return credentials


def _put(tx: Transaction, credentials: Credentials) -> None:
    if tx.credentials.get(credentials.id) is None:
        tx.credentials.insert(credentials)
    else:
        tx.credentials.update(credentials)


def _is_of_host(token: Token | None) -> bool:
    return token is not None and token.issued_by is Issuer.HOST


def _end_sign_ins(unit: Unit, principal: Principal) -> int:
    """Revoke what came of the user's other sign-ins; not the asking token, nor what it came of."""
    spared = tokens.lineage(unit.tx, principal.token_id)
    ended = [
        token
        for token in unit.tx.tokens.select(eq("principal_id", principal.principal_id))
        if token.issued_by is Issuer.LOGIN and token.id not in spared and token.holds(unit.now())
    ]
    for token in ended:
        tokens.revoke(unit, token, detail="revoked with the old password")
    return len(ended)


def _counted(user: User, source: str) -> tuple[Counted, Counted]:
    """Guesses by a token are counted apart from sign-ins: they keep nobody from signing in."""
    return Counted(SOURCE, source), Counted(ACCOUNT, user.id)


def _checked(field_: str, check: Callable[[], T]) -> T:
    try:
        return check()
    except ValueError as error:
        raise InvalidError(
            "refused", f"{field_}: {error}", errors=(FieldError(field_, "refused", str(error)),)
        ) from None


def _missing(field_: str) -> InvalidError:
    words = "is needed again for this"
    return InvalidError(
        "proof-needed",
        f"{field_}: {words}",
        resolution="An account without a password gets its first one on the platform's machine: swg user password",
        errors=(FieldError(field_, "missing", words),),
    )


def _wrong(*fields: str) -> InvalidError:
    names = " or ".join(fields)
    faults = tuple(FieldError(field_, "wrong", f"{names} is wrong") for field_ in fields)
    return InvalidError("proof-refused", f"{names} is wrong", errors=faults)


def _drop_totp(unit: Unit, credentials: Credentials) -> None:
    """Let the key of the secret of the account's one-time codes go: nothing opens it again."""
    if credentials.totp_sealed is not None:
        forget(unit, credentials.totp_sealed.key_id)
