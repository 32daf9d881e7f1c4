"""Secrets: made, listed, rotated, retired, deleted. There is no way to read a value."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from starlette.responses import Response

from shellwego.api.rest.answers import IfMatch, body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, contains
from shellwego.api.rest.routes.common import Here, Ref, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.secrets import (
    SecretCreate,
    SecretDetail,
    SecretList,
    SecretVersionList,
    SecretVersionView,
    VersionCreate,
    secret_detail,
    secret_view,
    sensitive,
    timestamp,
    version_view,
)
from shellwego.control import secrets
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.references import uses, wishing_apps
from shellwego.control.scopes import missing
from shellwego.control.targets import ProjectTarget, SecretTarget
from shellwego.control.unit import Unit
from shellwego.core.envelope import Label
from shellwego.core.secrets import Secret, label
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.ports.store import Transaction, eq

router = resource_router("secrets")
_SORTS: dict[str, type[str] | type[float]] = {"name": str, "created_at": float}
_VERSION_SORTS: dict[str, type[str] | type[float]] = {"number": float}
Number = Annotated[int, Path(ge=1, lt=1_000_000)]


def _detail(tx: Transaction, secret: Secret) -> SecretDetail:
    used_by = sorted({use.app.name for use in uses(tx, secret)})
    return secret_detail(secret, used_by=used_by, latest_for=[app.name for app in wishing_apps(tx, secret)])


@operation(router, "POST", "/secrets", permission="secrets:write", answer=SecretDetail, status=201, sensitive=True)
async def create_secret(*, here: Here, access: Granted, body: SecretCreate, project: Project = "") -> Response:
    """Make a secret with its first version. The value is stored sealed and never shown."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = ProjectTarget(project)
    row = await access.read(target, lambda tx, row: row)
    wish = secrets.SecretWish(
        name=body.name,
        value=sensitive(body.value),
        description=body.description,
        metadata=body.metadata,
        expires_at=timestamp(body.expires_at),
    )
    secrets.check_wish(wish.name, wish.description, wish.metadata)
    secrets.check_value(wish.value)
    key = await here.sealer.new_key(secrets.new_label(here.control.clock.new_id("sec"), row))

    def work(unit: Unit, row: ProjectRow) -> Answer:
        secret = secrets.create_secret(unit, row, wish, key)
        return body_answer(_detail(unit.tx, secret), 201, secret.version)

    return await write(access, target, work)


@operation(router, "GET", "/secrets", permission="secrets:read", answer=SecretList)
async def list_secrets(
    *,
    access: Granted,
    listing: Listing,
    project: Project = "",
    q: Annotated[str | None, Query(alias="filter[q]", max_length=128, description="Part of the name.")] = None,
) -> Response:
    """The secrets of a project."""
    request = listing.page(_SORTS, "name")

    def look(tx: Transaction, row: ProjectRow) -> Answer:
        found = page(tx.secrets, request, eq("project_id", row.id), *contains("name", q))
        views = [secret_view(secret) for secret in found.items]
        return body_answer(SecretList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


@operation(router, "GET", "/secrets/{secret}", permission="secrets:read", answer=SecretDetail)
async def get_secret(*, access: Granted, secret: Ref, project: Project = "") -> Response:
    """One secret, with where it is needed."""
    return await read(
        access, SecretTarget(secret, project), lambda tx, row: body_answer(_detail(tx, row), version=row.version)
    )


@operation(router, "DELETE", "/secrets/{secret}", permission="secrets:write", answer=None, status=204, refusals=(412,))
async def delete_secret(*, access: Granted, match: IfMatch, secret: Ref, project: Project = "") -> Response:
    """Destroy a secret with all its versions; refused while a release that runs needs it."""

    def work(unit: Unit, row: Secret) -> Answer:
        match.check(row.version)
        secrets.delete_secret(unit, row)
        return Answer(204, "")

    return await write(access, SecretTarget(secret, project), work)


@operation(
    router,
    "POST",
    "/secrets/{secret}/versions",
    permission="secrets:write",
    answer=SecretVersionView,
    status=201,
    refusals=(412,),
    sensitive=True,
)
async def rotate_secret(
    *, here: Here, access: Granted, match: IfMatch, secret: Ref, body: VersionCreate, project: Project = ""
) -> Response:
    """Give a secret a new version. It changes nothing that runs, until an app that takes the latest is deployed."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target, value = SecretTarget(secret, project), sensitive(body.value)
    secrets.check_value(value)
    key_id, bound = await access.read(target, lambda tx, row: (row.data_key_id, _label(tx, row)))
    key = await here.sealer.open(key_id, bound)

    def work(unit: Unit, row: Secret) -> Answer:
        match.check(row.version)
        version = secrets.rotate_secret(unit, row, value, timestamp(body.expires_at), key)
        return body_answer(version_view(version, unit.now()), 201, row.version + 1)

    return await write(access, target, work)


def _label(tx: Transaction, secret: Secret) -> Label:
    project = tx.projects.get(secret.project_id)
    if project is None:
        raise missing("secret", secret.id)
    return label(secret, project.organization_id)


@operation(router, "GET", "/secrets/{secret}/versions", permission="secrets:read", answer=SecretVersionList)
async def list_secret_versions(*, access: Granted, listing: Listing, secret: Ref, project: Project = "") -> Response:
    """A secret's versions, the newest first, with when a VM was last started with each."""
    request = listing.page(_VERSION_SORTS, "number:desc")

    def look(tx: Transaction, row: Secret) -> Answer:
        found = page(tx.secret_versions, request, eq("secret_id", row.id))
        views = [version_view(version, tx.now()) for version in found.items]
        return body_answer(SecretVersionList(data=views, pagination=pagination(found)))

    return await read(access, SecretTarget(secret, project), look)


@operation(
    router,
    "POST",
    "/secrets/{secret}/versions/{number}/actions/retire",
    permission="secrets:write",
    answer=SecretVersionView,
)
async def retire_secret_version(*, access: Granted, secret: Ref, number: Number, project: Project = "") -> Response:
    """Destroy the value of a version; refused while a release that runs needs it."""

    def work(unit: Unit, row: Secret) -> Answer:
        version = secrets.retire_version(unit, row, number)
        return body_answer(version_view(version, unit.now()))

    return await write(access, SecretTarget(secret, project), work)
