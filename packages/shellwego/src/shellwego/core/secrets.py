"""Secrets: named values of a project, in versions, which no answer ever shows.

A version is *usable* until it is retired or its time is over; only usable ones can be taken into a release. What a release
has taken it keeps: an expiry stops no restart of what runs. Retiring destroys the value, so it is refused while something
that runs, or could be run again by itself, needs it.

A reference in a config names a secret and a version, or the latest. When a release is made every reference is resolved to
the secret's id and a number, so that a release means the same for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shellwego.core.envelope import Label, SealedValue
from shellwego.core.errors import FieldError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
MAX_VALUE = 64 * 1024
MAX_DESCRIPTION = 500
MAX_METADATA = 16
MAX_METADATA_KEY, MAX_METADATA_VALUE = 63, 256
PURPOSE = "secret"
LATEST = 0
"""The version of a reference that means the newest one that is not retired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """What a variable of an app's config is filled with."""

    secret: str
    """Name, in the app's project."""
    version: int = LATEST
    """As it was wished."""
    secret_id: str = ""
    """In a release: what the name meant."""
    number: int = 0
    """In a release: the version's number."""

    @property
    def resolved(self) -> bool:
        return bool(self.secret_id)

    def wish(self) -> SecretRef:
        """As it was wished, without what it was resolved to."""
        return SecretRef(secret=self.secret, version=self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    id: str
    project_id: str
    name: str
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_key_id: str
    latest: int
    """Number of the newest version, retired or not; numbers are never used again."""
    created_at: float
    updated_at: float
    created_by: str
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretVersion:
    id: str
    secret_id: str
    number: int
    sealed: SealedValue | None = field(repr=False)
    """None once it is retired."""
    created_at: float
    created_by: str
    expires_at: float | None = None
    retired_at: float | None = None
    last_used_at: float | None = None
    """When a VM was last given it."""
    version: int = 1

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


def label(secret: Secret, organization_id: str) -> Label:
    """What the secret's data key and values are bound to."""
    return Label(purpose=PURPOSE, subject=secret.id, organization_id=organization_id, project_id=secret.project_id)


def resolve(
    at: str, ref: SecretRef, secret: Secret | None, versions: Iterable[SecretVersion], now: float
) -> SecretRef | FieldError:
    """The reference with what it means now, or why it means nothing that can be used. `at` is its field."""
    if secret is None:
        return FieldError(at, "no-such-secret", f"the project has no secret “{ref.secret[:128]}”")
    known = {version.number: version for version in versions}
    number = ref.version
    if number == LATEST:
        number = max((each.number for each in known.values() if each.retired_at is None), default=0)
    found = known.get(number)
    if found is None and ref.version == LATEST:
        return FieldError(at, "secret-retired", f"every version of the secret {secret.name} is retired")
    if found is None:
        return FieldError(at, "no-such-version", f"the secret {secret.name} has no version {number}")
    if found.retired_at is not None:
        return FieldError(at, "secret-retired", f"version {number} of the secret {secret.name} is retired")
    if found.expired(now):
        return FieldError(at, "secret-expired", f"version {number} of the secret {secret.name} has expired")
    return replace(ref, secret_id=secret.id, number=number)


def value_faults(value: bytes) -> tuple[FieldError, ...]:
    """Why a value cannot be a variable of an environment; never a word of the value."""
    if not value:
        return (FieldError("value", "empty", "is empty"),)
    if len(value) > MAX_VALUE:
        return (FieldError("value", "too-large", f"at most {MAX_VALUE} bytes"),)
    if b"\0" in value:
        return (FieldError("value", "bad-value", "holds a NUL, which no environment variable can"),)
    return ()


def describing_faults(description: str, metadata: Mapping[str, str]) -> tuple[FieldError, ...]:
    """What is wrong with the words that go with a secret."""
    faults = []
    if len(description) > MAX_DESCRIPTION or "\0" in description:
        faults.append(FieldError("description", "too-large", f"at most {MAX_DESCRIPTION} characters, and no NUL"))
    if len(metadata) > MAX_METADATA:
        faults.append(FieldError("metadata", "too-many", f"at most {MAX_METADATA} entries"))
    for key, value in metadata.items():
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_./-]{{0,{MAX_METADATA_KEY - 1}}}", key):
            faults.append(FieldError(f"metadata.{key[:40]}", "bad-name", "letters, digits, _ . / -; at most 63"))
        elif len(value) > MAX_METADATA_VALUE or "\0" in value:
            faults.append(
                FieldError(f"metadata.{key}", "too-large", f"at most {MAX_METADATA_VALUE} characters, no NUL")
            )
    return tuple(faults)
