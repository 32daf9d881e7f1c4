"""HAProxy's files as values."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.edge import config, pages
from shellwego.edge.daemon import fitted
from shellwego.edge.haproxy import Haproxy, HaproxyError, find_program
from shellwego.edge.pool import Slot, Wanted
from shellwego.edge.settings import LOOPBACK, EdgeSettings, Layout
from tests.edge.rig import bind

SETTINGS = EdgeSettings(name="e", run_dir=Path("/run/swg"), state_dir=Path("/var/swg"))
LAYOUT = Layout(SETTINGS.run_dir)
WANTED = Wanted(
    {
        ("swg_b0001", "ins_a.12345678"): Slot("10.0.0.1:80", 50),
        ("swg_b0001", "ins_b.12345678"): Slot("10.0.0.2:80", 100),
    },
    {"b.example": "swg_b0001", "a.example": "swg_b0001"},
    {"off.example": "app-stopped"},
)


def text() -> str:
    return config.files(SETTINGS, 1024, WANTED)[LAYOUT.config]


def section(name: str) -> list[str]:
    """The lines of one section of the configuration."""
    lines = text().splitlines()
    start = lines.index(name)
    rest = [index for index in range(start + 1, len(lines)) if not lines[index].startswith(" ")]
    return [line.strip() for line in lines[start + 1 : rest[0]]]


def test_the_pool_is_declared_in_full_with_its_servers_in_place() -> None:
    assert sum(line.startswith("backend swg_b") for line in text().splitlines()) == 1024
    assert section("backend swg_b0000") == []
    assert section("backend swg_b0001") == [
        "server ins_a.12345678 10.0.0.1:80 weight 50 pool-max-conn -1 pool-purge-delay 1s",
        "server ins_b.12345678 10.0.0.2:80 weight 100 pool-max-conn -1 pool-purge-delay 1s",
    ]


def test_maps_hold_the_present_hosts_and_pages() -> None:
    files = config.files(SETTINGS, 4, WANTED)
    assert files[LAYOUT.hosts_map] == "a.example swg_b0001\nb.example swg_b0001\n"
    assert files[LAYOUT.pages_map] == "off.example app-stopped\n"


def test_what_keeps_requests_whole_is_set() -> None:
    defaults = section("defaults swg")
    for line in ("retry-on conn-failure", "option redispatch 1", "option idle-close-on-response", "balance roundrobin"):
        assert line in defaults
    assert "bind fd@${SWG_HTTP_FD}" in section("frontend swg_http from swg")
    admin = "stats socket /run/swg/admin.sock mode 600 level admin expose-fd listeners"
    assert admin in section("global")


def test_the_command_line_has_a_master_with_a_private_socket() -> None:
    assert config.argv("/usr/sbin/haproxy", LAYOUT) == [
        "/usr/sbin/haproxy",
        "-q",
        "-W",
        "-S",
        "/run/swg/master.sock,mode,600",
        "-f",
        "/run/swg/haproxy.cfg",
    ]


def test_every_file_that_the_configuration_names_is_written() -> None:
    files = config.files(SETTINGS, 4, WANTED)
    named = {
        word
        for line in files[LAYOUT.config].splitlines()
        for word in line.split()
        if word.startswith("/run/swg/pages/")
    }
    assert named
    assert named <= {str(path) for path in files}


def test_the_version_tells_settings_apart_but_not_routes() -> None:
    version = config.version(SETTINGS)
    assert config.version(replace(SETTINGS, max_connections=5)) != version
    assert config.version(replace(SETTINGS, connections_per_source=5)) != version
    assert config.version(replace(SETTINGS, connections_per_app=5)) != version
    assert config.version(replace(SETTINGS, pool_size=5)) == version
    for wanted in (WANTED, Wanted()):
        assert f"description {version}" in config.files(SETTINGS, 4, wanted)[LAYOUT.config]


@pytest.mark.parametrize(
    "page", [pages.NO_APP, pages.BUSY, *pages.HOST_PAGES.values(), *pages.PROXY_PAGES.values()], ids=lambda p: p.name
)
def test_a_page_is_a_whole_answer_that_loads_nothing(page: pages.Page) -> None:
    head, _, body = pages.raw_response(page).partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {page.status.value} ")
    assert f"Content-Length: {len(body.encode())}" in head
    assert f"X-ShellWeGo-Error: {page.name}" in head
    assert "Cache-Control: no-store" in head
    assert "http" not in body
    assert "src=" not in body


def test_connections_are_limited_to_what_descriptors_allow() -> None:
    assert fitted(SETTINGS, 1_048_576).max_connections == 10_000
    assert fitted(SETTINGS, 4096).max_connections == 1548
    assert fitted(SETTINGS, 256).max_connections == 100
    assert fitted(SETTINGS, -1).max_connections == 10_000


def test_one_source_and_one_app_have_a_share_of_the_connections() -> None:
    assert (SETTINGS.source_share, SETTINGS.app_share) == (1000, 2500)
    few = fitted(SETTINGS, 256)
    assert (few.source_share, few.app_share) == (64, 64)
    own = replace(SETTINGS, connections_per_source=7, connections_per_app=9000)
    assert (own.source_share, own.app_share) == (7, 9000)


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
@pytest.mark.parametrize("balancers", [LOOPBACK, (*LOOPBACK, "10.0.0.0/8", "fd00::/8"), ("192.0.2.1",)])
def test_haproxy_understands_what_is_written(tmp_path: Path, balancers: tuple[str, ...]) -> None:
    settings = replace(SETTINGS, run_dir=tmp_path, balancers=balancers)
    layout = Layout(tmp_path)
    for path, written in config.files(settings, 4, WANTED).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(written)
    with bind() as listener:
        listener.set_inheritable(True)
        checked = subprocess.run(
            config.check_argv("haproxy", layout),
            env={config.SOCKET_VARIABLE: str(listener.fileno())},
            pass_fds=[listener.fileno()],
            executable=shutil.which("haproxy"),
            capture_output=True,
            check=False,
            text=True,
            timeout=30,
        )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr
    assert "ALERT" not in checked.stderr


def test_a_missing_haproxy_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(HaproxyError, match="not installed") as caught:
        find_program(str(tmp_path))
    assert caught.value.code == "missing-program"
    assert "apt-get install haproxy" in caught.value.resolution


def test_a_run_directory_too_long_for_its_sockets_is_told_at_once() -> None:
    async def never(*_: object) -> int:
        raise AssertionError

    with pytest.raises(HaproxyError, match="more than 80"):
        Haproxy(replace(SETTINGS, run_dir=Path("/run/" + "x" * 90)), never, never)
