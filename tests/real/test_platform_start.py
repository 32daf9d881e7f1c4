"""The start of a platform: what it says when it is ready, what stops it and with which remedy, and a disk that fills up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyotp import TOTP

from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.load import Load
from examples.demo.platform import SWG, Platform
from examples.demo.registry import free_port
from tests.real.platform_harness import api, fetch, healthy, scratch_platform, take_down, told, until

pytestmark = pytest.mark.real

MIB = 1 << 20
AS_NOBODY = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
GIVE_UP_S = 30.0
"""A start that must fail does so at once; python's own start on a busy machine is what takes time."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may pass through."""
    with tempfile.TemporaryDirectory(prefix="swg-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with scratch_platform() as made:
        yield made


@dataclass(frozen=True)
class Refused:
    """How a start ended that could not be."""

    code: int
    said: str


def start(place: Path, *flags: str, prefix: tuple[str, ...] = (), **variables: str) -> Refused:
    """A start on fresh ports that must end by itself, without a traceback, and touch no context of the user."""
    config = place / "config"
    ports = ("--http-port", str(free_port()), "--api-port", str(free_port()))
    flags = (*(() if "--data-dir" in flags else ("--data-dir", str(place / "data"))), *ports, *flags)
    result = subprocess.run(
        [*prefix, SWG, "up", *flags],
        env={**os.environ, "XDG_CONFIG_HOME": str(config), **variables},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )
    said = result.stdout + result.stderr
    assert "Traceback" not in said
    assert not config.exists(), "a platform that does not run is no context"
    return Refused(result.returncode, said)


def hidden(program: str) -> tuple[str, ...]:
    """Run what follows where a program is not there: in a mount namespace of its own."""
    return ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null "$0" && exec "$@"', program)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of its own with so many bytes."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "swg-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.alone
def test_it_is_ready_soon_and_says_where_without_a_secret(platform: Platform) -> None:
    assert platform.stop() == 0
    assert of_installation(platform.data_dir) == frozenset(), "a graceful end leaves nothing on the host"
    assert "swg up: stopping; microVMs are stopped first" in platform.log.read_text()
    seconds = platform.start()
    print(f"ready after {seconds:.1f} s (the goal is 5 on a machine of one's own)")
    assert seconds <= 20
    said = platform.log.read_text()
    for words in (
        f"http://127.0.0.1:{platform.api_port}",
        f"http://<app>.localhost:{platform.http_port}",
        f"curl -H 'Host: <app>.localhost' http://127.0.0.1:{platform.http_port}/",
        str(platform.data_dir),
    ):
        assert words in said
    assert "pat_" not in said
    contexts = platform.config_home / "shellwego" / "config.toml"
    assert contexts.stat().st_mode & 0o777 == 0o600
    assert api(platform, "nodes")["data"][0]["health"] == "ready"
    assert platform.json("doctor")["ok"]


@pytest.mark.parametrize(
    ("prefix", "message", "remedy"),
    [
        (AS_NOBODY, "must be started as root", "sudo swg up"),
        (hidden("/usr/sbin/haproxy"), "not installed: haproxy", "apt-get install haproxy"),
        (hidden("/usr/bin/qemu-system-x86_64"), "not installed: qemu-system-x86_64", "apt-get install qemu-system-x86"),
    ],
    ids=["no root", "no HAProxy", "no QEMU"],
)
def test_what_a_start_needs_is_named_with_its_remedy(
    place: Path, prefix: tuple[str, ...], message: str, remedy: str
) -> None:
    ended = start(place, prefix=prefix)
    assert ended.code == 1
    assert message in ended.said
    assert remedy in ended.said
    assert not (place / "data").exists()


def test_a_host_that_was_not_set_up_is_told_to_be(place: Path) -> None:
    ended = start(place, SHELLWEGO_CACHE=str(place / "empty"))
    assert ended.code == 1
    assert "the guest's kernel and init are not in" in ended.said
    assert "scripts/setup" in ended.said


def test_a_data_directory_that_the_platform_cannot_reach_is_told_with_its_mode(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    ended = start(place, "--data-dir", str(place / "closed" / "data"))
    assert ended.code == 1
    assert f"drwx------ uid 0 ({place}/closed)" in ended.said
    assert f"chmod o+x {place}/closed" in ended.said


@pytest.mark.parametrize("flag", ["--http-port", "--api-port", "--grpc-port"])
def test_a_taken_port_is_named_with_the_way_to_its_holder(place: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ended = start(place, flag, str(port))
    assert ended.code == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in ended.said
    assert f"ss -ltnp 'sport = :{port}'" in ended.said
    assert flag in ended.said
    assert of_installation(place / "data") == frozenset()


def test_an_address_that_is_not_this_hosts_is_refused(place: Path) -> None:
    ended = start(place, "--http-listen", "192.0.2.1")
    assert ended.code == 1
    assert "Give --http-listen an address of this host." in ended.said


def test_a_second_start_on_the_same_data_names_the_first_and_leaves_it_alone(platform: Platform, place: Path) -> None:
    assert platform.process is not None
    ended = start(place, "--data-dir", str(platform.data_dir))
    assert ended.code == 1
    assert f"another platform (pid {platform.process.pid}) runs on {platform.data_dir}" in ended.said
    assert "choose another --data-dir" in ended.said
    assert platform.swg("nodes", "ls", "--output", "name") == "local\n"


def test_a_broken_database_is_named_and_not_overwritten(place: Path) -> None:
    platform = Platform(place / "data", place / "config")
    platform.start()
    assert platform.stop() == 0
    database = platform.data_dir / "db" / "state.db"
    for path in database.parent.iterdir():
        path.unlink()
    database.write_bytes(b"this is no database " * 1000)
    os.chown(database, platform.data_dir.stat().st_uid, platform.data_dir.stat().st_gid)
    (place / "config").rename(place / "kept")
    ended = subprocess.run(
        [SWG, "up", "--data-dir", platform.data_dir, "--http-port", str(platform.http_port)],
        env={**os.environ, "XDG_CONFIG_HOME": str(place / "config"), "SHELLWEGO_API_PORT": str(platform.api_port)},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "file is not a database" in ended.stderr
    assert str(database) in ended.stderr
    assert database.read_bytes().startswith(b"this is no database")
    assert of_installation(platform.data_dir) == frozenset()


def test_a_disk_without_room_is_told_before_anything_is_made(place: Path) -> None:
    with small_disk(place / "small", 64 * MIB) as disk:
        ended = start(place, "--data-dir", str(disk / "data"))
        assert ended.code == 1
        assert "MiB are free on the file system of" in ended.said
        assert "256 MiB are needed" in ended.said
        assert "choose another place with --data-dir" in ended.said


def fill(path: Path) -> None:
    """Take all the room there is."""
    for size in (MIB, 512):
        with suppress(OSError), path.open("ab", buffering=0) as stream:
            while stream.write(b"\0" * size) == size:
                pass


@pytest.mark.alone
def test_a_disk_that_fills_up_refuses_changes_while_apps_go_on(place: Path) -> None:
    with small_disk(place / "disk", 700 * MIB) as disk:
        platform = Platform(disk / "data", place / "config")
        platform.start()
        try:
            platform.swg("images", "load", "hello:v1", str(hello("v1")))
            platform.swg("apps", "create", "shop")
            platform.swg("scale", "-a", "shop", "--disk", "128m")
            platform.swg("deploy", "-a", "shop", "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")
            with Load(platform.http_port, "shop.localhost", rate=20, connections=4) as load:
                fill(disk / "ballast")
                for arguments in (
                    ("apps", "create", "other"),
                    ("env", "set", "-a", "shop", "A=1"),
                    ("images", "load", "other:v1", str(hello("v1"))),
                ):
                    said = platform.swg(*arguments, code=1)
                    assert "full" in said
                    assert "Free " in said
                assert platform.swg("apps", "ls", "--output", "name") == "shop\n", "what only reads is answered"
                began = time.monotonic()
                until(lambda: time.monotonic() - began > 8, "leases and beats have failed for a while")
                assert platform.process is not None
                assert platform.process.poll() is None
                (disk / "ballast").unlink()
                until(lambda: _succeeds(platform, "apps", "create", "other"), "room again: changes again", within_s=20)
            assert not load.journal.failed, told(load.journal.failed)
            until(lambda: healthy(platform, "shop", 1), "the same instance is healthy")
            platform.swg("env", "set", "-a", "shop", "A=1")
            assert fetch(platform, "shop")[0] == 200
        except BaseException:
            print(platform.log.read_text()[-8000:])
            raise
        finally:
            (disk / "ballast").unlink(missing_ok=True)
            take_down(platform)


def _succeeds(platform: Platform, *arguments: str) -> bool:
    return "Error" not in platform.swg(*arguments, code=None)


def test_the_host_sets_a_password_and_codes_that_let_somebody_in_after_a_restart(
    platform: Platform, place: Path
) -> None:
    password, elsewhere = "correct horse battery", ("-c", str(place / "elsewhere.toml"))
    platform.swg("user", "password", stdin=f"\n{password}\n")
    secret = json.loads(platform.swg("user", "totp", "enrol", "--json", stdin="\n"))["secret"]
    recovery = platform.swg("user", "totp", "confirm", stdin=f"{TOTP(secret).now()}\n").split()
    assert platform.stop() == 0
    platform.start()
    sign_in = ("login", "--url", f"http://127.0.0.1:{platform.api_port}", "--email", "admin@localhost", *elsewhere)
    platform.swg(*sign_in, code=3, stdin=f"{password}\n000000\n")
    platform.swg(*sign_in, stdin=f"{password}\n{recovery[0]}\n")
    assert platform.json("whoami", *elsewhere)["totp"]
    platform.swg("logout", *elsewhere)
    kept = b"".join(path.read_bytes() for path in platform.data_dir.rglob("*") if path.is_file())
    said = platform.log.read_text()
    for each in (password, secret, *recovery):
        assert each.encode() not in kept
        assert each not in said
    platform.swg("user", "totp", "disable", stdin="\n\n")
