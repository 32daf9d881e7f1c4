"""The platform's bus, opened: within this process, unless an authority over one on NATS is given."""

from __future__ import annotations

import os

from shellwego.boot.settings import UpSettings
from shellwego.core.errors import InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.bus import Bus
from shellwego.ports.busaccess import BusAccess
from shellwego.ports.clock import Clock

_MOST_BYTES = 64 * 1024


def read_authority(settings: UpSettings) -> Sensitive | None:
    """The authority over the bus, read while the process is still root; None: none is named.

    Raises:
        InvalidError: the file cannot be read, or others than its owner can read it.
    """
    path = settings.bus_authority_file
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise InvalidError(
                    "exposed-bus-authority",
                    f"{path} lets others onto the bus, and can be read by others than its owner",
                    resolution=f"chmod 600 {path}",
                )
            return Sensitive(stream.read(_MOST_BYTES))
    except OSError as error:
        raise InvalidError("no-bus-authority", f"--bus-authority-file {path}: {error.strerror}") from error


def open_access(authority: Sensitive | None, clock: Clock) -> BusAccess | None:
    """What lets nodes and edges onto the bus, and shuts them out; None: there is no bus apart.

    Raises:
        InvalidError: the authority is none.
    """
    if authority is None:
        return None
    from shellwego.drivers.busaccess.authority import parse_authority  # noqa: PLC0415 - costs memory where it is not used
    from shellwego.drivers.busaccess.nats import NatsBusAccess  # noqa: PLC0415

    return NatsBusAccess(parse_authority(authority), clock)


async def open_bus(authority: Sensitive | None, clock: Clock) -> Bus:
    """Open the bus. One that does not answer is logged, and the platform starts without: loops also run on timers.

    Raises:
        InvalidError: the authority is none.
    """
    if authority is None:
        from shellwego.drivers.bus.memory import MemoryBus  # noqa: PLC0415 - the one that is used

        return MemoryBus()
    from shellwego.core.nkeys import Role  # noqa: PLC0415 - costs memory where it is not used
    from shellwego.drivers.bus.nats import NatsSite, open_nats  # noqa: PLC0415
    from shellwego.drivers.busaccess.authority import new_key, parse_authority  # noqa: PLC0415
    from shellwego.drivers.natslink import Login  # noqa: PLC0415

    found, key = parse_authority(authority), new_key(Role.USER)
    return await open_nats(
        NatsSite(
            urls=found.urls,
            certificate=found.certificate,
            login=lambda: Login(found.server_token(key, clock.now()), key),
        )
    )
