"""A tenant whose texts are commands, paths, rules and templates: those that are let in are kept as they are, the others are
refused when something is made and when it is removed; and none of them is in a process' arguments or environment, in a rule
of the firewall, in HAProxy's files, or in the name of a file, a dataset, an interface or a cgroup, nor breaks it a line of
the log. Which fields let such texts in: `tests/api/test_api_words.py`."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from examples.demo.images import hello
from examples.demo.platform import Platform
from plasmavmc.types import GIB
from shellwego.edge.settings import Layout
from tests.contract.zfs_pool import command, pool
from tests.real.exec_watch import Started, watched
from tests.real.platform_harness import ask, done, fetch, scratch_platform, until

pytestmark = [pytest.mark.real, pytest.mark.nightly]

MARK = f"h0st1le{secrets.token_hex(4)}"
TRICKS = (
    f"$(touch /tmp/{MARK}) `touch /tmp/{MARK}`",
    f"; touch /tmp/{MARK} #",
    f"' || touch /tmp/{MARK} || '",
    f'" && touch /tmp/{MARK} && "',
    f"../../../../tmp/{MARK}",
    f"/etc/{MARK}\n/tmp/{MARK}",
    f"--{MARK}=/etc/shadow",
    f"{MARK}@now",
    f"{MARK}/child@",
    f'"; }} drop ruleset; table inet {MARK} {{ "',
    f"{{{{ {MARK} }}}} ${{{MARK}}} %({MARK})s {{0.__class__}} <% {MARK} %>",
    f"{MARK}\r\nX-Injected: yes",
    f"\x1b[31m{MARK}\x1b]0;{MARK}\x07\u202e",
    f"{MARK}\u202e\u0000",
)
TEXT = " ".join(TRICKS[:-1])
"""All that a text may have; `SHORT` where it has 200 characters at most."""
SHORT = TEXT[:200]
APP, VOLUME = f"a-{MARK}", f"v-{MARK}"
WITHIN = "?project=default"
"""Where the image is; a project with the words in its name stands beside."""


@pytest.fixture(scope="module")
def seen() -> Iterator[Started]:
    with watched() as started:
        yield started


@pytest.fixture(scope="module")
def platform(seen: Started) -> Iterator[Platform]:
    """With its volumes on ZFS, and a repository for backups."""
    with pool(GIB) as tank:
        command("zfs", "create", f"{tank}/volumes")
        with scratch_platform("--zfs", f"{tank}/volumes", repository=True) as made:
            yield made


def refused(platform: Platform, method: str, path: str, body: Any = None) -> None:
    status, answer = ask(platform, method, path, body)
    assert status in (400, 404, 422), (method, path, body, status, answer)


def names_of_files(platform: Platform) -> list[str]:
    """Of the platform; and where its tricks would have put something."""
    walks = (platform.data_dir.parent, Path("/run/shellwego"), Path("/sys/fs/cgroup"))
    found = [f"{at}/{name}" for place in walks for at, below, files in os.walk(place) for name in (*below, *files)]
    found += [str(path) for place in (Path("/tmp"), Path("/etc")) for path in place.iterdir()]
    return [path for path in found if MARK in path]


def told_by_host() -> str:
    """Rules, interfaces and datasets."""
    commands = (["nft", "list", "ruleset"], ["ip", "-d", "link"], ["zfs", "get", "all"])
    return "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands)


def told_to_haproxy(platform: Platform) -> str:
    """Files that it began with, and what it was told since."""
    layout = Layout(Path(f"/run/shellwego/{platform.key}/edge"))
    files = [path.read_text() for path in layout.run_dir.rglob("*") if path.is_file()]
    asked = ("show servers state", f"show map {layout.hosts_map}", f"show map {layout.pages_map}")
    return "".join((*files, *(answer_of(layout.admin_socket, line) for line in asked)))


def answer_of(address: Path, line: str) -> str:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(20)
        asking.connect(str(address))
        asking.sendall(f"{line}\n".encode())
        return asking.makefile(encoding="utf-8").read()


def broken_lines(platform: Platform) -> list[str]:
    """Of the platform's log, those in which words are, and that are not of its form or not plain to see."""
    lines = [line for line in platform.log.read_text().split("\n") if MARK in line or "X-Injected" in line]
    return [line for line in lines if not line.startswith("timestamp=") or not line.isprintable()]


def refused_at_create_and_delete(platform: Platform) -> None:
    """As the name of anything, and as what is asked for by name or id."""
    for trick in TRICKS:
        quoted = quote(trick, safe="")
        for what in ("projects", "apps", "volumes", "secrets"):
            more = {"volumes": {"size": "64m"}, "secrets": {"value": "x"}}.get(what, {})
            refused(platform, "POST", what, {"name": trick, **more})
            refused(platform, "DELETE", f"{what}/{quoted}")
        for what in ("snapshots", "backups"):
            refused(platform, "DELETE", f"volumes/{VOLUME}/{what}/{quoted}{WITHIN}")
        refused(platform, "POST", f"volumes{WITHIN}", {"name": "copy", "snapshot": trick})
        refused(platform, "POST", f"volumes/{VOLUME}/restore{WITHIN}", {"snapshot": trick, "to": trick})
        for destination in (trick, f"/{trick}"):
            refused(
                platform, "POST", f"volumes/{VOLUME}/actions/attach{WITHIN}", {"app": APP, "destination": destination}
            )
        refused(platform, "POST", f"apps/{APP}/deployments{WITHIN}", {"image": trick})


