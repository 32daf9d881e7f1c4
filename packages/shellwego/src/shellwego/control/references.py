"""References to secrets in a config: what they mean when a release is made, and which releases need which version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from shellwego.control.config import refuse
from shellwego.control.instances import LIVE_PHASES
from shellwego.core.apps import App, AppConfig, Release
from shellwego.core.deployments import FINISHED, DeploymentState
from shellwego.core.errors import FieldError
from shellwego.core.secrets import MAX_TOTAL, Secret, SecretRef, SecretVersion, resolve
from shellwego.ports.store import Transaction, eq, within

_UNFINISHED = tuple(state.value for state in DeploymentState if state not in FINISHED)


def unresolved(config: AppConfig) -> AppConfig:
    """The config with its references as they were wished."""
    return replace(
        config,
        secrets={name: ref.wish() for name, ref in config.secrets.items()},
        mounts=tuple(mount.wish() for mount in config.mounts),
    )


def resolve_secrets(tx: Transaction, project_id: str, config: AppConfig) -> AppConfig:
    """The config with every reference resolved to a secret's id and a version's number, as they are now.

    Raises:
        InvalidError: a secret or version is unknown, retired or expired, or all together are too large.
    """
    found, faults = _resolved(tx, project_id, config)
    resolution = "“swg secrets ls” lists the project's secrets, “swg secrets show NAME” the versions of one."
    refuse("secret-refused", faults, resolution=resolution)
    return found


def require_values(tx: Transaction, config: AppConfig) -> None:
    """Refuse to make a release again whose secrets are not all there any more. That a version has expired meanwhile is no
    reason: going back must be possible.

    Raises:
        InvalidError: a secret was deleted or made anew, or its version was retired.
    """
    gone = tuple(
        FieldError(f"env.{name}", "secret-retired", f"version {ref.number} of the secret {ref.secret} is gone")
        for name, ref in config.secrets.items()
        if not _has_value(tx, ref)
    )
    refuse("secret-refused", gone, resolution="Deploy with a version that is there, or go back to another release.")


def _has_value(tx: Transaction, ref: SecretRef) -> bool:
    secret = tx.secrets.get(ref.secret_id)
    return secret is not None and any(
        each.number == ref.number and each.sealed is not None for each in versions_of(tx, secret)
    )


def resolved_or_none(tx: Transaction, project_id: str, config: AppConfig) -> AppConfig | None:
    """As `resolve_secrets`; None where it would refuse."""
    found, faults = _resolved(tx, project_id, config)
    return None if faults else found


def _resolved(tx: Transaction, project_id: str, config: AppConfig) -> tuple[AppConfig, tuple[FieldError, ...]]:
    if not config.secrets:
        return config, ()
    refs: dict[str, SecretRef] = {}
    faults: list[FieldError] = []
    total = 0
    for name, ref in config.secrets.items():
        secret = secret_named(tx, project_id, ref.secret)
        versions = versions_of(tx, secret) if secret else []
        match resolve(f"env.{name}", ref, secret, versions, tx.now()):
            case SecretRef() as meant:
                refs[name] = meant
                total += next(each.size_bytes for each in versions if each.number == meant.number)
            case FieldError() as fault:
                faults.append(fault)
    if total > MAX_TOTAL:
        faults.append(FieldError("env", "too-large", f"the secrets of an app have at most {MAX_TOTAL} bytes in all"))
    return replace(config, secrets=refs), tuple(faults)


def secret_named(tx: Transaction, project_id: str, name: str) -> Secret | None:
    """The project's secret of this name."""
    return next(iter(tx.secrets.select(eq("project_id", project_id), eq("name", name), limit=1)), None)


def versions_of(tx: Transaction, secret: Secret) -> list[SecretVersion]:
    """All versions of a secret."""
    return tx.secret_versions.select(eq("secret_id", secret.id))


@dataclass(frozen=True, slots=True)
class Use:
    """A release that runs, or that the platform may go back to by itself, and what it takes of a secret."""

    app: App
    release: Release
    numbers: frozenset[int]


def uses(tx: Transaction, secret: Secret) -> list[Use]:
    """Where versions of the secret are needed now."""
    found = []
    for app in tx.apps.select(eq("project_id", secret.project_id)):
        for release in live_releases(tx, app):
            numbers = _numbers(release.config.secrets, secret)
            if numbers:
                found.append(Use(app, release, numbers))
    return found


def wishing_apps(tx: Transaction, secret: Secret) -> list[App]:
    """Apps whose next release takes the newest version of the secret."""
    apps = tx.apps.select(eq("project_id", secret.project_id))
    wished = SecretRef(secret=secret.name)
    return [app for app in apps if wished in app.config.secrets.values() and not app.deleting]


def _numbers(refs: Mapping[str, SecretRef], secret: Secret) -> frozenset[int]:
    return frozenset(ref.number for ref in refs.values() if ref.secret_id == secret.id)


def live_releases(tx: Transaction, app: App) -> Iterator[Release]:
    """Releases of the app that run, or that the platform may go back to by itself."""
    ids = {app.release_id, app.stable_release_id}
    ids |= {row.release_id for row in tx.deployments.select(eq("app_id", app.id), within("state", _UNFINISHED))}
    living = tx.instances.select(eq("app_id", app.id), within("phase", LIVE_PHASES))
    ids |= {instance.release_id for instance in living}
    for id_ in sorted(filter(None, ids)):
        release = tx.releases.get(id_)
        if release is not None:
            yield release
