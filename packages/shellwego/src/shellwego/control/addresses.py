"""Users by what people call them: an id, or an address as they write it."""

from __future__ import annotations

from shellwego.core.emails import normalized
from shellwego.core.ids import is_id
from shellwego.core.tenancy import User
from shellwego.ports.store import Transaction, eq


def email_of(text: str) -> str:
    """An address, normalized; empty, which is nobody's, where it is none."""
    try:
        return normalized(text)
    except ValueError:
        return ""


def find_user(tx: Transaction, ref: str) -> User | None:
    """The user with this id or address."""
    if is_id("usr", ref):
        return tx.users.get(ref)
    return next(iter(tx.users.select(eq("email", email_of(ref)), limit=1)), None)
