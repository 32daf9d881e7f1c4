"""The program of a seat: waits for a command line and descriptors, and becomes that program. See `seats`.

It is run by the bare interpreter, in the cage and as the VM's uid, from its text (`-c`): nothing of ours can be imported
there. So that a seat is ready soon and small, it keeps to what costs nothing to import.

Orders come as packets of `host.protocol`, the arguments with a NUL between them. Whatever goes wrong is told, and ends it.

Trap: Python ignores SIGPIPE and SIGXFSZ, and execve passes that on.
"""

from __future__ import annotations

import fcntl
import os
import signal
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, SCM_RIGHTS, SOL_SOCKET, socket
from array import array

PACKET_BYTES, MAX_DESCRIPTORS, ABOVE_TARGETS = 65536, 32, 128
"""As in `host.protocol` and `spawn`."""
CONNECTION, OUTPUT = 3, 4
"""Where the helper has put them."""


def wait(connection: socket, output: int) -> None:
    """Become what is ordered, if anything is."""
    connection.send(b"ready")
    arguments, descriptors = orders(connection)
    if not arguments:
        return
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sources = [os.dup(0), output, os.dup(output), *descriptors]
    for target, fd in enumerate([moved(source) for source in sources]):
        os.dup2(fd, target, inheritable=True)
    os.execve(arguments[0], arguments, {})  # noqa: S606 - no shell is what we want


def orders(connection: socket) -> tuple[list[bytes], list[int]]:
    """Arguments and descriptors; nothing where the helper has gone."""
    room = CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
    text, descriptors = b"", array("i")
    while True:
        packet, extras, flags, _ = connection.recvmsg(PACKET_BYTES, room, MSG_CMSG_CLOEXEC)
        if not packet or flags & MSG_CTRUNC:
            return [], []
        for level, kind, content in extras:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                descriptors.frombytes(content)
        text += packet[1:]
        if packet[0] == 0:
            return text.split(b"\0"), list(descriptors)


def moved(descriptor: int) -> int:
    """The same above all numbers that a program's descriptors have, to be closed by execve."""
    above = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE_TARGETS)
    os.close(descriptor)
    return above


def main() -> None:
    """Wait, become another program, or end."""
    connection, output = socket(fileno=moved(CONNECTION)), moved(OUTPUT)
    try:
        wait(connection, output)
    except Exception as error:  # noqa: BLE001 - it is told, whatever it is
        connection.send(f"{type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(127)


if __name__ == "__main__":
    main()
