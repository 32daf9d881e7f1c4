"""Text of the command line to the engine's values. Pure, but for environment files. Errors name the option at fault."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plasmavmc.cli.ends import USAGE, Failure

if TYPE_CHECKING:
    from plasmavmc.policy import Destination, IpProtocol, Opening
    from plasmavmc.types import PublishedPort

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PORTS = re.compile(r"(?:(?P<address>[^:]+):)?(?:(?P<host>[0-9]+):)(?P<guest>[0-9]+)(?:/(?P<protocol>[a-z]+))?")
_PORTS_OF = r"(?::(?P<first>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?)?(?:/(?P<protocol>[a-z]+))?"
_DESTINATION = re.compile(rf"(?P<network>[0-9.]+(?:/[0-9]+)?){_PORTS_OF}")
_OPENING = re.compile(rf"(?P<identity>\*|[a-z0-9_-]{{1,64}}){_PORTS_OF}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_MAX_PORT = 65_535


def refused(option: str, value: str, why: str) -> Failure:
    """The end of a command for a value that makes no sense."""
    return Failure(f"{option} {value[:100]!r}: {why}", code=USAGE)


class Size(click.ParamType[int]):
    """Bytes: `512m`, `1.5g`, `2GiB`; a bare number is bytes."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value[:40]!r} is no size; write 512m or 2g", param, ctx)
        count = int(float(match[1]) * _UNITS[match[2].lower()])
        if not (match[2] or match[3]) and count < _UNITS["m"]:
            self.fail(f"{value} is a number of bytes; write {value}m or {value}g", param, ctx)
        return count


class Cpus(click.ParamType[int]):
    """Processors, as milli-CPU: `2`, `0.5`."""

    name = "cpus"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            milli = round(float(value) * 1000)
        except (ValueError, OverflowError):
            milli = 0
        if not 10 <= milli <= 1_024_000:
            self.fail(f"{value[:40]!r} is no number of processors; write 0.5 or 2", param, ctx)
        return milli


def port(text: str) -> PublishedPort:
    """`[ADDRESS:]HOST:GUEST[/tcp]`. Without an address it is published on 127.0.0.1."""
    from plasmavmc.types import LOOPBACK, PublishedPort  # noqa: PLC0415

    if text.isdigit():
        raise refused("-p", text, f"name the host's port, too: -p 8080:{text}")
    match = _PORTS.fullmatch(text)
    if match is None:
        raise refused("-p", text, "write [ADDRESS:]HOST:GUEST, such as 8080:80 or 0.0.0.0:8080:80")
    if match["protocol"] not in (None, "tcp"):
        raise refused("-p", text, "only tcp is published")
    host, guest = int(match["host"]), int(match["guest"])
    if not (1 <= host <= _MAX_PORT and 1 <= guest <= _MAX_PORT):
        raise refused("-p", text, f"a port is 1 to {_MAX_PORT}")
    try:
        address = IPv4Address(match["address"]) if match["address"] else LOOPBACK
    except AddressValueError:
        raise refused("-p", text, f"{match['address']!r} is no IPv4 address") from None
    return PublishedPort(host, guest, address)


def egress(texts: Sequence[str]) -> tuple[Destination, ...] | None:
    """`NETWORK[:PORT[-PORT]][/PROTOCOL]` of each `--egress`; `none` alone closes all. Ports without a protocol are TCP's."""
    return None if not texts else () if list(texts) == ["none"] else tuple(map(_destination, texts))


def ingress(texts: Sequence[str]) -> tuple[Opening, ...] | None:
    """`IDENTITY[:PORT[-PORT]][/PROTOCOL]` of each `--ingress`, `*` for any VM of the network; else as `egress`."""
    return None if not texts else () if list(texts) == ["none"] else tuple(map(_opening, texts))


