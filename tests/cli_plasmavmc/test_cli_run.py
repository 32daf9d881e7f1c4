"""`plasmavmc vm run`, `exec`, `attach`: what goes in, what comes out, how it ends."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from pathlib import Path

import pytest

from plasmavmc.types import PublishedPort, Stdio, VmSpec
from tests.bytes import first_difference
from tests.cli_plasmavmc.cli_rig import DEADLINE_S, CliRig
from tests.contract.images_samples import hello
from tests.contract.registry_server import registry_server


def specs(rig: CliRig) -> list[VmSpec]:
    return [vm.spec for vm in rig.rpc.manager.list_vms()]


def test_output_and_code_are_passed(rig: CliRig) -> None:
    done = rig.call("vm", "run", "app", "exit", "7")
    assert (done.exit_code, done.stdout, done.stderr) == (7, "hello\n", "careful\n")
    assert len(specs(rig)) == 1


def test_an_image_that_is_missing_is_pulled_and_told_on_stderr_only(rig: CliRig, tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry") as registry:
        registry.push(hello(), "app:v1")
        reference = f"{registry.host}/app:v1"
        done = rig.call("vm", "run", "--rm", reference, "exit", "0")
        assert (done.exit_code, done.stdout) == (0, "hello\n"), done.stderr
        assert f"{reference}: asking the registry" in done.stderr
        again = rig.call("vm", "run", "--rm", reference, "exit", "0")
        assert "asking" not in again.stderr
        assert rig.call("vm", "run", "--rm", f"{registry.host}/nothing", "exit", "0").exit_code == 125
        assert rig.well("image", "pull", "-q", reference).startswith("sha256:")


def test_rm_leaves_nothing(rig: CliRig) -> None:
    assert rig.call("vm", "run", "--rm", "app", "exit", "0").exit_code == 0
    assert specs(rig) == []


def test_stdin_is_passed_to_its_end(rig: CliRig) -> None:
    sent = os.urandom(200_000).hex().encode()
    done = rig.call("vm", "run", "--rm", "-i", "app", "echo", stdin=sent)
    assert (done.exit_code, first_difference(done.stdout.encode(), sent)) == (0, None)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["app", "missing"], 127, "missing was not found"),
        (["app", "locked"], 126, "Permission denied"),
        (["nothing"], 125, "names no registry"),
        (["--pull", "never", "registry.example/x"], 125, "there is no image"),
        (["-v", "/a:/b", "app"], 125, "volumes"),
        (["-p", "80", "app"], 2, "-p 8080:80"),
        (["-p", "8080:80/udp", "app"], 2, "only tcp"),
        (["-p", "0:80", "app"], 2, "1 to 65535"),
        (["-p", "1.2.3:8080:80", "app"], 2, "no IPv4 address"),
        (["-p", "203.0.113.9:18080:80", "app"], 125, "no address of the host"),
        (["-p", "8080:80", "--network", "none", "app"], 2, "needs a network"),
        (["--receive-rate", "1m", "--network", "none", "app"], 2, "--receive-rate needs a network"),
        (["--name", "No_Name", "app"], 2, "--name"),
        (["-m", "lots", "app"], 2, "no size"),
        (["-m", "1m", "app"], 125, "64 MiB"),
        (["--cpus", "0", "app"], 2, "no number of processors"),
        (["--restart", "sometimes", "app"], 2, "on-failure"),
        (["-d", "app"], 2, "--rm does not go with -d"),
        (["-m", "512", "app"], 2, "write 512m"),
        (["--cpus", "99", "app"], 125, "--cpus"),
        (["--restart", "always", "--rm", "app"], 2, "--rm"),
        (["-it", "app"], 125, "no terminal"),
        (["-e", "1BAD=x", "app"], 2, "NAME=VALUE"),
        (["--env-file", "/nonexistent", "app"], 2, "cannot be read"),
        (["--detach-keys", "hyper-x", "-it", "app"], 125, ""),
        (["-o", "json", "app"], 2, "-d"),
        (["--stop-signal", "SIGNONE", "app"], 125, "no signal"),
        (["--backend", "nope", "app"], 125, "nope"),
        (["--backend", "memory", "--frobnicate", "app"], 2, "--frobnicate"),
        ([], 2, "IMAGE"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_leaves_nothing(
    rig: CliRig, words: list[str], code: int, told: str
) -> None:
    done = rig.call("vm", "run", "--rm", *words)
    assert (done.exit_code, told in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert specs(rig) == []


def test_what_is_wished_arrives(rig: CliRig) -> None:
    rig.well(
        *("vm", "run", "-d", "--name", "web", "-e", "A=b=c", "-m", "512m", "--cpus", "1.5", "-u", "nobody"),
        *("-w", "/srv", "--label", "tier=web", "-p", "127.0.0.1:18080:80", "app", "serve", "-x"),
    )
    (spec,) = specs(rig)
    assert (spec.name, spec.command, spec.user, spec.workdir) == ("web", ("serve", "-x"), "nobody", "/srv")
    assert (spec.resources.memory_bytes, spec.resources.cpu_milli, spec.resources.vcpus) == (512 << 20, 1500, 2)
    assert (spec.env, spec.labels, spec.stdio) == ({"A": "b=c"}, {"tier": "web"}, Stdio.LOGGED)
    assert spec.published == (PublishedPort(18080, 80),)


def test_env_files_come_before_options_and_a_name_alone_takes_the_value_here(rig: CliRig, tmp_path: object) -> None:
    path = f"{tmp_path}/env"
    with open(path, "w") as file:  # noqa: PTH123
        file.write("# a remark\n\nA=file\nB=file\nHOMELESS\n")
    done = rig.call("vm", "run", "-d", "--env-file", path, "-e", "B=option", "-e", "C", "app", "serve", C="here")
    assert done.exit_code == 0, done.stderr
    assert specs(rig)[0].env == {"A": "file", "B": "option", "C": "here"}


def test_a_name_that_is_in_use_is_told(rig: CliRig) -> None:
    vm = rig.well("vm", "run", "-d", "--name", "web", "app", "serve")
    done = rig.call("vm", "run", "--name", "web", "app", "serve")
    assert (done.exit_code, vm in done.stderr) == (125, True)


def test_detached_it_fails_as_it_would_attached(rig: CliRig) -> None:
    done = rig.call("vm", "run", "-d", "app", "missing")
    assert (done.exit_code, "not found" in done.stderr) == (127, True)


def test_an_interrupt_is_passed_on(rig: CliRig) -> None:
    process = rig.start("vm", "run", "app", "serve")
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert rig.guest().workload.signals == [signal.SIGINT]


def test_a_second_interrupt_waits_no_longer_and_leaves_nothing_running(rig: CliRig) -> None:
    process = rig.start("vm", "run", "app", "deaf")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"hello\n"
    process.send_signal(signal.SIGINT)
    while b"once more" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert rig.well("vm", "ls", "-q") == ""


def test_a_port_is_given_back_at_the_end(rig: CliRig) -> None:
    for _ in range(2):
        assert rig.call("vm", "run", "--rm", "-p", "18081:80", "app", "exit", "0").exit_code == 0


def test_a_port_that_is_taken_is_told_and_no_vm_is_made(rig: CliRig) -> None:
    rig.well("vm", "run", "-d", "-p", "18082:80", "app", "serve")
    done = rig.call("vm", "run", "-p", "18082:80", "app", "serve")
    assert (done.exit_code, "127.0.0.1:18082 is in use" in done.stderr) == (125, True)
    assert len(specs(rig)) == 1


def test_a_failure_is_restarted_as_often_as_allowed(rig: CliRig) -> None:
    done = rig.call("vm", "run", "--restart", "on-failure:2", "app", "exit", "3")
    assert (done.exit_code, done.stdout) == (3, "hello\n" * 3)
    assert done.stderr.count("restart") == 2
    assert len(specs(rig)) == 1


def test_what_was_asked_to_end_is_not_restarted_and_one_that_waits_for_a_restart_can_be_interrupted(
    rig: CliRig,
) -> None:
    asked = rig.start("vm", "run", "--restart", "always", "app", "serve")
    assert asked.stdout is not None
    assert asked.stdout.readline() == b"hello\n"
    asked.send_signal(signal.SIGTERM)
    _, errors = asked.communicate(timeout=DEADLINE_S)
    assert (asked.returncode, b"restart" in errors) == (143, False)

    waits = rig.start("vm", "run", "--restart", "always", "app", "exit", "3")
    assert waits.stderr is not None
    while b"restart 4 in" not in waits.stderr.readline():
        assert waits.poll() is None
    waits.send_signal(signal.SIGINT)
    _, errors = waits.communicate(timeout=DEADLINE_S)
    assert (waits.returncode, b"Traceback" in errors) == (130, False)


def test_success_is_not_restarted_on_failure(rig: CliRig) -> None:
    assert rig.call("vm", "run", "--restart", "on-failure", "app", "exit", "0").stdout == "hello\n"


class Terminal:
    def __init__(self, rig: CliRig, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.process = rig.start(*words, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = b""

    def expect(self, wanted: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while wanted not in self.seen and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    break
        assert wanted in self.seen, self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        code = self.process.wait(DEADLINE_S)
        os.close(self.master)
        return code


def test_a_terminal_passes_every_key_but_those_that_let_go(rig: CliRig) -> None:
    terminal = Terminal(rig, "vm", "run", "-it", "--name", "tty", "app", "echo")
    deadline = time.monotonic() + DEADLINE_S
    while not (rig.guests and rig.guest().workload.sizes) and time.monotonic() < deadline:
        time.sleep(0.02)
    terminal.type(b"a\x03b\x10c")
    terminal.expect(b"a\x03b\x10c")
    terminal.type(b"\x10\x11")
    terminal.expect(b"runs on")
    assert terminal.end() == 0
    assert specs(rig)[0].stdio is Stdio.TERMINAL
    assert not rig.guest().workload.ended, "letting go is not the end of the input"

    again = Terminal(rig, "vm", "attach", "--detach-keys", "ctrl-x", "tty")
    again.type(b"z")
    again.expect(b"z")
    again.type(b"\x18")
    assert again.end() == 0
    assert rig.well("vm", "ls", "-q") == specs(rig)[0].id


def test_letting_go_of_an_open_stdin_leaves_it_open(rig: CliRig) -> None:
    vm = rig.well("vm", "run", "-d", "-i", "app", "echo")
    process = rig.start("vm", "attach", vm)
    assert process.stdin is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.kill()
    process.communicate()
    done = rig.call("vm", "attach", vm, stdin=b"two")
    assert (done.exit_code, done.stdout) == (0, "two")


def test_exec_passes_stdin_and_code(rig: CliRig) -> None:
    vm = rig.well("vm", "run", "-d", "app", "serve")
    assert rig.call("vm", "exec", "-i", vm, "cat", stdin=b"in").stdout == "in"
    assert rig.call("vm", "exec", vm, "exit", "9").exit_code == 9
    assert rig.call("vm", "exec", vm, "nowhere").exit_code == 127
    assert rig.call("vm", "exec", "nobody", "cat").exit_code == 4
