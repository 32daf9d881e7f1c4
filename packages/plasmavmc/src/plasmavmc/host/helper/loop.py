"""The helper's life: one request at a time, from one client, until the client's end.

Theory. One thread, no event loop. `poll` waits for a request and for the end of VMMs and seats, which are our children: each
is reaped at once, so that no zombie looks like a VM, and its code is kept until it is asked for. When the connection ends,
so does this loop; VMMs stay, inherited by init.

A request is decoded into one of the known types, done, and answered. A refusal is answered, and logged where the log takes
it at once. A message that is no request ends the helper: its client is our own code, or no longer ours.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from plasmavmc.errors import PlasmaError
from plasmavmc.host import protocol
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.helper.service import Answer, Helper
from plasmavmc.host.signals import wait_readable

Wait = Callable[[Iterable[int]], set[int]]
"""Waits until at least one descriptor can be read, and returns those."""

_MESSAGE_BYTES = 2000
"""Of a message on stderr: less than a pipe that can be written to takes at once (PIPE_BUF; pipe(7))."""


def run_helper(configuration: HelperConfiguration, connection: socket.socket, wait: Wait = wait_readable) -> None:
    """Be the helper of an installation until the client has closed the connection; `wait` passes signals on meanwhile.

    Raises:
        HostError: it cannot start.
        ProtocolError: the client is not ours.
    """
    _seal_descriptors()
    helper = Helper(configuration)
    try:
        serve(helper, connection, wait)
    finally:
        helper.close()


def _seal_descriptors() -> None:
    """Let no VMM inherit what the helper's starter left open."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are numbers here
        with suppress(OSError):  # the descriptor of this very listing
            if int(name) > 2:
                os.set_inheritable(int(name), False)


def serve(helper: Helper, connection: socket.socket, wait: Wait) -> None:
    """Answer requests until the client has closed the connection."""
    assembler = protocol.Assembler()
    try:
        while True:
            _wait(helper, connection, wait)
            packet, fds = protocol.receive_packet(connection)
            if not packet:
                return
            message = assembler.add(packet, fds)
            if message is not None:
                _handle(helper, connection, message)
    finally:
        assembler.discard()


def _wait(helper: Helper, connection: socket.socket, wait: Wait) -> None:
    """Return when there is something to receive; reap meanwhile."""
    while True:
        ready = wait((connection.fileno(), *helper.watched))
        if ready - {connection.fileno()}:
            helper.collect()
        if connection.fileno() in ready:
            return


def _handle(helper: Helper, connection: socket.socket, message: protocol.Message) -> None:
    answer = Answer()
    try:
        answer = helper.answer(protocol.decode_request(message.data), message.fds)
        reply = protocol.Reply(value=msgspec.Raw(protocol.encode(answer.value)))
    except PlasmaError as error:
        if error.code == "helper-refused":
            _log(f"plasmavmc helper: {error}")
        reply = protocol.Reply(
            protocol.Failure(error.code, error.brief, error.details, error.resolution, temporary=error.temporary)
        )
    except protocol.ProtocolError:
        raise
    except OSError as error:
        reply = protocol.Reply(protocol.Failure("host-error", f"the host refused: {error}"))
    except Exception as error:  # noqa: BLE001 - one request that meets a defect must not end all the others
        _log(traceback.format_exc())
        reply = protocol.Reply(protocol.Failure("helper-defect", f"the root helper failed: {type(error).__name__}"))
    finally:
        protocol.close_all(message.fds)
    try:
        _send(connection, protocol.encode(reply), answer.fds)
    finally:
        protocol.close_all(answer.fds)


def _send(connection: socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    first, *rest = protocol.packets_of(data)
    with suppress(BrokenPipeError, ConnectionResetError):  # the client has gone: the next read says so
        socket.send_fds(connection, [first], fds)
        for packet in rest:
            connection.send(packet)


def _log(complaint: str) -> None:
    """Tell of something on stderr, where that does not make us wait: who reads it may have stopped, and a client that was
    taken over could fill it at will."""
    if select.select([], [sys.stderr], [], 0)[1]:
        os.write(sys.stderr.fileno(), complaint.rstrip().encode(errors="backslashreplace")[-_MESSAGE_BYTES:] + b"\n")
