"""Images: what a name means, which of them a project knows, and when one may go.

A deploy names an image by a name that was loaded from a tar before, or by a registry reference. The name loaded into the
project wins: it means that digest, whatever a registry says. Everything else is asked of the registry, every time, so
that a moved tag deploys what it means now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from shellwego.control.facts import UNFINISHED
from shellwego.control.imagework import ImageWork
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.quotas import charge, charge_project
from shellwego.control.scopes import organization_of
from shellwego.control.unit import Control, Unit
from shellwego.core.apps import App
from shellwego.core.errors import ConflictError, FieldError, InvalidError, NotFoundError, QuotaError
from shellwego.core.images import Image, ImageKind, ImageState, LoginRule
from shellwego.core.tenancy import Project
from shellwego.ports.images import Asker, LoadedImage, ResolvedImage
from shellwego.ports.store import Order, Transaction, Where, eq, within
from shellwego.wire import subjects

_NAME = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
MAX_NAME = 512
KEPT = 100
"""Images from registries that a project keeps at least: the newest, and all that its apps need."""
FORGOTTEN_AT_ONCE = 50
RELEASES_KEPT = 10
"""Of each app, whose images never go by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenImage:
    """What a reference means now."""

    reference: str
    digest: str
    size_bytes: int = 0
    exposed_ports: tuple[int, ...] = ()
    loaded: bool = False
    kind: ImageKind | None = None
    """None where it is not known: the platform's copy is damaged."""


def image_name(text: str, field: str = "image") -> str:
    """A name or reference in its full form: with the tag `latest` where it has neither tag nor digest.

    Raises:
        InvalidError: it is not one.
    """
    if len(text) > MAX_NAME or not _NAME.fullmatch(text):
        fault = FieldError(field, "bad-reference", "an image is named like hello:v1 or registry.example/team/app:v1")
        raise InvalidError("bad-reference", f"“{text[:120]}” is not the name of an image", errors=(fault,))
    tagged = "@" in text or ":" in text.rpartition("/")[2]
    return text if tagged else f"{text}:latest"


def has_registry(reference: str) -> bool:
    """Whether the first part of the reference is a registry's host."""
    host, slash, _ = reference.partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")


async def choose_image(control: Control, images: ImageWork, project_id: str, reference: str) -> ChosenImage:
    """What the reference means to this project now.

    Raises:
        NotFoundError: no such name was loaded, and no registry has it.
        InvalidError, ForbiddenError, UnavailableError: as `Images.resolve`.
    """
    name = image_name(reference)
    loaded, login = await control.read(
        lambda tx: (loaded_image(tx, project_id, name), has_login(tx, images.logins, project_id))
    )
    if loaded is not None:
        found = await images.look(loaded.digest)
        return ChosenImage(
            reference=name,
            digest=loaded.digest,
            size_bytes=loaded.size_bytes,
            exposed_ports=loaded.exposed_ports,
            loaded=True,
            kind=None if found is None else found.kind,
        )
    if not has_registry(name):
        raise image_absent(name)
    resolved = await images.resolve(name, project_id, login=login)
    return ChosenImage(
        reference=name,
        digest=resolved.digest,
        size_bytes=resolved.size_bytes,
        exposed_ports=resolved.exposed_ports,
        kind=resolved.kind,
    )


def has_login(tx: Transaction, rule: LoginRule, project_id: str) -> bool:
    """Whether the operator's logins for registries serve the project."""
    organization = tx.organizations.get(organization_of(tx, project_id))
    (first,) = tx.organizations.select(limit=1) or (None,)
    return organization is not None and first is not None and rule.lets(organization, first.id)


def asker_for(tx: Transaction, rule: LoginRule, project_id: str) -> Asker:
    """Whom images of the project are fetched for."""
    had = within("state", (ImageState.READY.value, ImageState.PENDING.value))
    images = frozenset(row.digest for row in tx.images.select(eq("project_id", project_id), had))
    return Asker(project_id=project_id, login=has_login(tx, rule, project_id), images=images)


def image_absent(name: str) -> NotFoundError:
    """No such name was loaded, and it names no registry to ask."""
    return NotFoundError(
        "image-not-found",
        f"no image “{name}” was loaded into this project",
        resolution="Load it from a tar, or give a reference with its registry, such as registry.example/team/app:v1.",
    )


