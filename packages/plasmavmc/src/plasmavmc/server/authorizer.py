"""The stand-alone server's authorizer: decides by a policy file, which is read again whenever it changes.

Whoever can write the file rules the server, so it must be root's or the server's own, and nobody else's to write. One that
becomes unreadable or wrong while the server runs changes nothing: the last good policy holds, and the log says so.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from plasmavmc.errors import HostError
from plasmavmc.rpc.access import Action, Decision, Principal, Reach, Request
from plasmavmc.server.policy import ROOT_ONLY, Policy, parse_policy

LOOK_S = 1.0
"""How often it is asked whether the file has changed, at most."""
MAX_BYTES = 1 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

log = structlog.get_logger("plasmavmc.policy")


def read_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        HostError: `bad-policy`, it cannot be read, is another's to write, or makes no sense.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check_owner(path, os.fstat(file.fileno()))
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HostError("bad-policy", f"the policy {path} cannot be read: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise HostError("bad-policy", f"the policy {path} has more than {MAX_BYTES} bytes")
    try:
        return parse_policy(text.decode())
    except UnicodeDecodeError as error:
        raise HostError("bad-policy", f"the policy {path} is not UTF-8") from error


def _check_owner(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise HostError("bad-policy", f"the policy {path} is no regular file")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_WRITE:
        raise HostError(
            "bad-policy",
            f"the policy {path} could be written by others than root and the server"
            f" ({stat.filemode(status.st_mode)}, uid {status.st_uid})",
            resolution=f"chown root {path} && chmod go-w {path}",
        )


class PolicyFile:
    """The policy that holds now. Without a path: `ROOT_ONLY`."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `HostError`: `bad-policy`."""
        self._path = path
        self._clock = clock
        self._stamp = self._look()
        self._policy = ROOT_ONLY if path is None else read_policy(path)
        self._looked = clock()

    def current(self) -> Policy:
        """The policy; read again where the file has changed."""
        if self._path is not None and self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            if self._look() != self._stamp:
                self.reload()
        return self._policy

    def reload(self) -> None:
        """Read the file again now."""
        if self._path is None:
            return
        self._stamp = self._look()
        try:
            self._policy = read_policy(self._path)
        except HostError as error:
            log.error("policy.kept", path=str(self._path), error=str(error))
        else:
            log.info("policy.read", path=str(self._path))

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = None if self._path is None else self._path.lstat()
        except OSError:
            status = None
        return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


class PolicyAuthorizer:
    """`Authorizer` by the policy that holds at each question."""

    def __init__(self, policy: PolicyFile) -> None:
        self._policy = policy

    async def authorize_all(self, principal: Principal, requests: Sequence[Request]) -> tuple[Decision, ...]:
        policy = self._policy.current()
        return tuple(policy.decide(principal, request) for request in requests)

    async def reach(self, principal: Principal, action: Action) -> Reach:
        return self._policy.current().reach(principal, action)
