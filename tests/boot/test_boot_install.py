"""Units of systemd: that systemd takes them, and that what runs outlives them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shellwego.boot import up
from shellwego.boot.install import install
from shellwego.boot.units import KINDS, unit, unit_name
from shellwego.core.errors import InvalidError

SWG = Path("/opt/shellwego/bin/swg")


def installed(*words: str) -> Result:
    return CliRunner().invoke(install, words)


def values(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_systemd_takes_each_unit_without_a_complaint(kind: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / unit_name(kind)
    path.write_text(unit(kind, Path("/bin/true"), ["--data-dir", "/srv/with space/50%"]))
    done = subprocess.run([analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("kind", ["up", "agent", "edge"])
def test_what_runs_outlives_its_unit(kind: str) -> None:
    text = unit(kind, SWG, [])
    assert (values(text, "KillMode"), values(text, "Delegate")) == (["process"], ["yes"])
    assert "--keep" in values(text, "ExecStart")[0]
    for of_a_mount_namespace in ("ProtectSystem", "PrivateTmp", "ProtectHome", "ProtectKernelTunables"):
        assert values(text, of_a_mount_namespace) == []


def test_a_server_is_shut_in() -> None:
    text = unit("server", SWG, [])
    assert (values(text, "ProtectSystem"), values(text, "PrivateTmp")) == (["full"], ["yes"])
    assert "--keep" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_no_unit_leaves_a_core_or_gains_privileges(kind: str) -> None:
    text = unit(kind, SWG, [])
    assert (values(text, "LimitCORE"), values(text, "NoNewPrivileges")) == (["0"], ["yes"])
    assert values(text, "Restart") == ["always"]


def test_words_that_systemd_would_read_otherwise_are_escaped() -> None:
    text = unit("agent", SWG, ["--data-dir", '/a b/"c"\\d%e$f'])
    assert values(text, "ExecStart") == [rf'{SWG} agent --data-dir "/a b/\"c\"\\d%%e$$f" --keep-vms']


def test_it_writes_what_it_prints(tmp_path: Path) -> None:
    shown = installed("agent", "--dir", "/etc/x", "--print")
    ended = installed("agent", "--dir", "/etc/x", "--into", str(tmp_path))
    assert (shown.exit_code, ended.exit_code) == (0, 0)
    path = tmp_path / "shellwego-agent.service"
    assert path.read_text() == shown.output
    assert ended.output.startswith(shown.output)
    assert "systemctl enable --now shellwego-agent.service" in ended.output
    assert "agent --dir /etc/x --keep-vms" in shown.output
    assert path.stat().st_mode & 0o777 == 0o644
    assert installed("agent", "--into", str(tmp_path)).exit_code == 0, "a unit that is there is replaced"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "words",
    [
        ("frob",),
        ("agent", "--frob"),
        ("agent", "--dir", "relative"),
        ("up", "--http-port", "x"),
        ("edge", "--data-dir", "/a\nExecStartPost=/bin/x"),
    ],
)
def test_what_could_never_start_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    assert installed(*words, "--into", str(tmp_path)).exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--{port}-port", "99999"), "--{port}-port: 99999 is not a port"),
        (("--address", "nowhere"), "--address: 'nowhere' is not an IPv4 address"),
        (
            ("--image-budget", "lots"),
            "--image-budget, or SHELLWEGO_IMAGE_BUDGET: 'lots' is no size; write 512mb or 20gb",
        ),
        (("--domain", "a b"), "--domain: 'a b' is not a domain name"),
    ],
)
def test_what_its_process_would_refuse_at_each_start_is_refused(
    kind: str, words: tuple[str, ...], message: str
) -> None:
    port = "api" if kind == "server" else "http"
    ended = installed(kind, *(word.format(port=port) for word in words), "--print")
    assert ended.exit_code == 2
    assert message.format(port=port) in ended.output or "No such option" in ended.output


def test_a_server_that_nobody_could_reach_is_refused() -> None:
    ended = installed("server", "--node-port", "0", "--print")
    assert ended.exit_code == 2
    assert "--node-port: a server without one serves nobody" in ended.output


def test_what_flags_lack_may_stand_in_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("up", "--api-listen", "10.0.0.1", "--print")
    assert "without TLS" in installed(*words).output
    monkeypatch.setattr(up, "config_file_values", lambda: {"api_cert": "/etc/cert.pem", "api_key": "/etc/key.pem"})
    assert installed(*words).exit_code == 0
    assert installed("up", "--http-port", "7080", "--print").exit_code == 2
    monkeypatch.setenv("SHELLWEGO_API_PORT", "80")
    assert installed("up", "--print").exit_code == 0, "the environment of who asks is not that of the unit"


def test_a_configuration_that_only_root_reads_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> dict[str, object]:
        raise InvalidError("invalid-config", "closed") from PermissionError("closed")

    monkeypatch.setattr(up, "config_file_values", closed)
    assert installed("up", "--api-listen", "10.0.0.1", "--print").exit_code == 0
    assert installed("up", "--image-budget", "lots", "--print").exit_code == 2


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    ended = installed("up", "--into", str(tmp_path / "none"))
    assert ended.exit_code == 1
    assert f"Make {tmp_path / 'none'}, or name another directory, or only look: --print" in ended.output
