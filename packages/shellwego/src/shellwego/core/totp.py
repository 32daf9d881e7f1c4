"""One-time codes (RFC 6238: SHA-1, six digits, 30 seconds) and recovery codes.

Theory. A code is taken in its own step and, since clocks differ, in the one before and the one after. The step of each
code that was taken is stored with the user, and no code of that step or an earlier one is taken again: RFC 6238, section
5.2. A recovery code has 80 random bits, so a plain hash keeps it; it is taken away when it is used.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence

from pyotp import HOTP

STEP_S = 30
DRIFT = 1
RECOVERY_CODES = 10
SECRET_BYTES = 20
RECOVERY_BYTES = 10
_CODE = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY_CODE = re.compile(r"[a-z2-7]{16}", re.ASCII)


def secret_text(entropy: bytes) -> str:
    """A shared secret as authenticator apps take it, of `SECRET_BYTES` random bytes."""
    return base64.b32encode(entropy[:SECRET_BYTES]).decode()


def matching_step(secret: str, code: str, now: float, last_step: int) -> int | None:
    """The step to which the code belongs, if it may be taken at the Unix time `now`; None: it may not.

    Every candidate is compared, so that the time tells nothing.
    """
    if not _CODE.fullmatch(code):
        return None
    current = int(now // STEP_S)
    steps = range(max(current - DRIFT, 0), current + DRIFT + 1)
    maker = HOTP(secret)
    matching = [step for step in steps if hmac.compare_digest(maker.at(step), code)]
    fresh = [step for step in matching if step > last_step]
    return fresh[0] if fresh else None


def recovery_code(entropy: bytes) -> str:
    """A code for people to keep, of `RECOVERY_BYTES` random bytes: `abcd-efgh-ijkl-mnop`."""
    letters = base64.b32encode(entropy[:RECOVERY_BYTES]).decode().lower()
    return "-".join(letters[start : start + 4] for start in range(0, len(letters), 4))


def recovery_hash(code: str) -> str:
    """What is stored of a recovery code; dashes, spaces and case do not matter."""
    return hashlib.sha256(re.sub(r"[-\s]", "", code).lower().encode()).hexdigest()


def spend(hashes: Sequence[str], code: str) -> tuple[str, ...] | None:
    """The hashes that are left when this recovery code is used; None: it is none of them."""
    if not _RECOVERY_CODE.fullmatch(re.sub(r"[-\s]", "", code).lower()):
        return None
    used = recovery_hash(code)
    left = tuple(each for each in hashes if not hmac.compare_digest(each, used))
    return left if len(left) < len(hashes) else None
