"""`plasmavmc vm`, `image`, `node`, `doctor`: what is there, and what is done to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_plasmavmc.cli_rig import CliRig
from tests.contract.images_samples import docker_save, entry, layer

HEAVY = ("grpc", "google", "asyncio", "msgspec", "structlog", "aiohttp", "wasmtime", "pyroute2", "plasmavmc.types")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["vm", "--help"], ["vm", "run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = HEAVY if len(arguments) < 3 else tuple(name for name in HEAVY if name != "asyncio")
    code = (
        "import sys\n"
        "from plasmavmc.cli import main\n"
        f"sys.argv = ['plasmavmc', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_what_becomes_of_the_images_entrypoint_is_told() -> None:
    words = [Path(sys.executable).with_name("plasmavmc"), "vm", "run", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "arguments of the image's Entrypoint (--entrypoint takes its place)" in " ".join(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_made(shell: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("plasmavmc"), "completion", shell], capture_output=True, text=True, check=True
    )
    assert "_PLASMAVMC_COMPLETE" in done.stdout


def test_a_vm_is_made_started_stopped_begun_anew_and_removed(rig: CliRig) -> None:
    vm = rig.well("vm", "create", "--name", "one", "app", "serve")
    assert json.loads(rig.well("vm", "ls", "-o", "json"))[0]["state"] == "pending"
    assert rig.well("vm", "start", "one") == vm
    assert rig.well("vm", "stop", vm[:10]) == vm
    assert rig.well("vm", "ls", "-q") == ""
    assert rig.well("vm", "ls", "-aq") == vm
    assert rig.well("vm", "start", vm) == vm
    refused = rig.call("vm", "rm", vm)
    assert (refused.exit_code, "vm rm -f" in refused.stderr) == (5, True)
    assert rig.well("vm", "rm", "-f", vm) == vm
    assert json.loads(rig.well("vm", "ls", "-a", "-o", "json")) == []


def test_a_vm_is_made_with_limits_and_shows_them(rig: CliRig) -> None:
    rates = ("--disk-rate", "10m", "--disk-iops", "100", "--receive-rate", "2m", "--transmit-rate", "1m")
    vm = rig.well("vm", "create", *rates, "app", "serve")
    (shown,) = json.loads(rig.well("vm", "inspect", "-o", "json", vm))
    wanted = {"disk_rate": 10 << 20, "disk_iops": 100, "receive_rate": 2 << 20, "transmit_rate": 1 << 20}
    assert shown["limits"] == wanted
    assert (shown["disk_used_bytes"], shown["pressure"], shown["network_used"]) == (0, None, None)
    refused = rig.call("vm", "create", "--disk-rate", "1k", "app", "serve")
    assert (refused.exit_code, "bytes a second" in refused.stderr) == (125, True)


def test_each_of_several_is_tried(rig: CliRig) -> None:
    vm = rig.well("vm", "run", "-d", "app", "serve")
    done = rig.call("vm", "stop", "nobody", vm)
    assert (done.exit_code, done.stdout.strip(), "nobody" in done.stderr) == (4, vm, True)


def test_a_vm_sleeps_and_wakes(rig: CliRig) -> None:
    vm = rig.well("vm", "run", "-d", "app", "serve")
    assert rig.well("vm", "suspend", vm) == vm
    asleep = rig.call("vm", "exec", vm, "echo")
    assert (asleep.exit_code, "suspended" in asleep.stderr) == (125, True)
    assert rig.well("vm", "resume", vm) == vm


def test_what_vms_may_reach_is_said_shown_and_changed(rig: CliRig) -> None:
    def shown() -> object:
        return json.loads(rig.well("vm", "inspect", "-o", "json", vm))[0]["egress"]

    vm = rig.well("vm", "run", "-d", "--egress", "203.0.113.0/24:443", "--egress", "198.51.100.7/icmp", "app", "serve")
    assert shown() == ["203.0.113.0/24:443/tcp", "198.51.100.7/32/icmp"]
    assert rig.well("vm", "restrict", "--egress", "none", vm) == vm
    assert shown() == []
    assert rig.well("vm", "restrict", "--egress", "192.0.2.0/24:8000-8100/udp", vm) == vm
    assert shown() == ["192.0.2.0/24:8000-8100/udp"]
    assert rig.well("vm", "restrict", "--open", vm) == vm
    assert shown() is None
    for wrong in ("example.org", "203.0.113.0/24/sctp", "203.0.113.1/24", "1.2.3.4:70000"):
        assert rig.call("vm", "restrict", "--egress", wrong, vm).exit_code == 2
    assert rig.call("vm", "restrict", vm).exit_code == 2
    assert rig.call("vm", "run", "--network", "none", "--egress", "none", "app", "serve").exit_code == 2


def test_what_may_be_opened_to_vms_is_said_shown_and_changed(rig: CliRig) -> None:
    def shown() -> object:
        found = json.loads(rig.well("vm", "inspect", "-o", "json", vm))[0]
        return found["identity"], found["ingress"]

    given = ("--identity", "db", "--ingress", "web:5432", "--ingress", "*/icmp")
    vm = rig.well("vm", "run", "-d", *given, "app", "serve")
    assert shown() == ("db", ["web:5432/tcp", "*/icmp"])
    assert rig.well("vm", "screen", "--ingress", "none", vm) == vm
    assert shown() == ("db", [])
    assert rig.well("vm", "screen", "--identity", "store", "--ingress", "job:8000-8100/udp", vm) == vm
    assert shown() == ("store", ["job:8000-8100/udp"])
    assert rig.well("vm", "screen", "--open", vm) == vm
    assert shown() == ("store", None)
    for wrong in ("A b", "web/sctp", "web:70000", "*:1-2-3"):
        assert rig.call("vm", "screen", "--ingress", wrong, vm).exit_code == 2
    assert rig.call("vm", "screen", vm).exit_code == 2
    assert rig.call("vm", "run", "--network", "none", "--ingress", "none", "app", "serve").exit_code == 2
    refused = rig.call("vm", "run", "--identity", "A b", "app", "serve")
    assert (refused.exit_code, "--identity" in refused.stderr) == (125, True)


def test_what_is_not_declared_safe_to_copy_is_not_copied(rig: CliRig) -> None:
    vm = rig.well("vm", "run", "-d", "app", "serve")
    done = rig.call("vm", "fork", vm)
    assert (done.exit_code, "snapshot_safe" in done.stderr) == (5, True), done.stderr


def test_inspect_and_logs_show_what_there_is(rig: CliRig) -> None:
    rig.call("vm", "run", "--name", "done", "app", "exit", "3")
    assert json.loads(rig.well("vm", "inspect", "-o", "json", "done"))[0]["exit_code"] == 3
    assert "stopped (3)" in rig.well("vm", "inspect", "done")
    logs = rig.call("vm", "logs", "done")
    assert (logs.stdout, logs.stderr) == ("hello\n", "careful\n")
    lines = rig.well("vm", "logs", "-o", "json", "-n", "1", "done").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["careful"]
    assert rig.call("vm", "logs", "--since", "yesterday", "done").exit_code == 2


def test_a_word_that_means_several_is_refused(rig: CliRig) -> None:
    for _ in range(2):
        rig.well("vm", "run", "-d", "app", "serve")
    done = rig.call("vm", "inspect", "vm_")
    assert done.exit_code in (2, 4)
    assert "Traceback" not in done.stderr


def test_files_go_in_and_come_out(rig: CliRig, tmp_path: Path) -> None:
    vm = rig.well("vm", "run", "-d", "--name", "one", "app", "serve")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(os.urandom(700_000))
    (tree / "link").symlink_to("/etc/passwd")

    rig.well("vm", "cp", f"{tree}/", "one:/data")
    rig.well("vm", "cp", f"{vm}:/data", f"{tmp_path}/back")

    assert (tmp_path / "back/sub/file").read_bytes() == (tree / "sub/file").read_bytes()
    assert (tmp_path / "back/link").readlink() == Path("/etc/passwd")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["/etc/hosts", "/tmp"], 2, "no VM"),
        (["a:/x", "b:/y"], 2, "two VMs"),
        (["/etc/hosts", "one:relative"], 2, "absolute"),
        (["/etc/hosts", ":/x"], 2, "names no VM"),
        (["/nonexistent", "one:/x"], 2, "not there"),
        (["/etc/hosts", "one:/missing/x"], 1, "No such file"),
        (["one:/missing", "/tmp"], 1, "No such file"),
        (["one:/missing", "/nonexistent/x"], 1, "No such file"),
        (["/etc/hosts", "nobody:/x"], 4, "no VM"),
        (["/etc/hosts", "-"], 2, "no VM"),
    ],
)
def test_a_copy_that_makes_no_sense_is_refused(rig: CliRig, words: list[str], code: int, told: str) -> None:
    rig.well("vm", "run", "-d", "--name", "one", "app", "serve")
    done = rig.call("vm", "cp", *words)
    assert (done.exit_code, told in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_images_are_loaded_listed_and_removed(rig: CliRig, tmp_path: Path) -> None:
    tar = tmp_path / "image.tar"
    tar.write_bytes(docker_save([layer(entry("app", b"#!"))]))
    done = rig.call("image", "load", "-i", str(tar), "--name", "mine:v1")
    assert done.exit_code == 0, done.stderr
    names = [each["names"] for each in json.loads(rig.well("image", "ls", "-o", "json"))]
    assert ["mine:v1"] in names
    rig.well("vm", "create", "app", "serve")
    used = rig.call("image", "rm", "app")
    assert (used.exit_code, "is made from image" in used.stderr) == (5, True)
    assert "mine:v1" not in rig.well("image", "gc", "--budget", "1t")
    assert "mine:v1" in rig.well("image", "gc", "--dry-run")
    assert "mine:v1" in rig.well("image", "gc")
    assert rig.call("image", "rm", "mine:v1").exit_code == 4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["image", "pull", "nohost"], 2),
        (["image", "load", "-i", "/nonexistent"], 2),
        (["image", "load", "-i", "/etc/passwd"], 1),
        (["image", "rm"], 2),
        (["vm", "strat"], 2),
        (["vm", "start"], 2),
        (["kernel", "build", "--jobs", "0"], 2),
        (["kernel", "use", "own", "--cache", "/nonexistent"], 1),
        (["--project", "half", "vm", "ls"], 2),
        (["--token-file", "/nonexistent", "vm", "ls"], 2),
        (["--server", "nonsense", "vm", "ls"], 2),
        (["--server", "unix:/nonexistent", "vm", "ls"], 1),
        (["--server", "localhost:1", "vm", "ls"], 2),
        (["--tls-cert", "/x", "vm", "ls"], 2),
    ],
)
def test_a_mistake_ends_with_its_code_and_without_a_traceback(rig: CliRig, words: list[str], code: int) -> None:
    done = rig.call(*words)
    assert done.exit_code == code, done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_word_that_is_nearly_right_is_offered(rig: CliRig) -> None:
    assert "'plasmavmc vm start'" in rig.call("vm", "strat").stderr
    assert "'plasmavmc vm run'" in rig.call("run", "app").stderr
    assert "'plasmavmc vm ls'" in rig.call("vm", "ps").stderr


def test_a_token_that_nobody_has_is_told_as_such(rig: CliRig) -> None:
    assert rig.call("vm", "ls", PLASMAVMC_TOKEN="wrong").exit_code == 3
    assert rig.call("vm", "ls", PLASMAVMC_TOKEN="viewer-token").exit_code == 0
    assert rig.call("vm", "run", "app", PLASMAVMC_TOKEN="viewer-token").exit_code == 125


def test_the_node_tells_what_it_has(rig: CliRig) -> None:
    document = json.loads(rig.well("node", "info", "-o", "json"))
    assert [backend["name"] for backend in document["backends"]] == ["memory"]
    told = rig.well("node", "info")
    assert "of" in told
    assert "own-9.9.1-1-0123456789ab" in told


def test_doctor_tells_of_host_and_server(rig: CliRig) -> None:
    done = rig.call("doctor", "-o", "json", "--cache", "/nonexistent")
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 1
    assert checks["cache"]["state"] == "fail"
    assert "plasmavmc kernel fetch" in checks["cache"]["remedy"]
    assert checks["server"]["state"] == "ok"
    assert {"probe", "confinement", "programs", "backend memory"} <= checks.keys()
