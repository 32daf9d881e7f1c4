"""Users as the platform's operator sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shellwego.control.addresses import find_user
from shellwego.control.scopes import SYSTEM, missing
from shellwego.control.targets import Found, unguessed
from shellwego.control.unit import Unit
from shellwego.core.errors import ConflictError
from shellwego.core.tenancy import Principal, User
from shellwego.ports.store import Transaction


@dataclass(frozen=True, slots=True)
class UserTarget:
    """A user of the platform by id or email."""

    ref: str

    def find(self, tx: Transaction, principal: Principal) -> Found[User]:
        user = find_user(tx, self.ref)
        if user is None:
            raise unguessed("user", "usr", self.ref, principal)
        return Found(user, SYSTEM, user.id, missing("user", self.ref))


def set_disabled(unit: Unit, principal: Principal, user: User, *, disabled: bool) -> User:
    """Have the platform answer nothing to a user any more, or again; his tokens are kept, and hold no longer than that.

    Raises:
        ConflictError: the caller means himself: nobody might be left to undo it.
    """
    if disabled == (user.disabled_at is not None):
        return user
    if user.id == principal.principal_id:
        raise ConflictError("own-account", "you cannot disable yourself", resolution="Have another operator do it.")
    unit.emit("user.disabled" if disabled else "user.enabled", user.id, severity="warning" if disabled else "info")
    return unit.tx.users.update(replace(user, disabled_at=unit.now() if disabled else None))
