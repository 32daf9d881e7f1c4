"""A filter of system calls for `wireguard-go`, which lets it run without any privilege.

Theory. The program sets the MTU of its device as the first thing, and ends where it may not: that would take CAP_NET_ADMIN
over the whole host's network. The helper has set the MTU already. So the one call (`ioctl`, SIOCSIFMTU) is answered with
success and never made. Besides, it need not and may not connect to anything: it runs in the host's network, where services
listen on loopback.

What is of another architecture than the program's, whose calls have other numbers, ends it.

Source: seccomp(2) (SECCOMP_RET_ERRNO with an errno of 0 answers a call with success), netdevice(7),
linux/filter.h, linux/audit.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from errno import EACCES

from plasmavmc.host.architecture import MACHINE, SYSTEM_CALLS, SystemCalls

SIOCSIFMTU = 0x8922
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _ANSWER = 0x20, 0x15, 0x35, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K."""
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24
"""Offsets in struct seccomp_data; of the argument its lower half, as both architectures have it first."""
ALLOWED, KILLED, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_OTHER_ABI = 0x40000000
"""Calls of another ABI of the same processor have this bit in their number."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


Instruction = tuple[int, int, int, int]
"""Code, how many to skip where it holds and where not, operand."""


def tunnel_filter(calls: SystemCalls) -> list[Instruction]:
    """The filter, as the kernel's classic BPF."""
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 0, 9, calls.audit),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 7, 0, _OTHER_ABI),
        (_IF_EQUAL, 3, 0, calls.connect),
        (_IF_EQUAL, 0, 4, calls.ioctl),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_IF_EQUAL, 1, 2, SIOCSIFMTU),
        (_ANSWER, 0, 0, ERRNO | EACCES),
        (_ANSWER, 0, 0, ERRNO),
        (_ANSWER, 0, 0, ALLOWED),
        (_ANSWER, 0, 0, KILLED),
    ]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(instructions: Sequence[Instruction]) -> None:
    """Have this process, and what it becomes, filtered for good.

    Raises:
        OSError: the kernel refused.
    """
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def own_calls() -> SystemCalls:
    """This host's.

    Raises:
        OSError: its architecture is not known.
    """
    if SYSTEM_CALLS is None:
        raise OSError(0, f"seccomp: no system calls are known for {MACHINE}")
    return SYSTEM_CALLS
