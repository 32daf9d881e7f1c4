"""What an engine does from time to time as long as it runs: rules put back, old logs and images removed, names answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

import structlog

from plasmavmc.errors import PlasmaError
from plasmavmc.images.store import ImageStore
from plasmavmc.manager import VmManager
from plasmavmc.network.backend import NetworkBackend
from plasmavmc.parts import EngineParts

HEAL_EVERY_S = 5.0
"""How long a node may be without its rules where others take them away."""
COLLECT_EVERY_S = 600.0
SWEEP_EVERY_S = 600.0

Upkeep = Callable[[], Coroutine[None, None, None]]
"""Does for ever what has to be done from time to time; to be run beside."""

log = structlog.get_logger("plasmavmc.upkeep")


async def keep_up(manager: VmManager, parts: EngineParts, image_budget: int, resolver: Upkeep) -> None:
    """All that has to be done from time to time, for ever. Of one part's failure another hears nothing."""
    async with asyncio.TaskGroup() as group:
        group.create_task(for_ever("resolver", resolver), name="resolver")
        group.create_task(for_ever("rules", partial(keep_whole, parts.network)), name="rules")
        group.create_task(for_ever("logs", partial(keep_swept, manager)), name="logs")
        if image_budget:
            group.create_task(for_ever("images", partial(keep_within, parts.images, image_budget)), name="images")


async def for_ever(name: str, upkeep: Upkeep) -> None:
    """Begin anew what fails in a way that it does not know of: nobody else would."""
    while True:
        try:
            await upkeep()
        except Exception:  # whatever it is, what others took away must be put back
            log.exception("upkeep.failed", part=name)
        await asyncio.sleep(HEAL_EVERY_S)


async def keep_whole(network: NetworkBackend) -> None:
    """Put the firewall's rules back where others of this host took them away, and tunnels that have ended, for ever."""
    while True:
        await asyncio.sleep(HEAL_EVERY_S)
        try:
            if missing := await network.heal():
                log.warning("network.rules_put_back", reason=missing)
        except PlasmaError as error:
            log.error("network.rules_missing", reason=str(error))
        try:
            await network.heal_tunnels()
        except PlasmaError as error:
            log.error("network.tunnels_missing", reason=str(error))


async def keep_swept(manager: VmManager) -> None:
    """Remove the logs of VMs that ended long ago, for ever."""
    told = False
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        try:
            removed = await manager.sweep_logs()
        except Exception as error:  # noqa: BLE001 - logs that stay are no reason to end what else is kept up
            if not told:
                log.warning("logs.not_swept", reason=str(error))
            told = True
        else:
            told = False
            if removed:
                log.info("logs.swept", logs=removed)


async def keep_within(images: ImageStore, budget_bytes: int) -> None:
    """Keep built images within a budget, for ever. Those that VMs run from stay, and those that were just built."""
    while True:
        try:
            if won := await images.collect(budget_bytes):
                log.info("images.collected", bytes=won)
        except (PlasmaError, OSError) as error:  # the disk may be better the next time
            log.warning("images.not_collected", reason=str(error))
        await asyncio.sleep(COLLECT_EVERY_S)
