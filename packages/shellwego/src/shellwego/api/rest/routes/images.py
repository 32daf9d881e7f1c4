"""Images: listed, fetched from a registry, uploaded as a tar in parts, deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query, Request
from starlette.responses import Response

from shellwego.api.rest.answers import body_answer, read, respond, write
from shellwego.api.rest.guard import Granted, operation
from shellwego.api.rest.lists import Listing, Project, contains, one_of
from shellwego.api.rest.routes.common import Here, Id, resource_router
from shellwego.api.rest.schemas.common import pagination
from shellwego.api.rest.schemas.resources import ImageCreate, ImageList, ImageView, LoadedView, UploadView, image_view
from shellwego.api.rest.spool import MAX_CHUNK, MAX_UPLOAD, Upload, check_digest, parse_range
from shellwego.control import images
from shellwego.control.authorization import Access
from shellwego.control.idempotency import Answer
from shellwego.control.pages import page
from shellwego.control.targets import ImageTarget, ProjectTarget
from shellwego.control.unit import Unit
from shellwego.core.images import Image
from shellwego.core.tenancy import Project as ProjectRow
from shellwego.ports.images import LoadedImage
from shellwego.ports.store import Transaction, eq

router = resource_router("images")
_SORTS: dict[str, type[str] | type[float]] = {"reference": str, "created_at": float}
UPLOAD_PATH = "/v1/images/uploads/"
LoadName = Annotated[str | None, Query(max_length=512, description="Instead of the names in the tar.")]
_BINARY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@operation(router, "GET", "/images", permission="images:read", answer=ImageList)
async def list_images(
    *,
    access: Granted,
    listing: Listing,
    project: Project = "",
    state: Annotated[str | None, Query(alias="filter[state]", max_length=200)] = None,
    digest: Annotated[str | None, Query(alias="filter[digest]", max_length=2000)] = None,
    q: Annotated[str | None, Query(alias="filter[q]", max_length=80, description="Part of the reference.")] = None,
) -> Response:
    """The images of a project."""
    request = listing.page(_SORTS, "reference")

    def look(tx: Transaction, row: ProjectRow) -> Answer:
        conditions = (*one_of("state", state), *one_of("digest", digest), *contains("reference", q))
        found = page(tx.images, request, eq("project_id", row.id), *conditions)
        views = [image_view(image) for image in found.items]
        return body_answer(ImageList(data=views, pagination=pagination(found)))

    return await read(access, ProjectTarget(project), look)


@operation(router, "POST", "/images", permission="images:write", answer=ImageView, status=202)
async def register_image(*, here: Here, access: Granted, body: ImageCreate, project: Project = "") -> Response:
    """Fetch an image from its registry now. Follow its state."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = ProjectTarget(project)
    project_id = await access.read(target, lambda tx, row: row.id)
    reference = images.image_name(body.reference, "reference")
    chosen = await images.choose_image(here.control, here.images, project_id, reference)

    def work(unit: Unit, row: ProjectRow) -> Answer:
        return body_answer(image_view(images.register_image(unit, row, chosen)), 202)

    return await write(access, target, work)


@operation(router, "GET", "/images/{image}", permission="images:read", answer=ImageView)
async def get_image(*, access: Granted, image: Id) -> Response:
    """One image."""
    return await read(access, ImageTarget(image), lambda tx, row: body_answer(image_view(row), version=row.version))


@operation(router, "DELETE", "/images/{image}", permission="images:write", answer=None, status=204)
async def delete_image(*, access: Granted, image: Id) -> Response:
    """Delete an image; refused while a release that runs needs it."""

    def work(unit: Unit, row: Image) -> Answer:
        images.delete_image(unit, row)
        return Answer(204, "")

    return await write(access, ImageTarget(image), work)


@operation(router, "POST", "/images/uploads", permission="images:write", answer=UploadView, status=201)
async def begin_upload(*, here: Here, access: Granted, name: LoadName = None, project: Project = "") -> Response:
    """Begin to upload a tar (`docker save`, OCI layout). Send its parts with PATCH, and finish with PUT."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    upload = here.spool.begin(await _project_id(access, project), _checked(name))
    answer = body_answer(_upload_view(upload), 201)
    return await write(access, ProjectTarget(project), lambda unit, row: answer)


@operation(router, "PATCH", "/images/uploads/{upload}", permission="images:write", answer=UploadView, extra=_BINARY)
async def append_upload(
    *,
    here: Here,
    access: Granted,
    request: Request,
    upload: Id,
    content_range: Annotated[str, Header(alias="Content-Range", max_length=100, description="bytes first-last/*")],
    project: Project = "",
) -> Response:
    """Send the next part. The answer says from which byte on the next is expected."""
    found = here.spool.get(upload, await _project_id(access, project))
    first, last = parse_range(content_range)
    await here.spool.append(found, first, last, request.stream())
    return respond(body_answer(_upload_view(found)))


@operation(router, "GET", "/images/uploads/{upload}", permission="images:write", answer=UploadView)
async def get_upload(*, here: Here, access: Granted, upload: Id, project: Project = "") -> Response:
    """How much of an upload has arrived."""
    return respond(body_answer(_upload_view(here.spool.get(upload, await _project_id(access, project)))))


@operation(
    router,
    "PUT",
    "/images/uploads/{upload}",
    permission="images:write",
    answer=LoadedView,
    status=201,
    seconds=3600,
)
async def finish_upload(
    *,
    here: Here,
    access: Granted,
    upload: Id,
    digest: Annotated[str, Query(pattern=r"^sha256:[0-9a-f]{64}$", description="SHA-256 of the whole upload.")],
    name: LoadName = None,
    project: Project = "",
) -> Response:
    """Load the uploaded tar, under the name given here or at the beginning. The answer names its images."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    target = ProjectTarget(project)
    found = here.spool.get(upload, await _project_id(access, project))
    chosen = _checked(name) or found.name

    async def register(loaded: tuple[LoadedImage, ...]) -> Answer:
        def work(unit: Unit, row: ProjectRow) -> Answer:
            rows = images.register_loaded(unit, row, loaded, chosen)
            return body_answer(LoadedView(data=[image_view(image) for image in rows]), 201)

        return await access.write_once(target, work)

    async with here.spool.claimed(found):
        check_digest(found, digest)
        answer = await here.images.load(here.spool.read(found), register)
    here.spool.remove(found)
    return respond(answer)


@operation(router, "DELETE", "/images/uploads/{upload}", permission="images:write", answer=None, status=204)
async def cancel_upload(*, here: Here, access: Granted, upload: Id, project: Project = "") -> Response:
    """Throw an upload away."""
    known = await access.recalled()
    if known is not None:
        return respond(known)
    found = here.spool.get(upload, await _project_id(access, project))
    async with here.spool.claimed(found):
        here.spool.remove(found)
    return await write(access, ProjectTarget(project), lambda unit, row: Answer(204, ""))


def _checked(name: str | None) -> str | None:
    """The name in its full form; refused before anything is sent for nothing. Raises `InvalidError`."""
    return None if name is None else images.image_name(name, "name")


async def _project_id(access: Access, project: str) -> str:
    return await access.read(ProjectTarget(project), lambda tx, row: row.id)


def _upload_view(upload: Upload) -> UploadView:
    return UploadView(id=upload.id, offset=upload.size, limit_bytes=MAX_UPLOAD, chunk_bytes=MAX_CHUNK)