def loaded_image(tx: Transaction, project_id: str, name: str) -> Image | None:
    """The newest image that was loaded under this name."""
    rows = _rows(tx, project_id, name)
    return next((row for row in rows if row.loaded and row.state is not ImageState.FAILED), None)


def note_image(unit: Unit, project_id: str, image: ChosenImage) -> Image:
    """The project's row for this image; fetching begins where its blobs are not here yet, or could not be fetched.

    Raises:
        QuotaError: its organization may not have so much.
    """
    for row in _rows(unit.tx, project_id, image.reference):
        if row.digest == image.digest:
            return _fetch_again(unit, row) if row.state is ImageState.FAILED else row
    _charge(unit, project_id, image.digest, image.size_bytes)
    row = unit.tx.images.insert(
        Image(
            id=unit.new_id("img"),
            project_id=project_id,
            reference=image.reference,
            digest=image.digest,
            state=ImageState.FETCHING,
            size_bytes=image.size_bytes,
            exposed_ports=image.exposed_ports,
            created_at=unit.now(),
        )
    )
    _forget_old(unit, project_id)
    unit.hint(subjects.IMAGES)
    return row


def _charge(unit: Unit, project_id: str, digest: str, size_bytes: int) -> None:
    """Refuse an image that is too much, unless it is there by another name. Before, old ones that nothing needs go, as many
    as it takes."""
    project = unit.tx.projects.get(project_id)
    if project is None:
        return None
    there = [row for row in unit.tx.images.select(eq("digest", digest)) if row.state is not ImageState.FAILED]
    if any(row.project_id == project_id for row in there):
        return None
    same = any(organization_of(unit.tx, row.project_id) == project.organization_id for row in there)
    take = partial(charge_project if same else charge, unit, project, {"images": size_bytes})
    old: list[Image] | None = None
    while True:
        try:
            return take()
        except QuotaError:
            old = _unneeded(unit.tx, project_id) if old is None else old
            if not old:
                raise
            _let_go(unit, old.pop())


def _forget_old(unit: Unit, project_id: str) -> None:
    """Let go of what was fetched before the newest `KEPT`, and nothing needs: each deploy of a moved tag is one more."""
    fetched = [row for row in _newest(unit.tx, eq("project_id", project_id)) if not row.loaded]
    if len(fetched) > KEPT:
        beyond = {row.id for row in fetched[KEPT:]}
        for row in [row for row in _unneeded(unit.tx, project_id) if row.id in beyond][-FORGOTTEN_AT_ONCE:]:
            _let_go(unit, row)


def _let_go(unit: Unit, row: Image) -> None:
    unit.tx.images.delete(row.id)
    image_event(unit, "image.deleted", row)


def _unneeded(tx: Transaction, project_id: str) -> list[Image]:
    """What may go by itself, the oldest last: fetched once, or loaded under a name that means another now, and of no release
    that an app runs, is on its way to, or may be told to return to."""
    needed = {digest for app in tx.apps.select(eq("project_id", project_id)) for digest in _wanted_digests(tx, app)}
    named: set[str] = set()
    unneeded: list[Image] = []
    for row in _newest(tx, eq("project_id", project_id)):
        superseded = not row.loaded or row.reference in named
        named.add(row.reference)
        if superseded and row.digest not in needed and row.state in (ImageState.READY, ImageState.FAILED):
            unneeded.append(row)
    return unneeded


def _wanted_digests(tx: Transaction, app: App) -> set[str]:
    """Digests of what an app has, and of its newest releases: people return to those."""
    newest = tx.releases.select(eq("app_id", app.id), order=Order("number", descending=True), limit=RELEASES_KEPT)
    unfinished = tx.deployments.select(eq("app_id", app.id), within("state", UNFINISHED))
    named = [tx.releases.get(deployment.release_id) for deployment in unfinished]
    return _live_digests(tx, app) | {release.image_digest for release in (*newest, *named) if release is not None}


def _fetch_again(unit: Unit, row: Image) -> Image:
    unit.hint(subjects.IMAGES)
    return unit.tx.images.update(replace(row, state=ImageState.FETCHING, reason=""))


def doubt_image(unit: Unit, digest: str) -> None:
    """A node could not make a VM of it: have the images loop check the blobs here."""
    for row in unit.tx.images.select(eq("digest", digest), eq("state", ImageState.READY.value)):
        unit.tx.images.update(replace(row, state=ImageState.PENDING))
        unit.hint(subjects.IMAGES)