def let_in(platform: Platform) -> None:
    """As a text of the tenant's own, which is kept as it is."""
    done(platform, "POST", "projects", {"name": f"p-{MARK}"})
    env, release = {"TRICK": TEXT}, {"release_command": ["/bin/true", TEXT]}
    done(platform, "POST", f"apps{WITHIN}", {"name": APP, "env": env, "config": release})
    done(platform, "POST", f"secrets{WITHIN}", {"name": f"S_{MARK}", "value": TEXT, "description": SHORT})
    done(platform, "POST", f"volumes{WITHIN}", {"name": VOLUME, "size": "64m"})
    path = {"app": APP, "destination": f"/srv/{MARK}", "stage": True}
    done(platform, "POST", f"volumes/{VOLUME}/actions/attach{WITHIN}", path)


def deployed(platform: Platform) -> None:
    body = {"image": "hello:v1", "port": 8080, "check_path": "/healthz", "description": SHORT}
    done(platform, "POST", f"apps/{APP}/deployments{WITHIN}", body)
    until(lambda: done(platform, "GET", f"apps/{APP}{WITHIN}")["state"] in ("running", "failed"), "it is deployed")
    assert done(platform, "GET", f"apps/{APP}{WITHIN}")["state"] == "running"


def used(platform: Platform) -> None:
    """Every order for a volume, and its end."""
    at = f"volumes/{VOLUME}"
    snapshot = done(platform, "POST", f"{at}/snapshots{WITHIN}", {"description": SHORT, "freeze": True})["id"]
    settled(platform, VOLUME)
    backup = done(platform, "POST", f"{at}/backups{WITHIN}", {"description": SHORT})["id"]
    until(lambda: done(platform, "GET", f"{at}/backups/{backup}{WITHIN}")["state"] == "available", "it is backed up")
    copy = f"c-{MARK}"
    done(platform, "POST", f"{at}/restore{WITHIN}", {"snapshot": snapshot, "to": copy})
    settled(platform, copy)
    assert done(platform, "GET", f"{at}/snapshots/{snapshot}{WITHIN}")["description"] == SHORT
    assert done(platform, "GET", f"{at}/backups/{backup}{WITHIN}")["description"] == SHORT
    done(platform, "DELETE", f"volumes/{copy}{WITHIN}")
    until(lambda: ask(platform, "GET", f"volumes/{copy}{WITHIN}")[0] == 404, "the copy is gone")
    for what in (f"snapshots/{snapshot}", f"backups/{backup}"):
        done(platform, "DELETE", f"{at}/{what}{WITHIN}")
        until(lambda what=what: ask(platform, "GET", f"{at}/{what}{WITHIN}")[0] == 404, f"{what} is gone")


def settled(platform: Platform, volume: str) -> None:
    busy = ("creating", "snapshotting", "restoring")
    until(lambda: done(platform, "GET", f"volumes/{volume}{WITHIN}")["state"] not in busy, f"{volume} is settled")


def check_nothing(platform: Platform, seen: Started) -> None:
    assert seen.with_word(MARK.encode()) == []
    assert names_of_files(platform) == []
    assert MARK not in told_by_host()
    assert MARK not in told_to_haproxy(platform).replace(APP, "")
    assert broken_lines(platform) == []


def test_what_is_looked_for_would_be_found(seen: Started) -> None:
    """In arguments, and in the environment."""
    words = (f"argument-{MARK[::-1]}", f"variable-{MARK[::-1]}")
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", words[0]], env={"PLANTED": words[1]}
    )
    try:
        until(lambda: all(seen.with_word(word.encode()) for word in words), "both were seen", within_s=20)
    finally:
        process.kill()
        process.wait()


def test_a_tenants_words_are_in_no_command_no_rule_and_no_name(platform: Platform, seen: Started) -> None:
    platform.swg("images", "load", "hello:v1", str(hello("v1")))
    let_in(platform)
    deployed(platform)
    refused_at_create_and_delete(platform)
    until(lambda: fetch(platform, APP, f"/{quote(TEXT)}")[0] < 500, "its edge knows the app")
    used(platform)
    assert APP in told_to_haproxy(platform), "its name is that of a host"
    check_nothing(platform, seen)
    done(platform, "DELETE", f"apps/{APP}{WITHIN}")
    until(lambda: ask(platform, "GET", f"apps/{APP}{WITHIN}")[0] == 404, "the app is gone")
    done(platform, "DELETE", f"volumes/{VOLUME}{WITHIN}")
    until(lambda: ask(platform, "GET", f"volumes/{VOLUME}{WITHIN}")[0] == 404, "the volume is gone")
    check_nothing(platform, seen)
    assert {"zfs", "haproxy"} <= seen.programs(), "we looked"
    assert any(program.startswith("qemu-system") for program in seen.programs())
