"""What people read as the state of an app, from what is wanted and what is judged."""

from __future__ import annotations

from collections.abc import Iterable

from shellwego.core.apps import App, AppConfig, AppState, wanted_counts
from shellwego.core.instances import Instance, OwnerKind, Phase, Sleep

_ON_ITS_WAY = frozenset({Phase.PENDING, Phase.ASSIGNED, Phase.STARTING})


def app_state(
    app: App, config: AppConfig | None, instances: Iterable[Instance], *, deploying: bool, failed: bool
) -> AppState:
    """The app's state.

    `config` is that of the release it aims at (None: it never had one); `deploying` and `failed` tell of the deployment
    that was asked for last. One-off runs among `instances` do not count.
    """
    if app.stopped or app.deleting:
        return AppState.STOPPED
    if deploying:
        return AppState.DEPLOYING
    if config is None:
        return AppState.FAILED if failed else AppState.STOPPED
    wanted = sum(wanted_counts(app, config).values())
    if not wanted:
        return AppState.STOPPED
    own = [instance for instance in instances if instance.owner is OwnerKind.APP and instance.live]
    return _running_state(wanted, own)


def _running_state(wanted: int, live: list[Instance]) -> AppState:
    serving = [instance for instance in live if instance.serving]
    if len(serving) >= wanted:
        asleep = all(instance.phase is Phase.ASLEEP or instance.sleep is not Sleep.AWAKE for instance in serving)
        return AppState.SLEEPING if asleep else AppState.RUNNING
    if serving:
        return AppState.DEGRADED
    fresh_start = any(instance.phase in _ON_ITS_WAY and not instance.observed.ends for instance in live)
    return AppState.DEPLOYING if fresh_start else AppState.FAILED
