"""Where instances may go, as options of a deploy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import wraps
from typing import TYPE_CHECKING, cast

import click

from shellwego.cli.labels import labels_of
from shellwego.cli.session import F

if TYPE_CHECKING:
    from shellwego.client.generated import ConfigBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What the user said of it; None: nothing."""

    region: str | None
    zone: str | None
    require: dict[str, str] | None
    tolerate: dict[str, str] | None
    spread: str | None
    priority: int | None

    def put_into(self, config: ConfigBody) -> None:
        """Have the config say it; what the user said nothing of stays there as it is."""
        from shellwego.client.generated import PlacementBody  # noqa: PLC0415

        said = {name: value for name, value in asdict(self).items() if value is not None}
        if said and not isinstance(config.placement, PlacementBody):
            config.placement = PlacementBody()
        for name, value in said.items():
            setattr(config.placement, name, value)


def where_of(config: ConfigBody) -> Where:
    """What a config says of it."""
    from shellwego.client.generated import PlacementBody  # noqa: PLC0415

    said = config.placement if isinstance(config.placement, PlacementBody) else PlacementBody()
    return Where(
        region=said.region,
        zone=said.zone,
        require=said.require,
        tolerate=said.tolerate,
        spread=said.spread,
        priority=said.priority,
    )


def placement_options(command: F) -> F:
    """The options that say where instances may go; the command gets `where`."""

    @wraps(command)
    def placed(
        *arguments: object,
        region: str | None,
        zone: str | None,
        require: dict[str, str] | None,
        tolerate: dict[str, str] | None,
        spread: str | None,
        priority: int | None,
        **others: object,
    ) -> object:
        where = Where(region=region, zone=zone, require=require, tolerate=tolerate, spread=spread, priority=priority)
        return command(*arguments, where=where, **others)

    decorated = cast("F", placed)
    for option in _OPTIONS:
        decorated = option(decorated)
    return decorated


def _labels(_context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str] | None:
    """None where nothing was said; an empty text says that no label is asked for."""
    return labels_of(filter(None, pairs), str(option.metavar)) if pairs else None


_OPTIONS = (
    click.option(
        "--priority",
        type=click.IntRange(0, 100),
        help="Instances of apps with a priority lower by 10 or more may be evicted where no node fits. [50]",
    ),
    click.option(
        "--spread",
        type=click.Choice(["zone", "node", "none"]),
        help="What instances are kept apart by; none: they go to as few nodes as have room. [zone]",
    ),
    click.option(
        "--tolerate",
        multiple=True,
        metavar="TAINT=VALUE",
        callback=_labels,
        help='A taint that nodes may have (their label taint/TAINT=VALUE); repeatable. "" for none any more.',
    ),
    click.option(
        "--require",
        multiple=True,
        metavar="LABEL=VALUE",
        callback=_labels,
        help='A label that nodes must have; repeatable. "" for none any more.',
    ),
    click.option("--zone", metavar="ZONE", help='The zone that nodes must be in; "" for any.'),
    click.option("--region", metavar="REGION", help='The region that nodes must be in; "" for any.'),
)
