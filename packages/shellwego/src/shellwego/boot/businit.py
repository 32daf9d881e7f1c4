"""`swg bus init`: sets up a NATS server for the platform: its configuration, certificate, and the keys to let others in."""

from __future__ import annotations

import ipaddress
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from shellwego.boot.up import UpFailure
from shellwego.core.errors import ConflictError, InvalidError, ShellWeGoError
from shellwego.drivers.files import replace_file

AUTHORITY_FILE, SERVER_DIRECTORY = "authority.json", "server"
_HOST = re.compile(r"(?=.{1,200}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_ANY = ("0.0.0.0", "::", "")  # noqa: S104 - compared only


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bus() -> None:
    """Set up the bus that carries hints between several hosts."""


@bus.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--listen",
    default="127.0.0.1:4222",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where the bus listens.",
)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME", help="Name or address that others reach it by; may be repeated."
)
def init(directory: Path, listen: str, hosts: tuple[str, ...]) -> None:
    """Write configuration and keys of a NATS server into DIRECTORY, which must be new or empty.

    DIRECTORY/server is the NATS server's own; DIRECTORY/authority.json is for the platform's servers alone: who reads it can
    let anybody onto the bus.
    """
    try:
        make_bus(directory, listen=listen, hosts=hosts, now=time.time())
    except ShellWeGoError as error:
        raise UpFailure(error) from error
    where = directory.resolve()
    click.echo(
        f"Start the bus:\n"
        f"  nats-server -c {where / SERVER_DIRECTORY / 'nats.conf'}\n"
        f"Name it to the platform, in the table [bus] of /etc/shellwego/config.toml:\n"
        f'  authority_file = "{where / AUTHORITY_FILE}"'
    )
    sys.exit(0)


def make_bus(directory: Path, *, listen: str, hosts: Sequence[str], now: float) -> None:
    """Write all that a NATS server needs, and the authority over it.

    Raises:
        InvalidError: an address or name is none, or the path cannot be written into a configuration.
        ConflictError: the directory holds something.
    """
    from shellwego.drivers.busaccess.authority import new_authority  # noqa: PLC0415 - for a real call only
    from shellwego.drivers.busaccess.natsserver import ServerFiles, self_signed, server_configuration  # noqa: PLC0415

    address, port = _parsed(listen)
    names = tuple(dict.fromkeys(_host(name) for name in (hosts or _default_hosts(address))))
    files = ServerFiles(directory.resolve() / SERVER_DIRECTORY)
    if not str(files.directory).isprintable():
        raise InvalidError("invalid-directory", "DIRECTORY: its path holds what cannot be printed")
    _make_directories(directory, files.directory)
    certificate, key = self_signed(names, now)
    urls = tuple(f"tls://{f'[{name}]' if ':' in name else name}:{port}" for name in names)
    authority = new_authority(urls, certificate.decode())
    replace_file(files.certificate, certificate)
    replace_file(files.key, key)
    replace_file(files.configuration, server_configuration(authority, files, listen, now).encode())
    replace_file(directory / AUTHORITY_FILE, authority.encoded())


def _parsed(listen: str) -> tuple[str, int]:
    address, colon, port = listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InvalidError("invalid-listen", f"--listen: {listen!r} is not ADDRESS:PORT")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise InvalidError("invalid-listen", f"--listen: {address!r} is not an address") from None
    return address, int(port)


def _default_hosts(address: str) -> tuple[str, ...]:
    if address in _ANY:
        raise InvalidError(
            "no-host", "--host: none is given", resolution="Name the host as the others reach it: --host bus.example"
        )
    return (address,)


def _host(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST.fullmatch(name.lower()):
        raise InvalidError("invalid-host", f"--host: {name!r} is neither a host name nor an address")
    return name.lower()


def _make_directories(directory: Path, server: Path) -> None:
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConflictError(
                "directory-not-empty",
                f"{directory} holds something already",
                resolution="Name a new directory; a bus that is set up is not set up again.",
            )
        server.mkdir(mode=0o700)
    except OSError as error:
        raise InvalidError("invalid-directory", f"{directory}: {error.strerror}") from error
