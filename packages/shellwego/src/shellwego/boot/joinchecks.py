"""What is looked at before a host joins. Each finding has its remedy; nothing here changes the host."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

from shellwego.boot import preflight
from shellwego.boot.findings import Finding, fail, ok, warn
from shellwego.boot.hostchecks import acceleration, asked, cgroups, disk
from shellwego.boot.joincall import Address, clock_ahead_s, find_authority
from shellwego.boot.nodedir import has_joined
from shellwego.boot.settings import UpSettings
from shellwego.core.errors import ShellWeGoError
from shellwego.core.joins import MemberKind
from shellwego.drivers.engine.host import installation

MAX_SKEW_S = 30.0
"""Certificates and leases bear more; logs of several hosts are hard to read beyond it."""
_KNOWN_KERNEL = (6, 1)


def check_this_host(kind: MemberKind, directory: Path, data_dir: Path, settings: UpSettings) -> list[Finding]:
    """All that is about this host alone; `settings` as those of the agent, or the edge, that it is to run."""
    found = [_root(), _fresh(directory), _kernel(platform.release())]
    edge = kind is MemberKind.EDGE
    programs = preflight.EDGE_PROGRAMS if edge else preflight.NODE_PROGRAMS
    found.append(asked("user", preflight.check_user, f"{installation.USER} exists"))
    found.append(asked("programs", lambda: preflight.check_programs(programs), ", ".join(programs)))
    found += [_http_port(settings)] if edge else _of_a_node(settings.cache)
    return [*found, cgroups(), disk(data_dir)]


def check_server(address: Address, fingerprint: str, now: Callable[[], float] = time.time) -> tuple[list[Finding], str]:
    """Whether the platform is reached, and agrees on the time; and its authority's certificate, empty where it is not."""
    try:
        authority = find_authority(address, fingerprint)
        ahead = clock_ahead_s(address, authority, now)
    except ShellWeGoError as error:
        return [fail("platform", error.message, error.resolution)], ""
    return [ok("platform", f"{address.url} is a server of it"), _clock(ahead)], authority


def _http_port(settings: UpSettings) -> Finding:
    listener = preflight.edge_listener(settings)

    def look() -> None:
        if not preflight.kept_edge(settings.data_dir):
            preflight.check_port("--http-listen", "--http-port", listener.address, listener.port)

    return asked("ports", look, f"port {listener.port} is free, or its own edge has it")


def _of_a_node(cache: Path) -> list[Finding]:
    guest = asked("guest", lambda: preflight.check_cache(cache), f"kernel and init are in {cache}")
    return [guest, acceleration(cache), ok("ports", "none is needed: the agent dials")]


def _root() -> Finding:
    if os.geteuid() == 0:
        return ok("root", "this is root")
    return fail("root", "only root may make this host a node", "Run it with sudo.")


def _fresh(directory: Path) -> Finding:
    try:
        joined = has_joined(directory)
    except OSError as error:
        return fail("joined", f"{directory}: {error.strerror}", "As root: swg nodes join")
    if joined:
        remedy = f"Remove it on the platform (swg nodes rm), then {directory} here; or give another --dir."
        return fail("joined", f"this host has joined already: {directory}", remedy)
    return ok("joined", "this host has not joined yet")


def _kernel(release: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) >= _KNOWN_KERNEL:
        return ok("kernel", release)
    least = ".".join(map(str, _KNOWN_KERNEL))
    return warn("kernel", f"{release} is older than what was tried ({least})", "See docs/support-matrix.md.")


def _clock(ahead_s: float) -> Finding:
    side = "ahead of" if ahead_s > 0 else "behind"
    text = f"{abs(ahead_s):.0f} s {side} the server's" if abs(ahead_s) >= 1 else "as the server's"
    if abs(ahead_s) > MAX_SKEW_S:
        return fail("clock", f"this host's clock is {text}", "timedatectl set-ntp true, here or there")
    return ok("clock", text)
