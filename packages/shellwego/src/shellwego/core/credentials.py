"""How a user proves who he is. Apart from the user, so that who lists users never holds this."""

from __future__ import annotations

from dataclasses import dataclass, field

KNOWN_SOURCES = 16
"""How many sources of a user are remembered; the one that signed in longest ago goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    id: str
    """The user's."""
    password_hash: str = field(default="", repr=False)
    """Of argon2id, with its parameters; empty: there is no password, so none is right."""
    password_at: float | None = None
    totp_sealed: str = field(default="", repr=False)
    """The secret of the one-time codes, sealed; empty: none was enrolled."""
    totp_on: bool = False
    """Whether it was confirmed with a code, from when on each sign-in needs one."""
    totp_step: int = 0
    """The step of the last code that was taken; none of it or before is taken again."""
    recovery_hashes: tuple[str, ...] = field(default=(), repr=False)
    known_sources: tuple[str, ...] = ()
    """Hashes of the sources that signed in, the newest last."""
    version: int = 1

    def with_source(self, source: str) -> tuple[str, ...]:
        """The known sources after a sign-in from this one."""
        others = [each for each in self.known_sources if each != source]
        return (*others, source)[-KNOWN_SOURCES:]
