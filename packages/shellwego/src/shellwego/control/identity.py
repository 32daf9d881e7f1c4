"""What signing in stands on, put together once for each process."""

from __future__ import annotations

from dataclasses import dataclass

from shellwego.control.accounts import Accounts
from shellwego.control.invitations import Invitations
from shellwego.control.passwords import Passwords
from shellwego.control.sealing import Sealer
from shellwego.control.signin import SignIn
from shellwego.control.throttling import Throttle
from shellwego.control.unit import Control
from shellwego.ports.passwords import PasswordHasher


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is: signing in, and one's own account."""

    passwords: Passwords
    sign_in: SignIn
    accounts: Accounts
    invitations: Invitations


def make_identity(
    control: Control, hasher: PasswordHasher, sealer: Sealer, throttle: Throttle | None = None
) -> Identity:
    """The parts, over one queue of hashes and one throttle."""
    passwords, throttle = Passwords(hasher), throttle or Throttle()
    return Identity(
        passwords,
        SignIn(control, passwords, sealer, throttle),
        Accounts(control, passwords, sealer, throttle),
        Invitations(control, passwords, throttle),
    )
