"""Secrets of a project: made, rotated, retired, deleted. No use case returns a value; `delivery` alone opens one.

The data key comes opened by `sealing.Sealer`, since a KMS is asked before the transaction; the value is sealed in it, so
that its version's number is the one it is bound to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shellwego.control.config import refuse
from shellwego.control.references import Use, secret_named, uses, versions_of
from shellwego.control.scopes import missing, organization_of
from shellwego.control.sealing import OpenKey, forget, keep_key
from shellwego.control.unit import Unit
from shellwego.core.envelope import Label
from shellwego.core.errors import ConflictError, FieldError, QuotaError, StaleError
from shellwego.core.secrets import NAME, PURPOSE, Secret, SecretVersion, describing_faults, value_faults
from shellwego.core.sensitive import Sensitive
from shellwego.core.tenancy import Project
from shellwego.ports.store import Transaction, eq

MAX_SECRETS = 1000
"""Of a project."""
MAX_VERSIONS = 100
"""Of a secret, those that are not retired."""
MAX_LIFE_S = 10 * 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretWish:
    name: str
    value: Sensitive
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_at: float | None = None


def new_label(secret_id: str, project: Project) -> Label:
    """What a secret that is to be made will be bound to."""
    return Label(purpose=PURPOSE, subject=secret_id, organization_id=project.organization_id, project_id=project.id)


def check_wish(name: str, description: str, metadata: Mapping[str, str]) -> None:
    """Refuse what no secret can be called or described by; raises `InvalidError`."""
    faults = describing_faults(description, metadata)
    if not NAME.fullmatch(name):
        message = "letters, digits and _, not beginning with a digit, at most 128: as a variable is named"
        faults = (FieldError("name", "bad-name", message), *faults)
    refuse("secret-refused", faults)


def check_value(value: Sensitive) -> None:
    """Refuse what no environment can hold; raises `InvalidError`, without a word of the value."""
    refuse("secret-refused", value_faults(value.reveal()))


def create_secret(unit: Unit, project: Project, wish: SecretWish, key: OpenKey) -> Secret:
    """Make a secret with its first version. `key` is a new one, of `new_label`.

    Raises:
        InvalidError: name, value, description, metadata or expiry are not possible.
        ConflictError: the project has a secret of this name.
        QuotaError: the project has as many as it may.
    """
    check_wish(wish.name, wish.description, wish.metadata)
    check_value(wish.value)
    _check_expiry(unit, wish.expires_at)
    if secret_named(unit.tx, project.id, wish.name) is not None:
        fault = FieldError("name", "already-exists", "this name is in use in the project")
        raise ConflictError(
            "secret-exists",
            f"the project has a secret {wish.name} already",
            resolution="Give it a new version instead (rotate).",
            errors=(fault,),
        )
    if unit.tx.secrets.count(eq("project_id", project.id)) >= MAX_SECRETS:
        raise QuotaError("too-many-secrets", f"a project has at most {MAX_SECRETS} secrets")
    now = unit.now()
    keep_key(unit, key.row)
    secret = unit.tx.secrets.insert(
        Secret(
            id=key.label.subject,
            project_id=project.id,
            name=wish.name,
            description=wish.description,
            metadata=dict(wish.metadata),
            data_key_id=key.row.id,
            latest=1,
            created_at=now,
            updated_at=now,
            created_by=unit.caller.actor,
        )
    )
    _insert_version(unit, secret, wish.value, wish.expires_at, key)
    _announce(unit, secret, "secret.created", 1)
    return secret


def rotate_secret(
    unit: Unit, secret: Secret, value: Sensitive, expires_at: float | None, key: OpenKey
) -> SecretVersion:
    """Give a secret a new version. What runs keeps the one it has, until its app is deployed again.

    Raises:
        InvalidError: value or expiry are not possible.
        StaleError: the secret was made anew in between.
        QuotaError: it has as many versions as it may.
    """
    check_value(value)
    _check_expiry(unit, expires_at)
    if secret.data_key_id != key.row.id:
        raise StaleError("stale", "the secret was made anew in between", resolution="Try again.")
    if sum(each.retired_at is None for each in versions_of(unit.tx, secret)) >= MAX_VERSIONS:
        raise QuotaError(
            "too-many-versions",
            f"a secret has at most {MAX_VERSIONS} versions that are not retired",
            resolution="Retire some.",
        )
    changed = unit.tx.secrets.update(replace(secret, latest=secret.latest + 1, updated_at=unit.now()))
    version = _insert_version(unit, changed, value, expires_at, key)
    _announce(unit, changed, "secret.rotated", version.number)
    return version


def find_version(tx: Transaction, secret: Secret, number: int) -> SecretVersion:
    """A version by its number; raises `NotFoundError`."""
    found = tx.secret_versions.select(eq("secret_id", secret.id), eq("number", number), limit=1)
    if not found:
        raise missing("version", str(number))
    return found[0]


def retire_version(unit: Unit, secret: Secret, number: int) -> SecretVersion:
    """Destroy the value of a version; its row stays for people to see. Once more changes nothing.

    Raises:
        NotFoundError: there is no such version.
        ConflictError: a release that runs, or may run again by itself, needs it.
    """
    version = find_version(unit.tx, secret, number)
    if version.retired_at is not None:
        return version
    _refuse_needed(secret, (use for use in uses(unit.tx, secret) if number in use.numbers))
    retired = unit.tx.secret_versions.update(replace(version, sealed=None, retired_at=unit.now()))
    unit.tx.secrets.update(replace(secret, updated_at=unit.now()))
    _announce(unit, secret, "secret.retired", number)
    return retired


def delete_secret(unit: Unit, secret: Secret) -> None:
    """Destroy a secret with all its versions, and its data key.

    Raises:
        ConflictError: a release that runs, or may run again by itself, needs it.
    """
    _refuse_needed(secret, uses(unit.tx, secret))
    for version in versions_of(unit.tx, secret):
        unit.tx.secret_versions.delete(version.id)
    forget(unit, secret.data_key_id)
    unit.tx.secrets.delete(secret.id)
    _announce(unit, secret, "secret.deleted", secret.latest)


def _insert_version(
    unit: Unit, secret: Secret, value: Sensitive, expires_at: float | None, key: OpenKey
) -> SecretVersion:
    return unit.tx.secret_versions.insert(
        SecretVersion(
            id=unit.new_id("sev"),
            secret_id=secret.id,
            number=secret.latest,
            sealed=key.seal(value, secret.latest),
            size_bytes=len(value),
            created_at=unit.now(),
            created_by=unit.caller.actor,
            expires_at=expires_at,
        )
    )


def _check_expiry(unit: Unit, expires_at: float | None) -> None:
    if expires_at is not None and not unit.now() < expires_at <= unit.now() + MAX_LIFE_S:
        refuse("secret-refused", (FieldError("expires_at", "out-of-range", "a time to come, within ten years"),))


def _refuse_needed(secret: Secret, needed: Iterable[Use]) -> None:
    by = sorted({f"{use.app.name} (v{use.release.number})" for use in needed})
    if by:
        raise ConflictError(
            "secret-in-use",
            f"the secret {secret.name} is needed by {', '.join(by[:10])}",
            resolution="Deploy without it, or with another version; then wait until the old release is gone.",
        )


def _announce(unit: Unit, secret: Secret, type_: str, number: int) -> None:
    unit.emit(
        type_,
        secret.id,
        organization_id=organization_of(unit.tx, secret.project_id),
        project_id=secret.project_id,
        data={"name": secret.name, "version": str(number)},
    )
