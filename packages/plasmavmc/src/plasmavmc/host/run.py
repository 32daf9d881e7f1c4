"""Unprivileged, bounded child processes: `tar2sqfs`, `qemu-img`, `nft --check`.

Theory. A child gets an argument list (never a shell), a fixed PATH and locale instead of our environment, a session of
its own, and bounds: seconds of life and bytes of output. Whatever way the caller leaves (result, timeout, cancellation,
error), no process of the child's group is left behind. A child that answers with a non-zero code is not an error here:
the code is part of the answer, and only the caller knows what it means.

Trap: a grandchild that holds the output pipe keeps its reader waiting after the child ended; so the deadline covers the
reading, and the whole process group is killed, not only its leader.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.deadlines import within
from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.host.architecture import EMULATOR, EMULATOR_PACKAGE
from plasmavmc.types import MIB

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_STDERR_KEPT = 64 * 1024
_CHUNK = 64 * 1024
_LAST_WAIT_S = 5.0

PACKAGES: Mapping[str, str] = {
    "tar2sqfs": "squashfs-tools-ng",
    "sqfs2tar": "squashfs-tools-ng",
    "qemu-img": "qemu-utils",
    EMULATOR: EMULATOR_PACKAGE,
    "nft": "nftables",
    "mkfs.ext4": "e2fsprogs",
    "haproxy": "haproxy",
    "zfs": "zfsutils-linux",
    "wireguard-go": "wireguard-go",
}
"""The Debian and Ubuntu package that holds a program, for the remedy of a missing one."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a child ended. `returncode` is negative for a signal; `stderr` holds the last 64 KiB."""

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """The last line of stderr, decoded, at most 500 characters."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""


def find_program(name: str) -> str:
    """The absolute path of a program on the fixed PATH.

    Raises:
        HostError: `missing-program`, with the package to install.
    """
    found = shutil.which(name, path=PATH)
    if found is None:
        package = PACKAGES.get(name, name)
        raise HostError(
            "missing-program",
            f"the program {name} is not installed",
            details=f"looked in {PATH}",
            resolution=f"apt-get install {package}, or run scripts/setup",
        )
    return found


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes | None = None,
    max_output: int = MIB,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    heard: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run a child to its end. `env` is added to a fixed PATH and locale; nothing else is inherited. With `heard` what it
    writes to stdout is told as it comes, however much, and not kept.

    Raises:
        HostError: `missing-program`; `program-output` where stdout exceeds `max_output` bytes.
        UnavailableError: `program-timeout`, after which the child's whole process group is dead.
    """
    async with feeding(
        argv,
        timeout_s=timeout_s,
        max_output=max_output,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        input_piped=stdin is not None,
        heard=heard,
    ) as child:
        if stdin is not None:
            with suppress(HostError):  # it may end without reading all: its code tells whether that was an error
                await child.write(stdin)
        return await child.finish()


@asynccontextmanager
async def feeding(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_output: int = MIB,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    input_piped: bool = True,
    heard: Callable[[bytes], None] | None = None,
) -> AsyncIterator[Child]:
    """A child fed on stdin while the block runs: `await child.write(…)`, then `await child.finish()`.

    The deadline covers the whole block. Leaving it without `finish` kills the child.

    Raises:
        HostError, UnavailableError: as `run`; `program-ended` from `write`.
    """
    program = find_program(argv[0])
    process = await asyncio.create_subprocess_exec(
        program,
        *argv[1:],
        stdin=PIPE if input_piped else DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        cwd=cwd,
        env={"PATH": PATH, "LC_ALL": "C.UTF-8", **(env or {})},
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    child = Child(argv[0], process, max_output, heard)
    deadline = within(timeout_s)
    try:
        async with deadline:
            yield child
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise UnavailableError(
            "program-timeout", f"{argv[0]} did not end within {timeout_s:g} s", resolution="the host may be overloaded"
        ) from error
    finally:
        await child.end()


class Child:
    """A running child process; made by `feeding`.

    The readers read to the end of file whatever happens: asyncio reports a child's end only once its pipes are closed,
    so a reader that stopped early would make the wait for a killed child endless.
    """

    def __init__(
        self, name: str, process: Process, max_output: int, heard: Callable[[bytes], None] | None = None
    ) -> None:
        self._name = name
        self._process = process
        self._max_output = max_output
        self._readers = (
            asyncio.create_task(
                self._read(process.stdout, max_output) if heard is None else _tell(process.stdout, heard)
            ),
            asyncio.create_task(self._read(process.stderr, None)),
        )
        self._finished = False

    async def write(self, data: bytes) -> None:
        """Write to the child's stdin; returns when there is room for more.

        Raises:
            HostError: `program-ended`, the child stopped reading; its last words are in the details.
        """
        stdin = self._process.stdin
        if stdin is None:
            raise ValueError(f"{self._name} was started without an input")
        try:
            for start in range(0, len(data), _CHUNK):
                stdin.write(data[start : start + _CHUNK])
                await stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            completed = await self.finish()
            raise HostError(
                "program-ended",
                f"{self._name} ended with code {completed.returncode} before it had read everything",
                details=completed.complaint,
            ) from error

    async def finish(self) -> Completed:
        """Close stdin, and wait for the child and all of its output.

        Raises:
            HostError: `program-output`, it wrote more than allowed and was killed.
        """
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.wait(self._readers)  # unlike gather, it leaves the readers alone when we are cancelled
        returncode = await self._process.wait()
        self._finished = True
        stdout, stderr = (reader.result() for reader in self._readers)
        if len(stdout) > self._max_output:
            raise HostError("program-output", f"{self._name} wrote more than {self._max_output} bytes of output")
        return Completed(returncode, stdout, stderr)

    async def end(self) -> None:
        """Make sure that nothing of the child's process group is left; idempotent."""
        if self._finished:
            return
        self._kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):  # only a grandchild that left the group could still hold the pipes
            async with within(_LAST_WAIT_S):
                await asyncio.wait(self._readers)
                await self._process.wait()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self, stream: asyncio.StreamReader | None, limit: int | None) -> bytes:
        """All of a stream up to just over `limit` (then the child is killed), or the last of it where there is none."""
        kept = bytearray()
        while stream is not None and (chunk := await stream.read(_CHUNK)):
            if limit is None:
                kept += chunk
                del kept[:-_STDERR_KEPT]
            elif len(kept) <= limit:
                kept += chunk
                if len(kept) > limit:
                    self._kill()
        return bytes(kept)


async def _tell(stream: asyncio.StreamReader | None, heard: Callable[[bytes], None]) -> bytes:
    while stream is not None and (chunk := await stream.read(_CHUNK)):
        heard(chunk)
    return b""
