"""Images of the platform's projects for the engine's services. Implements `ImageApi` over the use cases.

An image here is a digest in a project, under all names that the project knows it by.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from plasmavmc.errors import ImageError, InvalidSpecError
from plasmavmc.rpc.access import Reach
from plasmavmc.rpc.api import Image, ImageOrder, ImageProgress, Upload, key_of_image
from plasmavmc.types import Scope as EngineScope
from shellwego.api.grpc.callers import Callers
from shellwego.api.grpc.errors import not_offered, translated
from shellwego.api.grpc.scopes import scope_out
from shellwego.api.grpc.views import image_views
from shellwego.control import images
from shellwego.control.events import changes
from shellwego.control.imagework import ImageWork
from shellwego.control.scopes import missing, project_scope
from shellwego.control.targets import ProjectTarget
from shellwego.control.unit import Control, Unit
from shellwego.core.images import Image as ImageRow
from shellwego.core.images import ImageState
from shellwego.core.tenancy import Project
from shellwego.ports.store import Transaction, eq
from shellwego.wire import subjects


class PlatformImages:
    """See the module's head."""

    def __init__(self, control: Control, work: ImageWork, callers: Callers) -> None:
        self._control = control
        self._work = work
        self._callers = callers

    async def register(self, order: ImageOrder, chunks: AsyncIterator[bytes]) -> AsyncGenerator[ImageProgress | Image]:
        if isinstance(order.source, Upload):
            raise not_offered("take uploads here", "Use `swg images load`, or POST /v1/images/uploads.")
        if order.login is not None:
            raise not_offered("take logins with an image", "Give them to the platform: `swg up --registry-auth`.")
        if order.name not in ("", order.source):
            raise InvalidSpecError(
                "name", "an image of a registry is kept under its reference", resolution="Leave it out."
            )
        access, target = self._callers.access(), ProjectTarget(order.scope.project)
        with translated():
            project_id = await access.read(target, lambda _tx, row: row.id)
            chosen = await images.choose_image(self._control, self._work, project_id, order.source)
            row = await access.write(target, lambda unit, project: images.register_image(unit, project, chosen))
        async with aclosing(self._callers.while_valid(self._until_ready(row), target)) as progress:
            async for event in progress:
                yield event
        yield await self.get_image(order.scope, chosen.digest)

    async def _until_ready(self, row: ImageRow) -> AsyncGenerator[ImageProgress]:
        told = None
        async with aclosing(changes(self._control, subjects.IMAGES)) as ticks:
            async for _ in ticks:
                with translated():
                    now = await self._control.read(lambda tx: tx.images.get(row.id))
                if now is None or now.state is ImageState.FAILED:
                    raise ImageError("image-failed", f"{row.reference}: {now.reason if now else 'it was deleted'}")
                if now.state is ImageState.READY:
                    return
                if now.state is not told:
                    told = now.state
                    yield ImageProgress(stage=now.state.value)

    async def get_image(self, scope: EngineScope, image: str) -> Image:
        def look(tx: Transaction, project: Project) -> Image:
            return image_views(project_scope(project), _named(tx, project, image))[0]

        with translated():
            return await self._callers.access().read(ProjectTarget(scope.project), look)

    async def list_images(self, scope: EngineScope | None, reach: Reach, *, after: str, limit: int) -> Sequence[Image]:
        def look(tx: Transaction) -> list[Image]:
            scopes = (project_scope(project) for project in tx.projects.select())
            reached = [each for each in scopes if reach.covers(scope_out(each)) and scope in (None, scope_out(each))]
            rows = ((each, tx.images.select(eq("project_id", each.project_id))) for each in reached)
            found = [view for each, own in rows for view in image_views(each, own)]
            return sorted((view for view in found if key_of_image(view) > after), key=key_of_image)[:limit]

        with translated():
            return await self._control.read(look)

    async def delete_image(self, scope: EngineScope, image: str) -> None:
        def work(unit: Unit, project: Project) -> None:
            for row in _named(unit.tx, project, image, all_names=False):
                images.delete_image(unit, row)

        with translated():
            await self._callers.access().write(ProjectTarget(scope.project), work)


def _named(tx: Transaction, project: Project, image: str, *, all_names: bool = True) -> list[ImageRow]:
    """The rows of an image by digest, or by a name: of the newest digest of that name, all its names or that one."""
    own = tx.images.select(eq("project_id", project.id))
    rows = [row for row in own if row.digest == image]
    if rows:
        return rows
    named = [row for row in own if row.reference in (image, f"{image}:latest")]
    if not named:
        raise missing("image", image)
    newest = max(named, key=lambda row: row.created_at)
    return [row for row in own if row.digest == newest.digest] if all_names else [newest]
