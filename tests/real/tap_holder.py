"""Stands for Firecracker's jailer where only a VMM's network is of interest: it becomes the VM's uid, opens the tap of its
jail by name as a VMM would, and hands the descriptor to whoever connects to `tap.sock` in the jail's directory for sockets.

Run by the distribution's own Python, as a program of root's.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import struct
from pathlib import Path

TAP = b"tap0"
SOCKET = "tap.sock"


def main() -> None:
    os.closerange(3, 256)
    parser = argparse.ArgumentParser()
    for option in ("--id", "--exec-file", "--chroot-base-dir"):
        parser.add_argument(option, required=True)
    parser.add_argument("--uid", type=int, required=True)
    told, _ = parser.parse_known_args()
    os.chdir(Path(told.chroot_base_dir) / Path(told.exec_file).name / told.id / "root" / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)
    listener.listen()
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    os.setgroups([])
    os.setresgid(told.uid, told.uid, told.uid)
    os.setresuid(told.uid, told.uid, told.uid)
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", TAP, 0x0002 | 0x1000 | 0x4000))
    while True:
        asking, _ = listener.accept()
        with asking:
            socket.send_fds(asking, [b"x"], [tap])


if __name__ == "__main__":
    main()
