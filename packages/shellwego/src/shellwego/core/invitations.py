"""Invitations: a role in an organization, kept for whoever has an address and a secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

LIFE_S = 7 * 24 * 3600.0


class InvitationState(StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Only the hash of its secret is kept; the secret is shown once, to who invites, since no mail is sent from here."""

    id: str
    organization_id: str
    email: str
    """In the form of `emails.normalized`: nobody else accepts it."""
    role: str
    """As a grant names it."""
    secret_hash: str = field(repr=False)
    invited_by: str
    created_at: float
    expires_at: float
    accepted_at: float | None = None
    accepted_by: str = ""
    revoked_at: float | None = None
    version: int = 1

    def state(self, now: float) -> InvitationState:
        """Where it stands at this time."""
        if self.accepted_at is not None:
            return InvitationState.ACCEPTED
        if self.revoked_at is not None:
            return InvitationState.REVOKED
        return InvitationState.PENDING if now < self.expires_at else InvitationState.EXPIRED
