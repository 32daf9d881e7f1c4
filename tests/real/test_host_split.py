"""One program becomes two: who may do what afterwards, and who ends with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.host.helper.cgroups import find_cgroups
from plasmavmc.host.helper.sweep import vmm_key
from plasmavmc.host.names import HostNames, is_key
from plasmavmc.host.processes import argv_of, is_alive, kill, processes, read_process
from plasmavmc.host.split import check_reachable
from tests.contract.host_rig import NOBODY, UIDS, Namespace, eventually

pytestmark = pytest.mark.real

PROLOGUE = f"""
import asyncio, json, os, signal, sys, time
from pathlib import Path
from plasmavmc.host.split import HelperConfiguration, split
configuration = HelperConfiguration(
    sys.argv[1], {NOBODY}, {NOBODY}, vm_uids=range({UIDS.start}, {UIDS.stop}), run_root=Path(sys.argv[2])
)
fd = split(configuration)
def tell(value):
    print(json.dumps(value), flush=True)
"""
WAIT = "tell(os.getpid()); time.sleep(600)"
END_ON_SIGNAL = """
numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
tell(os.getpid())
os._exit(40 + signal.sigwait(numbers))
"""
WITH_VM = """
from plasmavmc.host.client import HelperHost
from plasmavmc.host.operations import Limits
async def main():
    host, names, key = HelperHost(fd), configuration.names, "a" * 12
    await host.uid_take(key)
    argv = (configuration.vmms[0], "-name", names.process(key), "-M", "none", "-nodefaults", "-display", "none", "-S")
    spawned = await host.vm_spawn(key, argv, Limits(256 << 20, 1000), {})
    tell([os.getpid(), spawned.pid])
    await asyncio.sleep(600)
asyncio.run(main())
"""


class Program:
    """A program that splits itself and then runs `body` without privileges."""

    def __init__(self, namespace: Namespace, run_root: Path, body: str, *, terminal: int | None = None) -> None:
        command = [*namespace.enter, sys.executable, "-c", PROLOGUE + body, "swg_split", str(run_root)]
        if terminal is not None:
            command = ["setsid", "--ctty", "--wait", *command]
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait(self) -> int:
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def run_root(tmp_path: Path) -> Iterator[Path]:
    """And at the end no VM, whatever the test did to its helper."""
    yield tmp_path / "run"
    for key in keys(tmp_path / "run"):
        for process in list(processes()):
            if vmm_key(HostNames(key), argv_of(process.id.pid)) is not None:
                kill(process.id, timeout_s=5)
        groups = find_cgroups(HostNames(key).cgroup)
        for child in groups.children():
            groups.remove(child)
        groups.remove_parent()


def keys(run_root: Path) -> list[str]:
    """Of the installations that ran on this run directory."""
    return [path.name for path in run_root.iterdir() if is_key(path.name)] if run_root.exists() else []


def test_the_rest_of_the_program_has_no_privileges_and_cannot_get_them(namespace: Namespace, run_root: Path) -> None:
    body = """
tell([os.getresuid(), os.getresgid(), os.getgroups(), os.umask(0)])
try:
    os.setuid(0)
    tell("root again")
except PermissionError:
    tell("refused")
status = Path("/proc/self/status").read_text()
tell([line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "NoNewPrivs"))])
"""
    program = Program(namespace, run_root, body)
    assert program.line() == f"[[{NOBODY}, {NOBODY}, {NOBODY}], [{NOBODY}, {NOBODY}, {NOBODY}], [], 63]"
    assert program.line() == '"refused"'
    assert program.line() == '["0000000000000000", "1"]'
    assert program.wait() == 0


def test_the_rest_of_the_program_cannot_type_into_the_terminal_of_root(namespace: Namespace, run_root: Path) -> None:
    """What it put into the terminal's input (TIOCSTI), root's shell would run once the program has ended."""
    body = """
import fcntl, termios
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"x")
    tell("typed")
except OSError:
    tell("refused")
try:
    os.open("/dev/tty", os.O_RDWR)
    tell("has a terminal")
except OSError:
    tell("has none")
"""
    master, slave = os.openpty()
    try:
        program = Program(namespace, run_root, body, terminal=slave)
        assert [program.line(), program.line()] == ['"refused"', '"has none"']
        assert program.wait() == 0
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("code", [0, 8])
def test_the_program_ends_with_the_code_of_its_child(namespace: Namespace, run_root: Path, code: int) -> None:
    assert Program(namespace, run_root, f"sys.exit({code})").wait() == code


def test_a_killed_child_ends_the_helper_as_a_shell_would_tell_it(namespace: Namespace, run_root: Path) -> None:
    program = Program(namespace, run_root, WAIT)
    os.kill(int(program.line()), signal.SIGKILL)
    assert program.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_to_the_child(namespace: Namespace, run_root: Path, number: signal.Signals) -> None:
    program = Program(namespace, run_root, END_ON_SIGNAL)
    program.line()
    program.process.send_signal(number)
    assert program.wait() == 40 + number


async def test_a_killed_helper_takes_the_child_with_it_and_leaves_the_vm(namespace: Namespace, run_root: Path) -> None:
    program = Program(namespace, run_root, WITH_VM)
    child, vm = (read_process(int(pid)) for pid in program.line().strip("[]").split(", "))
    assert child is not None
    assert vm is not None
    program.process.kill()
    program.wait()
    await eventually(lambda: not is_alive(child.id), "the child has ended too")
    assert is_alive(vm.id)


async def test_a_killed_child_takes_the_helper_with_it_and_leaves_the_vm(namespace: Namespace, run_root: Path) -> None:
    program = Program(namespace, run_root, WITH_VM)
    child, vm = (read_process(int(pid)) for pid in program.line().strip("[]").split(", "))
    assert child is not None
    assert vm is not None
    os.kill(child.id.pid, signal.SIGKILL)
    assert program.wait() == 128 + signal.SIGKILL
    assert is_alive(vm.id)


def test_a_run_directory_that_others_can_write_stops_the_start(namespace: Namespace, run_root: Path) -> None:
    run_root.mkdir()
    run_root.chmod(0o777)
    program = Program(namespace, run_root, WAIT)
    _, complaints = program.process.communicate(timeout=20)
    assert program.process.returncode == 1
    assert "is not root's alone" in complaints


def test_only_root_can_split(namespace: Namespace, run_root: Path) -> None:
    script = f"import os\nos.setuid({NOBODY})\n" + PROLOGUE
    done = subprocess.run(
        [sys.executable, "-c", script, "swg_split", str(run_root)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "must be started by root" in done.stderr


def test_what_the_user_cannot_reach_is_told_with_the_remedy() -> None:
    with tempfile.TemporaryDirectory(prefix="swg-test-", dir="/tmp") as name:
        base = Path(name)
        base.chmod(0o711)  # may be passed through, though not listed
        for directory in ("open", "closed"):
            (base / directory).mkdir()
            (base / directory / "file").write_text("x")
            (base / directory).chmod(0o755 if directory == "open" else 0o700)
        asked = [base / "open/file", base / "closed/file", base / "absent", base, base / "open"]
        found = {unreachable.path: unreachable for unreachable in check_reachable(NOBODY, NOBODY, asked)}
        assert found.keys() == {base / "closed/file", base / "absent", base}
        assert found[base / "closed/file"].mode.startswith("drwx------ uid 0")
        assert f"chmod o+x {base / 'closed'}," in found[base / "closed/file"].remedy
        assert found[base / "absent"].mode == "absent"
        assert f"chmod o+rx {base}," in found[base].remedy
        assert check_reachable(0, 0, [base / "closed/file"]) == []
