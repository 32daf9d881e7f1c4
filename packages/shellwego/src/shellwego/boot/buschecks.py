"""What `swg doctor` tells of the platform's bus."""

from __future__ import annotations

import asyncio
import time

from shellwego.boot.bus import read_authority
from shellwego.boot.findings import Finding, fail, ok, warn
from shellwego.boot.settings import UpSettings
from shellwego.core.errors import ShellWeGoError
from shellwego.core.sensitive import Sensitive

_CHECK = "bus"


def check_bus(settings: UpSettings) -> Finding:
    """Whether hints would reach other hosts."""
    try:
        authority = read_authority(settings)
        if authority is None:
            return ok(_CHECK, "hints stay within the platform's process")
        return asyncio.run(_look(authority))
    except ShellWeGoError as error:
        return fail(_CHECK, error.message, error.resolution)


async def _look(content: Sensitive) -> Finding:
    from shellwego.core.nkeys import Role  # noqa: PLC0415 - heavy, and not always needed
    from shellwego.drivers.busaccess.authority import new_key, parse_authority  # noqa: PLC0415
    from shellwego.drivers.natslink import TROUBLE, Login, close, connect  # noqa: PLC0415

    authority, key = parse_authority(content), new_key(Role.USER)
    login = Login(authority.server_token(key, time.time()), key)
    silent = []
    for url in authority.urls:
        try:
            client = await connect(url, authority.certificate, login)
        except TROUBLE as error:
            silent.append(f"{url}: {error or type(error).__name__}")
            continue
        try:
            await client.jetstream().account_info()
        except TROUBLE as error:
            return fail(
                _CHECK, f"{url} has no JetStream for us: {error}", "Start it with the nats.conf of swg bus init."
            )
        finally:
            await close(client)
        version = client.connected_server_version
        return ok(_CHECK, f"NATS {version.major}.{version.minor}.{version.patch}, {url}")
    return warn(_CHECK, "; ".join(silent), "Is it up? Until it is, the platform goes on by its timers, and later.")
