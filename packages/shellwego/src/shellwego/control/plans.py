"""What a deploy would change, told before it is done; and how one release differs from another.

Values of environment variables are never told: whoever may see a diff need not be allowed to see those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from shellwego.control.apps import current_deployment, with_counts
from shellwego.control.config import ConfigWish, check_config, merge_unchecked, refuse_unplaceable
from shellwego.control.forecasts import ProcessForecast, forecast
from shellwego.control.images import ChosenImage, require_image
from shellwego.control.instances import live_instances
from shellwego.control.mounts import mounts_encrypted, resolve_mounts
from shellwego.control.quotas import check_priority
from shellwego.control.references import resolve_secrets
from shellwego.control.releases import newest_release
from shellwego.core.admission import with_backend
from shellwego.core.apps import App, AppConfig, Process, Service, content_hash, wanted_counts
from shellwego.core.deployments import Deployment, DeploymentState, Strategy
from shellwego.core.errors import FieldError, InvalidError
from shellwego.core.instances import Desired
from shellwego.core.placement_rules import DEFAULT_PRIORITY, PlacementRules, Spread
from shellwego.ports.store import Transaction

_SHOWN = 200
_REFERENCE = "\0"
"""Begins what a variable is filled with, where that is a secret: it is told, unlike a plain value, which cannot begin so."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a release is, but for its number."""

    config: AppConfig
    image_digest: str


@dataclass(frozen=True, slots=True)
class Change:
    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployPlan:
    changed: bool
    from_release: int | None
    to_release: int
    image_digest: str
    changes: tuple[Change, ...]
    replaced: Mapping[str, int]
    """Instances that would be started anew, by process."""
    processes: tuple[ProcessForecast, ...]


def plan_config(tx: Transaction, app: App, wish: ConfigWish, image: ChosenImage | None) -> Content:
    """What `deployments.request_deployment` would freeze; raises as it does, and changes nothing.

    An app without a service whose image exposes one port gets that port as its service; one without a backend gets that
    which its image needs.
    """
    check_priority(tx, app.project_id, wish.placement.priority)
    kind = None if image is None else image.kind
    config = merge_unchecked(app.config, wish if image is None else replace(wish, image=image.reference))
    if image is not None and config.processes and not config.services and len(image.exposed_ports) == 1:
        service = Service(process=config.processes[0].name, port=image.exposed_ports[0])
        config = replace(config, services=(service,))
    config = with_backend(config, kind)
    check_config(config)
    refuse_unplaceable(config, tx.nodes.select(), kind, encrypted=mounts_encrypted(tx, app, config))
    config = resolve_mounts(tx, app, resolve_secrets(tx, app.project_id, config))
    return Content(config, _known_digest(tx, app) if image is None else image.digest)


def _known_digest(tx: Transaction, app: App) -> str:
    newest = newest_release(tx, app)
    if newest is None:
        fault = FieldError("image", "missing", "the app has no image yet, so a deploy must name one")
        raise InvalidError("no-image", fault.message, resolution="Give an image.", errors=(fault,))
    require_image(tx, app.project_id, newest.image_digest)
    return newest.image_digest


def plan_deploy(
    tx: Transaction,
    app: App,
    wish: ConfigWish,
    image: ChosenImage | None,
    *,
    counts: Mapping[str, int],
    strategy: Strategy,
    weight: int = 100,
) -> DeployPlan:
    """What the deploy would change; raises as `plan_config` and `apps.with_counts`. `weight` is the first of a canary."""
    planned = plan_config(tx, app, wish, image)
    counted = with_counts(tx, app, planned.config, counts)
    newest = newest_release(tx, app)
    current = tx.releases.get(app.release_id) if app.release_id else newest
    before = Content(current.config, current.image_digest) if current else Content(AppConfig(processes=()), "")
    changes = (*differences(before, planned), *_count_changes(app, counted, planned.config))
    hashed = content_hash(planned.config, planned.image_digest)
    processes = forecast(tx, counted, planned.config, hashed, strategy=strategy, weight=weight)
    replaced = {each.process: each.started for each in processes if each.started}
    return DeployPlan(
        changed=bool(changes or any(each.started or each.stopped for each in processes)),
        from_release=current.number if current else None,
        to_release=app.last_release_number + 1,
        image_digest=planned.image_digest,
        changes=changes,
        replaced=replaced,
        processes=processes,
    )


