"""The words by which a program that is WireGuard is configured: lines of `name=value`, an empty line at the end. Pure, but
for the conversation itself.

Trap: numbers of errors are those of errno(3), of either sign.

Source: https://www.wireguard.com/xplatform/ (Configuration Protocol).
"""

from __future__ import annotations

import os
import socket
from base64 import b64decode, b64encode
from collections.abc import Iterator
from errno import EADDRINUSE
from pathlib import Path

from plasmavmc.errors import HostError
from plasmavmc.host.helper.wireguard_device import KEEPALIVE_S, KEY_BYTES, Change, End, Sight

ANSWER_S = 5.0
MAX_ANSWER = 4 << 20
"""Bytes; a thousand ends take a quarter of it."""
LOOK = "get=1\n\n"
_END = b"\n\n"
_NANO = 1e-9


def words_of(change: Change) -> str:
    """The order that makes a change."""
    return "".join(f"{line}\n" for line in ("set=1", *_lines(change), ""))


def _lines(change: Change) -> Iterator[str]:
    if change.private_key:
        yield f"private_key={_hex(change.private_key)}"
    if change.port:
        yield f"listen_port={change.port}"
    for key in change.gone:
        yield f"public_key={_hex(key)}"
        yield "remove=true"
    for key, end in change.ends.items():
        yield f"public_key={_hex(key)}"
        yield from _end_lines(end)


def _end_lines(end: End) -> Iterator[str]:
    yield f"endpoint={end.address}:{end.port}"
    yield f"persistent_keepalive_interval={KEEPALIVE_S}"
    yield "replace_allowed_ips=true"
    for network in end.networks:
        yield f"allowed_ip={network}"


def sight_of(answer: str) -> Sight:
    """What an answer to `LOOK` tells.

    Raises:
        HostError: `wireguard-answer`, it is none.
    """
    private, port, end = "", 0, ""
    handshakes: dict[str, float] = {}
    try:
        for line in answer.splitlines():
            name, _, value = line.partition("=")
            match name:
                case "private_key":
                    private = _base64(value)
                case "listen_port":
                    port = int(value)
                case "public_key":
                    end = _base64(value)
                    handshakes[end] = 0.0
                case "last_handshake_time_sec":
                    handshakes[end] += int(value)
                case "last_handshake_time_nsec":
                    handshakes[end] += int(value) * _NANO
                case _:
                    pass
    except (ValueError, KeyError) as error:
        raise _senseless() from error
    return Sight(private, port, handshakes)


def converse(path: Path, order: str) -> str:
    """Give an order over a socket; the answer's lines, without its end.

    Raises:
        HostError: `port-taken`; `wireguard-refused`, with the error's name; `wireguard-silent`, nobody answered.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(path))
            connection.sendall(order.encode())
            answer = _read(connection)
    except OSError as error:
        raise HostError("wireguard-silent", f"wireguard-go does not answer: {error}") from error
    lines, _, status = answer.rpartition("errno=")
    if status.lstrip("-").isdecimal() and len(status) < KEY_BYTES:
        number = abs(int(status))
        if number == 0:
            return lines
        if number == EADDRINUSE:
            raise port_taken()
        raise HostError("wireguard-refused", f"wireguard-go refused an order: {os.strerror(number)}")
    raise _senseless()


def port_taken(port: int = 0) -> HostError:
    """WireGuard cannot listen where it was to."""
    return HostError(
        "port-taken",
        f"the UDP port{f' {port}' if port else 's'} for WireGuard is in use on this host",
        resolution="See who holds it (ss -lunp), or choose others: --wireguard-port",
    )


def _read(connection: socket.socket) -> str:
    answer = bytearray()
    while not answer.endswith(_END):
        more = connection.recv(1 << 16)
        if not more or len(answer) > MAX_ANSWER:
            raise _senseless()
        answer += more
    return answer.decode(errors="replace").strip()


def _senseless() -> HostError:
    return HostError("wireguard-answer", "wireguard-go says what nobody can read")


def _hex(key: str) -> str:
    return b64decode(key).hex()


def _base64(text: str) -> str:
    raw = bytes.fromhex(text)
    if len(raw) != KEY_BYTES:
        raise ValueError(text)
    return b64encode(raw).decode()
