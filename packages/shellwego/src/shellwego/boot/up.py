"""`swg up`: the whole platform on this machine.

The order matters. As root: check the host, open the installation, write the caller's context, then split: the parent keeps
root and is the helper from there on, the child drops to the user `shellwego` and only then imports and starts the platform.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shellwego.boot.configfile import OTHER_TABLES, config_file_values
from shellwego.boot.databaseurl import one_database
from shellwego.boot.settings import UpSettings
from shellwego.boot.settingschecks import check
from shellwego.core.errors import InvalidError, ShellWeGoError
from shellwego.core.quantities import parse_size

if TYPE_CHECKING:
    from shellwego.boot.controlplane import Handover
    from shellwego.boot.preflight import Installation, Listener, PublishSite

F = TypeVar("F", bound=Callable[..., Any])
FAILED, USAGE = 1, 2
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class UpFailure(click.ClickException):
    """The platform did not start: what, and what to do."""

    def __init__(self, error: ShellWeGoError) -> None:
        super().__init__(error.message + (f"\n  → {error.resolution}" if error.resolution else ""))
        self.exit_code = USAGE if isinstance(error, InvalidError) else FAILED  # type: ignore[misc]  # click reads the instance


_CONTROL_PLANE = (
    click.option("--data-dir", type=click.Path(), help="Where everything is kept. [/var/lib/shellwego]"),
    click.option("--api-port", type=int, help="Port of the API. [7080]"),
    click.option(
        "--api-listen", metavar="ADDRESS", help="Address of the API; elsewhere than on loopback it needs TLS."
    ),
    click.option("--api-cert", type=click.Path(exists=True), help="The API's certificate (PEM), also for gRPC."),
    click.option("--api-key", type=click.Path(exists=True), help="The API's private key (PEM)."),
    click.option("--grpc-port", type=int, help="Port of the engine's gRPC services over the platform. [none]"),
    click.option("--grpc-listen", metavar="ADDRESS", help="Their address; elsewhere than on loopback they need TLS."),
    click.option("--node-port", type=int, help="Port for agents and edges of other hosts. [none; usually 7081]"),
    click.option("--node-listen", metavar="ADDRESS", help="Its address. [127.0.0.1]"),
    click.option(
        "--node-url", "node_urls", multiple=True, metavar="URL", help="Where other hosts reach it. [this host]"
    ),
    click.option("--registry-auth", type=click.Path(), help="Logins for registries, as docker login writes."),
    click.option("--database-url-file", metavar="FILE", help="File with the URL of a PostgreSQL database. [SQLite]"),
    click.option(
        "--bus-authority-file", type=click.Path(), help="Hints go over NATS; from swg bus init. [this process]"
    ),
    click.option(
        "--bus-node-passes", is_flag=True, default=None, help="Nodes and edges listen on that bus themselves."
    ),
    click.option("--master-passphrase-file", type=click.Path(), help="Seals the master keys of secrets. [unsealed]"),
    click.option("--master-keys-file", type=click.Path(), help="The master keys, kept outside the data directory."),
    click.option("--domain", help="Apps appear as <app>.<domain>. [localhost]"),
    click.option(
        "--shutdown-delay", type=int, metavar="SECONDS", help="Not ready for so long before it ends. [0; server: 5]"
    ),
    click.option("--rotate-keys", type=int, metavar="HOURS", help="Nodes with wireguard change keys so often. [24]"),
    click.option("--open-organizations", is_flag=True, default=None, help="Let every user make organizations."),
)
"""Options of every process that is a control plane."""


_NODE = (
    click.option(
        "--address", metavar="IP", help="By which other hosts reach this one. [as its node port, or its way to servers]"
    ),
    click.option(
        "--underlay",
        metavar="KIND",
        help="How others send to VMs here: plain (all hosts on one link), vxlan, or wireguard (encrypted). [plain]",
    ),
    click.option("--wireguard-port", type=int, metavar="N", help="With wireguard: UDP ports N and N+1. [7084]"),
    click.option(
        "--connections-per-vm",
        type=int,
        metavar="N",
        help="Connections that one microVM may have open. [1/64 of what the host can track]",
    ),
    click.option("--image-budget", metavar="SIZE", help="Built images beyond it go, the longest unused first. [never]"),
    click.option("--zfs", metavar="DATASET", help="Keep volumes below this ZFS dataset. [in the data directory]"),
    click.option(
        "--preboot", type=int, metavar="N", help="Boot up to N guests ahead; new microVMs begin as copies. [0]"
    ),
    click.option("--cpu-overcommit", type=int, metavar="N", help="Promise the host's CPUs N times over. [16]"),
    click.option(
        "--disk-overcommit", type=int, metavar="N", help="Promise its disk N times over; it is filled as used. [8]"
    ),
    click.option("--reserve-memory", metavar="SIZE", help="Memory of the host that VMs do not get. [0]"),
)
"""Options of every process that runs VMs."""


def control_plane_options(command: F) -> F:
    """Give a command the options of a control plane."""
    return _with(command, _CONTROL_PLANE)


def node_options(command: F) -> F:
    """Give a command the options of a node."""
    return _with(command, _NODE)


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@control_plane_options
@click.option("--http-port", type=int, help="Port of the edge, where apps are reached. [80]")
@click.option("--http-listen", metavar="ADDRESS", help="Address of the edge. [127.0.0.1 on localhost, else all]")
@node_options
@click.option("--keep-vms", is_flag=True, default=None, help="Leave VMs and the edge running when the platform ends.")
def up(**flags: Any) -> None:
    """Run the whole platform on this machine, in the foreground.

    SIGTERM ends it: VMs are stopped gracefully, or left running with --keep-vms. Each option can also be set in the
    environment (SHELLWEGO_HTTP_PORT, ...) or in /etc/shellwego/config.toml, table [up]. The URL of a PostgreSQL database,
    which may hold a password, is never given as an option: SHELLWEGO_DATABASE_URL, a file, or table [database], url.
    """
    try:
        sys.exit(_up(up_settings(flags)))
    except ShellWeGoError as error:
        raise UpFailure(error) from error


def up_settings(flags: Mapping[str, Any], defaults: Mapping[str, object] | None = None) -> UpSettings:
    """The settings of this host: flags (None: not given), environment, configuration file, defaults, of which a command may
    have its own.

    Raises:
        InvalidError: one does not fit, naming it.
    """
    return _settings(defaults or {}, config_file_values(), _environment(), _given(flags))


def settings_elsewhere(flags: Mapping[str, Any], defaults: Mapping[str, object]) -> UpSettings | None:
    """The settings of a start with these flags that is not ours: the environment of who asks has no part in it. None where
    root alone reads the configuration file, which may add what the flags lack: then each flag is looked at by itself.

    Raises:
        InvalidError: one does not fit, naming it.
    """
    try:
        return _settings(defaults, config_file_values(), _given(flags))
    except InvalidError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        for name, value in _given(flags).items():
            _typed(name, value)
        return None


def _given(flags: Mapping[str, Any]) -> dict[str, object]:
    return {name: value for name, value in flags.items() if value not in (None, ())}


def _settings(*layers: Mapping[str, object]) -> UpSettings:
    values = one_database(*layers)
    known = UpSettings.__dataclass_fields__
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InvalidError("unknown-setting", f"unknown settings: {', '.join(unknown)}")
    settings = UpSettings(**{name: _typed(name, value) for name, value in values.items()})
    check(settings)
    return settings


def _environment() -> dict[str, object]:
    names = {f"SHELLWEGO_{name.upper()}": name for name in UpSettings.__dataclass_fields__}
    return {names[key]: value for key, value in os.environ.items() if key in names}


def _typed(name: str, value: object) -> Any:
    """A setting in its own type, whether it came from a flag, the environment or the file."""
    kind = str(UpSettings.__dataclass_fields__[name].type)
    try:
        if kind.startswith("Path"):
            return _path(str(value))
        if kind == "ByteCount":
            return parse_size(str(value))
        if kind == "int":
            return int(str(value))
        if kind == "bool":
            return value if isinstance(value, bool) else _switch(str(value))
        if kind.startswith("tuple"):
            return tuple(value.split(",")) if isinstance(value, str) else tuple(str(item) for item in _listed(value))
    except ValueError:
        form = _FORMS[kind.partition("[")[0].split()[0]]
        words = f"{_said(name)}, or SHELLWEGO_{name.upper()}: {value!r:.60} is {form}"
        raise InvalidError("invalid-setting", words) from None
    return str(value)


_FORMS = {
    "Path": "no path",
    "ByteCount": "no size; write 512mb or 20gb",
    "int": "no whole number",
    "bool": "neither true nor false",
    "tuple": "no list",
}
"""What a value is not that does not fit, by the type of its setting."""


def _said(name: str) -> str:
    """How a setting is given: as an option, or in its table."""
    option = next((parameter.opts[0] for parameter in up.params if parameter.name == name), "")
    table, _, rest = name.partition("_")
    return option or (f"{rest}, table [{table}]" if table in OTHER_TABLES else name)


def _path(text: str) -> Path:
    if not text:
        raise ValueError(text)  # Path would take it for the working directory
    return Path(text)


def _switch(text: str) -> bool:
    if text.lower() not in (*_ON, *_OFF):
        raise ValueError(text)
    return text.lower() in _ON


def _listed(value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(value)
    return list(value)


def _close_inherited() -> None:
    """Close what our starter left open, such as the lock of a flock(1), which would be held as long as we live."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are numbers here
        with suppress(OSError):  # the descriptor of this very listing
            if int(name) > 2:
                os.close(int(name))


