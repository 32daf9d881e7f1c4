"""`exec`, `console` and `logs` as processes, against the API on a real socket: pipes, a terminal, and what comes after."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.control.unit import Unit
from shellwego.core.instances import Desired, Instance, OwnerKind, Phase
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN
from tests.api.running_api import Running
from tests.bytes import first_difference
from tests.cli.cli_world import Machine

pytestmark = pytest.mark.real

SWG = [sys.executable, "-c", "from shellwego.main import main; main()"]
EXEC = ("exec", "-a", "shop", "--")
GUESTS_CODE = 3
"""What the guest of `Running` ends with once its stdin has ended."""
LISTS = (
    ("whoami",),
    ("apps", "ls"),
    ("apps", "show", "shop"),
    ("status", "-a", "shop"),
    ("releases", "-a", "shop"),
    ("env", "ls", "-a", "shop"),
    ("logs", "-a", "shop"),
    ("images", "ls"),
    ("vms", "ls"),
    ("vms", "ls", "--all"),
    ("nodes", "ls"),
    ("nodes", "show", "one"),
    ("events",),
    ("plan", "-a", "shop", "-e", "A=1"),
)


@pytest.fixture
def running(tmp_path: Path, machine: Machine) -> Iterator[Running]:
    with Running(tmp_path / "spool") as running:
        running.do(running.world.deployed())
        running.do(running.world.running())
        machine.context("here", running.url, token=ADMIN, project=running.world.project.id)
        yield running


def environment(machine: Machine) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(machine.home)}


def swg(machine: Machine, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*SWG, *arguments], input=stdin, capture_output=True, env=environment(machine), timeout=60, check=False
    )


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_with_json_stdout_is_one_document(machine: Machine, words: tuple[str, ...]) -> None:
    ended = machine.swg(*words, "--json")
    assert ended.code == 0
    json.loads(ended.out)
    assert machine.swg(*words, "--output", "yaml").code == 0
    assert machine.swg(*words, "--output", "name").code == 0
    shown = machine.swg(*words)
    assert shown.out or shown.err in ("no variables\n", "nothing yet\n")


@pytest.mark.usefixtures("running")
def test_exec_carries_a_large_stdin_and_its_output_unchanged_and_ends_with_the_guests_code(machine: Machine) -> None:
    data = os.urandom(3_000_000)
    ended = swg(machine, *EXEC, "cat", stdin=data)
    assert (ended.returncode, ended.stderr) == (GUESTS_CODE, b"")
    assert first_difference(ended.stdout, data) is None


def test_the_command_of_exec_may_have_options_of_its_own(machine: Machine, running: Running) -> None:
    swg(machine, "exec", "-a", "shop", "ls", "-h", "--json", "-a", "x")
    assert running.opened[-1].command == ("ls", "-h", "--json", "-a", "x")
    assert running.opened[-1].rows == 0, "no terminal, for there is none here"


def test_exec_takes_the_flags_that_people_type_and_runs_no_flag(machine: Machine, running: Running) -> None:
    swg(machine, "exec", "-a", "shop", "-i", "--", "cat", stdin=b"x")
    assert running.opened[-1].command == ("cat",)
    opened = len(running.opened)
    for words in (("exec", "-a", "shop", "-x", "cat"), ("run", "-a", "shop", "--memroy", "1gb", "cat")):
        ended = swg(machine, *words)
        assert ended.returncode == 2
        assert b"No such option" in ended.stderr
    assert len(running.opened) == opened


@pytest.mark.usefixtures("running")
def test_exec_whose_reader_goes_away_ends_in_silence(machine: Machine) -> None:
    process = subprocess.Popen(
        [*SWG, *EXEC, "flood"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(machine),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10) == b"x" * 10
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 1


def held(running: Running) -> Instance:
    """The microVM of a run, as soon as it is asked for; it runs from then on."""

    def find(unit: Unit) -> Instance | None:
        asked = unit.tx.instances.select(eq("owner", OwnerKind.RUN), eq("phase", Phase.PENDING))
        runs = replace(asked[0], phase=Phase.HEALTHY, node_id=running.world.node.id) if asked else None
        return unit.tx.instances.update(runs) if runs else None

    found: list[Instance] = []

    def look() -> bool:
        instance = running.do(running.world.commit(find))
        found.extend([instance] if instance else [])
        return bool(found)

    wait_for(look)
    return found[0]


def let_go(running: Running, instance: Instance) -> bool:
    stored = running.do(running.world.control.read(lambda tx: tx.instances.get(instance.id)))
    return stored is not None and stored.desired is Desired.STOP


def test_an_interactive_run_is_a_command_in_a_microvm_of_its_own_that_is_then_let_go(
    machine: Machine, running: Running
) -> None:
    data = os.urandom(300_000)
    process = subprocess.Popen(
        [*SWG, "run", "-a", "shop", "-i", "--", "cat", "-n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(machine),
    )
    instance = held(running)
    out, _ = process.communicate(data, timeout=60)
    assert (process.returncode, first_difference(out, data)) == (GUESTS_CODE, None)
    request = running.opened[-1]
    assert (request.instance_id, request.command, request.rows) == (instance.id, ("cat", "-n"), 0)
    assert let_go(running, instance)


@pytest.mark.parametrize("options", [("-it",), ("-i",), ("-t",)])
def test_an_interactive_run_at_a_terminal_has_a_terminal(
    machine: Machine, running: Running, options: tuple[str, ...]
) -> None:
    with on_terminal(machine, "run", "-q", "-a", "shop", *options, "--", "sh") as (terminal, process):
        before = termios.tcgetattr(terminal.ours)
        instance = held(running)
        wait_for(lambda: bool(running.opened) and termios.tcgetattr(terminal.ours) != before)
        assert (running.opened[-1].rows, running.opened[-1].columns) == (33, 101)
        terminal.type(b"ab\x03\x04")
        assert terminal.read(4) == b"ab\x03\x04"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert termios.tcgetattr(terminal.ours) == before
    assert let_go(running, instance)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interactive_run_that_is_ended_while_it_waits_lets_its_microvm_go(
    machine: Machine, running: Running, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*SWG, "run", "-a", "shop", "-i", "sh"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(machine)
    )
    assert process.stderr is not None
    assert b"pending" in process.stderr.readline()
    (instance,) = running.do(running.world.control.read(lambda tx: tx.instances.select(eq("owner", OwnerKind.RUN))))
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert b"Traceback" not in said
    assert let_go(running, instance)


def test_a_console_is_raw_tells_its_size_and_leaves_the_terminal_as_it_was(machine: Machine, running: Running) -> None:
    with on_terminal(machine, "console", "-a", "shop") as (terminal, process):
        before = termios.tcgetattr(terminal.ours)
        wait_for(lambda: bool(running.opened) and termios.tcgetattr(terminal.ours) != before)
        assert (running.opened[-1].rows, running.opened[-1].columns) == (33, 101)
        terminal.type(b"ab\x03\x04")
        assert terminal.read(4) == b"ab\x03\x04", "^C and ^D reach the guest, and nothing is echoed here"
        terminal.resize(44, 77)
        assert terminal.read(4) == struct.pack("!HH", 44, 77)
        running.stop()
        assert process.wait(20) == 1
        assert termios.tcgetattr(terminal.ours) == before


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_console_that_is_ended_leaves_the_terminal_as_it_was(machine: Machine, number: signal.Signals) -> None:
    with on_terminal(machine, "console", "-a", "shop") as (terminal, process):
        before = termios.tcgetattr(terminal.ours)
        wait_for(lambda: termios.tcgetattr(terminal.ours) != before)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert termios.tcgetattr(terminal.ours) == before


def test_following_a_log_ends_with_130_at_an_interrupt(machine: Machine, running: Running) -> None:
    process = subprocess.Popen(
        [*SWG, "events", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(machine)
    )
    assert process.stdout is not None
    assert b"app.created" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in said


class Terminal:
    """A pseudo-terminal, of which a command has the other end."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(33, 101)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def read(self, count: int) -> bytes:
        """The next bytes that the command wrote."""
        found = b""
        deadline = time.monotonic() + 20
        while len(found) < count and time.monotonic() < deadline:
            if select.select([self.ours], [], [], 0.1)[0]:
                found += os.read(self.ours, count - len(found))
        return found


@contextmanager
def on_terminal(machine: Machine, *arguments: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a command as the foreground process of a terminal of its own."""
    terminal = Terminal()
    begin = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {SWG[-1]}"
    process = subprocess.Popen(
        [sys.executable, "-c", begin, *arguments],
        stdin=terminal.theirs,
        stdout=terminal.theirs,
        stderr=terminal.theirs,
        env=environment(machine),
        start_new_session=True,
    )
    try:
        yield terminal, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(terminal.ours)
        os.close(terminal.theirs)


def wait_for(look: object, within_s: float = 20) -> None:
    assert callable(look)
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)
