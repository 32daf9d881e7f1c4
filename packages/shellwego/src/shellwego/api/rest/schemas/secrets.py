"""Secrets and their versions: what is told of them. No answer has a field for a value."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, SecretStr
from pydantic_core import PydanticCustomError

from shellwego.api.rest.schemas.common import Body, Name, Pagination, View, when, when_or_none
from shellwego.core.secrets import LATEST, Secret, SecretRef, SecretVersion
from shellwego.core.sensitive import Sensitive


def _encodable(value: SecretStr) -> SecretStr:
    try:
        value.get_secret_value().encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "is not text that UTF-8 can hold") from None
    return value


Value = Annotated[
    SecretStr,
    AfterValidator(_encodable),
    Field(description="At most 64 KiB, as UTF-8, without NUL. Never shown again."),
]
Expiry = Annotated[AwareDatetime | None, Field(strict=False, description="No release takes the version from then on.")]
Metadata = Annotated[
    dict[Name, Annotated[str, Field(max_length=256)]], Field(default_factory=dict, max_length=16, description="Labels.")
]
Description = Annotated[str, Field(max_length=500)]


class SecretRefBody(Body):
    """Fill a variable with a secret of the project. `latest` becomes a number when a release is made."""

    secret: Annotated[str, Field(min_length=1, max_length=128)]
    version: Literal["latest"] | Annotated[int, Field(ge=1, lt=1_000_000)] = "latest"

    def ref(self) -> SecretRef:
        return SecretRef(secret=self.secret, version=LATEST if self.version == "latest" else self.version)


class SecretRefView(View):
    """What a variable is filled with. `number` is what the version meant when the release was made; null in a config."""

    secret: str
    version: Literal["latest"] | int
    number: int | None = None


class SecretCreate(Body):
    """A new secret with its first version."""

    name: Annotated[str, Field(min_length=1, max_length=128, description="As a variable is named.")]
    value: Value
    description: Description = ""
    metadata: Metadata
    expires_at: Expiry = None


class VersionCreate(Body):
    """A new version of a secret. What runs keeps the one it has until its app is deployed again."""

    value: Value
    expires_at: Expiry = None


class SecretView(View):
    id: str
    project_id: str
    name: str
    description: str
    metadata: dict[str, str]
    latest: int
    """Number of the newest version, retired or not."""
    created_at: datetime
    updated_at: datetime
    created_by: str
    version: int


class SecretDetail(SecretView):
    """A secret with where it is needed."""

    used_by: list[str]
    """Apps with a release that runs, or may run again by itself, and needs a version of it."""
    latest_for: list[str]
    """Apps whose next release takes the newest version."""


class SecretList(View):
    data: list[SecretView]
    pagination: Pagination


class SecretVersionView(View):
    number: int
    state: Literal["usable", "expired", "retired"]
    size_bytes: int
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    retired_at: datetime | None
    last_used_at: datetime | None
    """When a VM was last started with it."""


class SecretVersionList(View):
    data: list[SecretVersionView]
    pagination: Pagination


def sensitive(value: SecretStr) -> Sensitive:
    """The value of a body, as everything behind the rim holds it."""
    return Sensitive.of(value.get_secret_value())


def timestamp(moment: datetime | None) -> float | None:
    """A time of a body, as it is stored."""
    return None if moment is None else moment.timestamp()


def ref_view(ref: SecretRef) -> SecretRefView:
    version: Literal["latest"] | int = ref.version or "latest"
    return SecretRefView(secret=ref.secret, version=version, number=ref.number or None)


def secret_view(secret: Secret) -> SecretView:
    return SecretView(
        id=secret.id,
        project_id=secret.project_id,
        name=secret.name,
        description=secret.description,
        metadata=dict(secret.metadata),
        latest=secret.latest,
        created_at=when(secret.created_at),
        updated_at=when(secret.updated_at),
        created_by=secret.created_by,
        version=secret.version,
    )


def secret_detail(secret: Secret, *, used_by: list[str], latest_for: list[str]) -> SecretDetail:
    return SecretDetail(used_by=used_by, latest_for=latest_for, **secret_view(secret).model_dump())


def version_view(version: SecretVersion, now: float) -> SecretVersionView:
    retired = version.retired_at is not None
    return SecretVersionView(
        number=version.number,
        state="retired" if retired else "expired" if version.expired(now) else "usable",
        size_bytes=version.size_bytes,
        created_at=when(version.created_at),
        created_by=version.created_by,
        expires_at=when_or_none(version.expires_at),
        retired_at=when_or_none(version.retired_at),
        last_used_at=when_or_none(version.last_used_at),
    )