def register_image(unit: Unit, project: Project, image: ChosenImage) -> Image:
    """Make an image of a registry known to the project, and fetch it."""
    row = note_image(unit, project.id, image)
    image_event(unit, "image.registered", row)
    return row


def register_loaded(unit: Unit, project: Project, loaded: Iterable[LoadedImage], name: str | None) -> list[Image]:
    """Make the images of a tar known under the names that the tar gives them, or the one image under `name`.

    Raises:
        InvalidError: an image without a name, or one name for several images.
        QuotaError: the project's organization may not have so much.
    """
    found = tuple(loaded)
    if name is not None and len(found) != 1:
        raise InvalidError("several-images", f"the tar holds {len(found)} images, so one name cannot be given to them")
    rows = []
    for item in found:
        names = (name,) if name is not None else item.names
        if not names:
            raise InvalidError("no-name", "the tar gives its image no name", resolution="Give the name to load it as.")
        rows += [_note_loaded(unit, project, image_name(each, "name"), item.image) for each in names]
    return rows


def _note_loaded(unit: Unit, project: Project, name: str, image: ResolvedImage) -> Image:
    """The name's row: loading a name again moves the name. Raises `QuotaError`."""
    _charge(unit, project.id, image.digest, image.size_bytes)
    row = Image(
        id=unit.new_id("img"),
        project_id=project.id,
        reference=name,
        digest=image.digest,
        state=ImageState.READY,
        size_bytes=image.size_bytes,
        exposed_ports=image.exposed_ports,
        loaded=True,
        created_at=unit.now(),
    )
    for old in _rows(unit.tx, project.id, name):
        if old.digest == image.digest:
            unit.tx.images.delete(old.id)
    unit.tx.images.insert(row)
    image_event(unit, "image.loaded", row)
    unit.hint(subjects.IMAGES)
    return row


def require_image(tx: Transaction, project_id: str, digest: str) -> None:
    """Refuse to run what was deleted; raises `ConflictError`."""
    if not tx.images.select(eq("project_id", project_id), eq("digest", digest), limit=1):
        raise ConflictError(
            "image-deleted",
            f"the image {digest} was deleted from the project",
            resolution="Deploy an image that is there; “images” lists them.",
        )


def delete_image(unit: Unit, image: Image) -> None:
    """Forget the image; the images loop removes blobs that nothing needs any more.

    Raises:
        ConflictError: a release that runs, or is to run, needs it.
    """
    others = unit.tx.images.select(eq("project_id", image.project_id), eq("digest", image.digest), limit=2)
    user = None if len(others) > 1 else _app_using(unit.tx, image)
    if user is not None:
        raise ConflictError(
            "image-in-use",
            f"the app {user.name} needs the image “{image.reference}”",
            resolution="Deploy another image to it, or destroy it, first.",
        )
    unit.tx.images.delete(image.id)
    image_event(unit, "image.deleted", image)
    unit.hint(subjects.IMAGES)


def _app_using(tx: Transaction, image: Image) -> App | None:
    for app in tx.apps.select(eq("project_id", image.project_id)):
        if image.digest in _live_digests(tx, app):
            return app
    return None


def _live_digests(tx: Transaction, app: App) -> set[str]:
    """Digests that the app runs, aims at, or would return to."""
    instances = tx.instances.select(eq("app_id", app.id), within("phase", LIVE_PHASES))
    release_ids = {app.release_id, app.stable_release_id, *(instance.release_id for instance in instances)}
    releases = [tx.releases.get(release_id) for release_id in release_ids if release_id]
    return {release.image_digest for release in releases if release is not None}


def _rows(tx: Transaction, project_id: str, reference: str) -> list[Image]:
    return _newest(tx, eq("project_id", project_id), eq("reference", reference))


def _newest(tx: Transaction, *conditions: Where) -> list[Image]:
    """The newest first."""
    return tx.images.select(*conditions, order=Order("created_at", descending=True))


def image_event(unit: Unit, type_: str, image: Image, severity: str = "info") -> None:
    """Write an event about an image."""
    data = {"reference": image.reference, "digest": image.digest}
    unit.emit(
        type_,
        image.id,
        organization_id=organization_of(unit.tx, image.project_id),
        project_id=image.project_id,
        severity=severity,
        data={**data, "reason": image.reason} if image.reason else data,
    )
