"""Releases: frozen copies of an app's config, numbered, with the image's name resolved to a digest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from shellwego.control.mounts import named_volumes
from shellwego.control.references import resolved_or_none, unresolved
from shellwego.control.scopes import missing
from shellwego.control.unit import Unit
from shellwego.core.apps import App, AppConfig, Release, content_hash
from shellwego.core.deployments import DeploymentState
from shellwego.core.errors import ConflictError
from shellwego.core.ids import is_id
from shellwego.ports.store import Op, Order, Transaction, Where, eq

_LOOKED_BACK = 200
"""How many releases a rollback without a number looks at."""


def freeze(unit: Unit, app: App, config: AppConfig, image_digest: str, description: str = "") -> tuple[App, Release]:
    """Make the next release of the app, and the app's config equal to it: but for its secrets, which stay as wished.

    `config` is resolved (`references.resolve_secrets`).
    """
    number = app.last_release_number + 1
    release = unit.tx.releases.insert(
        Release(
            id=unit.new_id("rel"),
            app_id=app.id,
            number=number,
            config=config,
            image_digest=image_digest,
            content_hash=content_hash(config, image_digest),
            created_at=unit.now(),
            created_by=unit.caller.actor,
            description=description,
        )
    )
    return replace(app, config=unresolved(config), last_release_number=number), release


def find_release(tx: Transaction, app: App, ref: str) -> Release:
    """A release of this app by id, by number, or as `v7`.

    Raises:
        NotFoundError: the app has none such.
    """
    if is_id("rel", ref):
        release = tx.releases.get(ref)
        if release is None or release.app_id != app.id:
            raise missing("release", ref)
        return release
    number = ref.removeprefix("v")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise missing("release", ref)
    return release_numbered(tx, app, int(number))


def release_numbered(tx: Transaction, app: App, number: int) -> Release:
    """The release of this number; raises `NotFoundError`."""
    found = tx.releases.select(eq("app_id", app.id), eq("number", number), limit=1)
    if not found:
        raise missing("release", f"v{number}")
    return found[0]


def newest_release(tx: Transaction, app: App) -> Release | None:
    """What the app's current config was last frozen into."""
    return release_numbered(tx, app, app.last_release_number) if app.last_release_number else None


def config_differs(tx: Transaction, app: App, current: Release | None) -> bool:
    """Whether the next deployment would roll out something else than `current` (what the app aims at), though nothing more
    was asked for: changes that no release has yet, or those of a release that failed and was rolled back."""
    if current is None:
        return False
    newest = current if current.number == app.last_release_number else newest_release(tx, app)
    digest = newest.image_digest if newest is not None else current.image_digest
    config = resolved_or_none(tx, app.project_id, app.config)
    config = named_volumes(tx, app, config) if config is not None else None
    if config is None:
        return True
    same = config == current.config and digest == current.image_digest
    return not same and content_hash(config, digest) != current.content_hash


def release_before(tx: Transaction, app: App) -> Release:
    """The newest content that was once rolled out in full and is another than that of the newest release. Where that one
    failed, this is what runs: going back to it takes the failed change out of the config.

    Raises:
        ConflictError: there is none to go back to.
    """
    newest = newest_release(tx, app)
    if newest is None:
        raise _nothing_before()
    proven = _succeeded(tx, app)
    older = tx.releases.select(
        eq("app_id", app.id),
        Where("number", Op.LT, newest.number),
        order=Order("number", descending=True),
        limit=_LOOKED_BACK,
    )
    for release in older:
        if release.id in proven and release.content_hash != newest.content_hash:
            return release
    raise _nothing_before()


def outcomes(tx: Transaction, app: App, releases: Collection[Release]) -> Mapping[str, DeploymentState]:
    """How the rollout of each of the app's releases went, by its id: well if ever, else as its newest deployment."""
    since = Where("created_at", Op.GTE, min((release.created_at for release in releases), default=0.0))
    asked = {release.id for release in releases}
    found: dict[str, DeploymentState] = {}
    for deployment in tx.deployments.select(eq("app_id", app.id), since, order=Order("created_at")):
        if deployment.release_id in asked and found.get(deployment.release_id) is not DeploymentState.SUCCEEDED:
            found[deployment.release_id] = deployment.state
    return found


def refuse_failed(tx: Transaction, app: App, release: Release) -> None:
    """Refuse to go back to what never ran; raises `ConflictError`."""
    state = outcomes(tx, app, [release]).get(release.id)
    if state in (DeploymentState.FAILED, DeploymentState.ROLLED_BACK):
        raise ConflictError(
            "release-failed",
            f"v{release.number} never ran in full: its rollout ended as {state.value}",
            resolution="Choose one that succeeded (“releases” lists them), or deploy its image again.",
        )


def _succeeded(tx: Transaction, app: App) -> set[str]:
    newest = Order("created_at", descending=True)
    done = tx.deployments.select(
        eq("app_id", app.id), eq("state", DeploymentState.SUCCEEDED), order=newest, limit=_LOOKED_BACK
    )
    return {deployment.release_id for deployment in done}


def _nothing_before() -> ConflictError:
    return ConflictError(
        "no-earlier-release",
        "no earlier release with another content was ever rolled out in full",
        resolution="Name the release to go back to; “releases” lists them.",
    )