def begin_as_root(programs: Sequence[str]) -> None:
    """What comes first in each process that is started by root.

    Raises:
        PreflightError: this is not root, its user is missing, or a program is.
    """
    _close_inherited()
    from shellwego.boot import preflight  # noqa: PLC0415 - needed by a real start only

    preflight.check_root()
    preflight.check_user()
    preflight.check_programs(programs)


def drop_root(
    installation: Installation, *listeners: Listener, zfs: str = "", publish: PublishSite | None = None
) -> int:
    """Leave root to the helper, which may open these sockets, use this dataset and send what comes in at these ports to VMs.
    Returns, in the unprivileged child, the way to it."""
    from plasmavmc.host.split import split  # noqa: PLC0415 - needed by a real start only
    from shellwego.boot import preflight  # noqa: PLC0415
    from shellwego.boot.limits import forbid_core_dumps, raise_file_limit  # noqa: PLC0415

    raise_file_limit()
    forbid_core_dumps()
    site = publish or preflight.NOTHING_PUBLISHED
    return split(preflight.helper_configuration(installation, *listeners, zfs=zfs, publish=site))


def read_control_plane(settings: UpSettings, installation: Installation) -> Callable[[int], Handover]:
    """Read, as root, all that a control plane needs and its user may not read; what makes the handover of it, once the way
    to the helper is there.

    Raises:
        PreflightError, InvalidError: something of it cannot be had.
    """
    from shellwego.boot import preflight  # noqa: PLC0415
    from shellwego.boot.bus import read_authority  # noqa: PLC0415
    from shellwego.boot.credentials import admin_token, write_contexts  # noqa: PLC0415
    from shellwego.boot.databaseurl import read_url  # noqa: PLC0415
    from shellwego.boot.masterkeys import read_source  # noqa: PLC0415
    from shellwego.boot.registries import read_logins  # noqa: PLC0415
    from shellwego.boot.repository import read_repository  # noqa: PLC0415

    preflight.check_tls(settings)
    database = read_url(settings)
    os.environ.pop("SHELLWEGO_DATABASE_URL", None)  # what is started from here has no business with it
    logins = read_logins(settings.registry_auth)
    master_key = read_source(settings)
    bus = read_authority(settings)
    repository = read_repository(settings)
    token = admin_token(installation)
    context = write_contexts(settings, installation, token)

    def handover(link: int) -> Handover:
        from shellwego.boot.controlplane import Handover  # noqa: PLC0415 - for the unprivileged child only

        return Handover(link, token, context, logins, master_key, database, bus, repository)

    return handover


def _up(settings: UpSettings) -> int:
    from shellwego.boot import preflight  # noqa: PLC0415 - needed by a real start only

    begin_as_root(preflight.PROGRAMS)
    preflight.check_cache(settings.cache)
    preflight.check_zfs(settings.zfs)
    preflight.check_underlay(settings.underlay)
    installation = preflight.open_installation(settings)
    preflight.check_reach(settings, installation)
    preflight.check_ports(settings, installation)
    handover = read_control_plane(settings, installation)
    listeners = (preflight.edge_listener(settings), *preflight.server_listeners(settings))
    link = drop_root(installation, *listeners, zfs=settings.zfs, publish=preflight.publish_site(settings))

    from shellwego.boot.platform import run_platform  # noqa: PLC0415 - for the unprivileged child only

    return run_platform(settings, installation, handover(link))