def _opening(text: str) -> Opening:
    from plasmavmc.policy import ANYBODY, Opening  # noqa: PLC0415

    match = _OPENING.fullmatch(text)
    if match is None:
        raise refused("--ingress", text, "write IDENTITY[:PORT[-PORT]][/PROTOCOL], such as web:5432/tcp or *, or none")
    identity = ANYBODY if match["identity"] == "*" else match["identity"]
    return Opening(identity, *_protocol_and_ports("--ingress", text, match))


def _protocol_and_ports(option: str, text: str, match: re.Match[str]) -> tuple[IpProtocol, int, int]:
    from plasmavmc.policy import LAST_PORT, IpProtocol  # noqa: PLC0415

    protocol = match["protocol"] or ("tcp" if match["first"] else "any")
    if protocol not in set(IpProtocol):
        raise refused(option, text, f"a protocol is {', '.join(IpProtocol)}")
    first = int(match["first"] or 0)
    return IpProtocol(protocol), first, int(match["last"] or first or LAST_PORT)


def _destination(text: str) -> Destination:
    from plasmavmc.policy import Destination  # noqa: PLC0415

    match = _DESTINATION.fullmatch(text)
    if match is None:
        raise refused(
            "--egress", text, "write NETWORK[:PORT[-PORT]][/PROTOCOL], such as 203.0.113.0/24:443/tcp, or none"
        )
    protocol, first, last = _protocol_and_ports("--egress", text, match)
    try:
        network = IPv4Network(match["network"])
    except ValueError as error:
        raise refused("--egress", text, f"no IPv4 network: {error}") from None
    return Destination(network, protocol, first, last)


def environment(files: Sequence[Path], pairs: Sequence[str]) -> dict[str, str]:
    """`--env-file`s in their order, then `-e`. `K` alone takes the value that this process has, or is left out."""
    found: dict[str, str] = {}
    for path in files:
        for number, line in enumerate(_lines(path), start=1):
            stripped = line.lstrip()
            if stripped and not stripped.startswith("#"):
                _add(found, stripped, f"--env-file {path}:{number}")
    for pair in pairs:
        _add(found, pair, "-e")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise Failure(f"--env-file: {path} cannot be read: {error.strerror}", code=USAGE) from error
    except UnicodeDecodeError:
        raise Failure(f"--env-file: {path} is no text (UTF-8)", code=USAGE) from None


def _add(found: dict[str, str], pair: str, where: str) -> None:
    """Errors say the name only: the value may be a secret."""
    name, equals, value = pair.partition("=")
    if not _NAME.fullmatch(name):
        raise refused(where, name, "this is no name of a variable; write NAME=VALUE")
    if equals:
        found[name] = value
    elif name in os.environ:
        found[name] = os.environ[name]


def labels(pairs: Sequence[str]) -> dict[str, str]:
    """`K=V`; `K` alone has an empty value."""
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name:
            raise refused("--label", pair, "write NAME=VALUE")
        found[name] = value
    return found


@dataclass(frozen=True, slots=True)
class Restart:
    """Whether a workload that ended is started anew; `limit` None is without end."""

    on_success: bool
    limit: int | None

    def again(self, code: int, starts: int) -> bool:
        """Whether one that ended with `code`, and was started anew so often before, is again."""
        return (code != 0 or self.on_success) and (self.limit is None or starts < self.limit)


NO_RESTART = Restart(on_success=False, limit=0)


def restart(text: str) -> Restart:
    """`no`, `on-failure[:N]`, `always`."""
    policy, colon, count = text.partition(":")
    if policy == "on-failure" and (not colon or count.isdigit()):
        return Restart(on_success=False, limit=int(count) if colon else None)
    if text == "always":
        return Restart(on_success=True, limit=None)
    if text == "no":
        return NO_RESTART
    raise refused("--restart", text, "choose no, on-failure, on-failure:N or always")


def command_words(entrypoint: str | None) -> tuple[str, ...] | None:
    """`--entrypoint`: one program, or nothing at all where it is empty."""
    if entrypoint is None:
        return None
    return (entrypoint,) if entrypoint else ()


def shown_labels(values: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" if value else name for name, value in sorted(values.items()))