def _count_changes(app: App, counted: App, config: AppConfig) -> tuple[Change, ...]:
    pairs = ((p.name, app.counts.get(p.name, 1), counted.counts.get(p.name, 1)) for p in config.processes)
    return tuple(Change(f"counts.{name}", str(old), str(new)) for name, old, new in pairs if old != new)


def done_already(tx: Transaction, app: App, planned: Content) -> Deployment | None:
    """The last deployment, where it succeeded, its release is what is planned, and none of its instances is missing."""
    last = current_deployment(tx, app)
    if last is None or last.state is not DeploymentState.SUCCEEDED or last.release_id != app.release_id:
        return None
    release = tx.releases.get(app.release_id)
    if release is None or Content(release.config, release.image_digest) != planned or _replaced(tx, app, planned):
        return None
    return last


def _replaced(tx: Transaction, app: App, planned: Content) -> dict[str, int]:
    """Wanted instances that no living one of the same content and generation fills."""
    hashed = content_hash(planned.config, planned.image_digest)
    kept = Counter(
        instance.process
        for instance in live_instances(tx, app)
        if instance.content_hash == hashed
        and instance.generation == app.generation
        and instance.desired is Desired.SERVE
    )
    missing = {name: count - kept[name] for name, count in wanted_counts(app, planned.config).items()}
    return {name: count for name, count in missing.items() if count > 0}


def differences(before: Content, after: Content) -> tuple[Change, ...]:
    """Every field in which the two differ, in the order of their names."""
    old, new = dict(_fields(before)), dict(_fields(after))
    changed = (name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    return tuple(Change(name, _shown(name, old.get(name)), _shown(name, new.get(name))) for name in changed)


def _fields(content: Content) -> Iterator[tuple[str, str]]:
    config = content.config
    yield "image", f"{config.image} {content.image_digest}".strip()
    yield "drain_timeout", f"{config.drain_timeout_s:g}"
    if config.backend:
        yield "backend", config.backend
    if config.release_command:
        yield "release_command", _text(config.release_command)
    yield from _placement_fields(config.placement)
    for name, value in config.env.items():
        yield f"env.{name}", value
    for name, ref in config.secrets.items():
        yield f"env.{name}", f"{_REFERENCE}secret {ref.secret} v{ref.number}"
    for process in config.processes:
        yield from _process_fields(process)
    for service in config.services:
        yield f"services.{service.process}.port", str(service.port)
    for mount in config.mounts:
        how = ", read-only" if mount.read_only else ""
        yield f"mounts.{mount.source}", f"{mount.process}:{mount.destination}{how}"
    for number, check in enumerate(config.checks):
        yield f"checks[{number}]", _text({field: value for field, value in asdict(check).items() if value})


def _placement_fields(rules: PlacementRules) -> Iterator[tuple[str, str]]:
    if rules.spread is not Spread.ZONE:
        yield "placement.spread", rules.spread
    if rules.priority != DEFAULT_PRIORITY:
        yield "placement.priority", str(rules.priority)
    for name, value in (("region", rules.region), ("zone", rules.zone)):
        if value:
            yield f"placement.{name}", value
    for field, labels in (("require", rules.require), ("tolerate", rules.tolerate)):
        for name, value in labels.items():
            yield f"placement.{field}.{name}", value


def _process_fields(process: Process) -> Iterator[tuple[str, str]]:
    for name, value in process.env.items():
        yield f"processes.{process.name}.env.{name}", value
    for field, value in asdict(process).items():
        if field not in ("name", "env") and value is not None:
            yield f"processes.{process.name}.{field}", _text(value)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items() if each is not None)
    if isinstance(value, tuple | list):
        return " ".join(str(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    if "env" in name.split(".")[:-1] and not value.startswith(_REFERENCE):
        return "(set)"
    return value.removeprefix(_REFERENCE)[:_SHOWN]
