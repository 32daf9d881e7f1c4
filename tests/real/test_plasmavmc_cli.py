"""`plasmavmc` as a newcomer uses it: a server on this host, and commands as processes against it."""

from __future__ import annotations

import http.client
import io
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bytes import first_difference
from tests.contract.images_samples import directory, docker_save, entry, layer, symlink
from tests.contract.wasm_modules import SAY
from tests.contract.wasm_services import answers
from tests.host_cache import cache_directory

pytestmark = pytest.mark.real

PATIENCE_S = 120.0
"""For what takes a boot; CPUs are emulated, and others may use the cores."""
PROGRAM = Path(sys.executable).with_name("plasmavmc")
TOOLS = ("dash", "cat", "sleep", "stty", "head", "readlink")
LIBRARIES = ("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2")


def small_image(into: Path) -> Path:
    """A shell, a few tools, and a web server, as `docker save` has it."""
    mirror = into / "mirror"
    source = Path(__file__).with_name("mirror.c")
    subprocess.run(["gcc", "-static", "-O1", "-o", mirror, source], check=True, capture_output=True)
    files = [(f"bin/{name}", Path(shutil.which(name) or f"/bin/{name}")) for name in TOOLS]
    files += [(path[1:], Path(path)) for path in LIBRARIES]
    files.append(("bin/mirror", mirror))
    members = [entry(name, path.read_bytes(), mode=0o755) for name, path in files]
    folders = [directory(name) for name in ("bin", "lib", "lib/x86_64-linux-gnu", "lib64", "tmp", "etc")]
    target = into / "small.tar"
    target.write_bytes(docker_save([layer(*folders, *members, symlink("bin/sh", "dash"))], ["small:latest"]))
    return target


def until(look: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


@dataclass
class Cli:
    """A server, and how commands reach it."""

    directory: Path
    server: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PLASMAVMC_SERVER": f"unix:{self.directory}/run/s.sock", "TERM": "xterm"}

    def start(self, *words: str, **more: object) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen([PROGRAM, *words], env=self.environment, **pipes)  # type: ignore[call-overload, no-any-return]

    def call(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        process = self.start(*words, stdin=subprocess.PIPE)
        out, errors = process.communicate(stdin, timeout=PATIENCE_S)
        return process.returncode, out, errors

    def well(self, *words: str, stdin: bytes = b"") -> str:
        code, out, errors = self.call(*words, stdin=stdin)
        assert code == 0, errors.decode()
        return out.decode().strip()


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    base = Path(tempfile.mkdtemp(prefix="plasmavmc-cli-", dir="/var/tmp"))
    base.chmod(0o755)
    log = (base / "serve.log").open("wb")
    words = [
        PROGRAM,
        "serve",
        "--data-dir",
        base / "data",
        "--socket",
        base / "run/s.sock",
        "--cache",
        cache_directory(),
    ]
    server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    made = Cli(base, server)
    try:
        until(lambda: b"is ready" in (base / "serve.log").read_bytes() or server.poll() is not None, "the server")
        assert server.poll() is None, (base / "serve.log").read_text()
        made.well("image", "load", "-i", str(small_image(base)), "--name", "small")
        yield made
    finally:
        server.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(60)
        server.kill()
        log.close()
        shutil.rmtree(base, ignore_errors=True)


def test_the_commands_code_and_output_are_passed_and_nothing_is_left(cli: Cli) -> None:
    code, out, errors = cli.call("vm", "run", "--rm", "small", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (code, out, errors) == (7, b"out\n", b"err\n")
    assert json.loads(cli.well("vm", "ls", "-a", "-o", "json")) == []


def test_stdin_goes_in_and_all_that_comes_out_arrives(cli: Cli) -> None:
    sent = os.urandom(3_000_000)
    code, out, errors = cli.call("vm", "run", "--rm", "-i", "small", "cat", stdin=sent)
    assert code == 0, errors.decode()
    assert first_difference(out, sent) is None


def test_a_command_that_is_not_there_ends_with_127_and_one_that_is_no_program_with_126(cli: Cli) -> None:
    code, _, errors = cli.call("vm", "run", "--rm", "small", "nowhere")
    assert (code, b"nowhere was not found in the image" in errors) == (127, True), errors
    assert cli.call("vm", "run", "--rm", "small", "/etc")[0] == 126


def test_an_interrupt_ends_the_workload(cli: Cli) -> None:
    command = "trap 'echo caught; exit 5' INT; echo up; while :; do sleep 0.1; done"
    process = cli.start("vm", "run", "--rm", "small", "sh", "-c", command)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (5, b"caught\n")


class Terminal:
    """A command on a pty of its own."""

    def __init__(self, cli: Cli, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.process = cli.start(*words, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = b""

    def expect(self, wanted: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in self.seen:
            assert time.monotonic() < deadline, f"{wanted!r} not in {self.seen!r}"
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    break
        assert wanted in self.seen, self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        code = self.process.wait(PATIENCE_S)
        os.close(self.master)
        return code


def test_a_terminal_is_one_with_size_and_control_keys_and_can_be_left_and_joined_again(cli: Cli) -> None:
    terminal = Terminal(cli, "vm", "run", "-it", "--name", "console", "small", "sh")
    terminal.expect(b"# ")
    terminal.type(b'stty size; stty rows 50; echo si"z"e $(stty size)\r')
    terminal.expect(b"size 50")
    terminal.type(b"sh -c 'echo beg\"\"an; exec sleep 600'\r")
    terminal.expect(b"began")
    terminal.type(b"\x03")
    terminal.type(b'echo al"i"ve\r')
    terminal.expect(b"alive")
    terminal.type(b"\x10\x11")
    terminal.expect(b"runs on")
    assert terminal.end() == 0

    again = Terminal(cli, "vm", "attach", "console")
    again.type(b'echo ag"a"in; exit 9\r')
    again.expect(b"again")
    assert again.end() == 9
    assert cli.well("vm", "rm", "console")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def running(cli: Cli) -> Iterator[str]:
    """A VM that serves on a published port."""
    port = free_port()
    vm = cli.well("vm", "run", "-d", "-p", f"{port}:8080", "-e", "A=b", "small", "mirror")
    try:
        yield f"{vm} {port}"
    finally:
        cli.well("vm", "rm", "-f", vm)


def test_a_published_port_leads_to_the_vm_while_it_lives(cli: Cli, running: str) -> None:
    vm, _, port = running.partition(" ")

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            stream = io.BytesIO()
            with suppress(ConnectionError):
                while data := connection.recv(4096):
                    stream.write(data)
            return stream.getvalue()

    until(lambda: b"env=A=b" in ask(), "the VM's answer", 30)
    code, _, errors = cli.call("vm", "run", "--rm", "-p", f"{port}:1", "small", "cat")
    assert (code, b"is in use" in errors) == (125, True), errors
    cli.well("vm", "stop", "-t", "0", vm)
    with pytest.raises(ConnectionRefusedError):
        ask()


def test_files_go_in_and_come_out_of_a_vm_whose_image_has_no_tar(cli: Cli, running: str, tmp_path: Path) -> None:
    vm = running.partition(" ")[0]
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/file").write_bytes(os.urandom(1_000_000))
    (tree / "link").symlink_to("deep")
    (tree / "script").write_text("#!/bin/sh\nexit 4\n")
    (tree / "script").chmod(0o755)

    cli.well("vm", "cp", str(tree), f"{vm}:/tmp")
    assert cli.call("vm", "exec", vm, "/tmp/tree/script")[0] == 4
    assert cli.well("vm", "exec", vm, "readlink", "/tmp/tree/link") == "deep"
    cli.well("vm", "cp", f"{vm}:/tmp/tree", str(tmp_path / "back"))

    assert (tmp_path / "back/deep/er/file").read_bytes() == (tree / "deep/er/file").read_bytes()
    assert (tmp_path / "back/link").readlink() == Path("deep")
    code, _, errors = cli.call("vm", "cp", f"{vm}:/nothing", str(tmp_path))
    assert (code, b"No such file" in errors) == (1, True), errors


def test_exec_runs_beside_the_workload_and_passes_its_code(cli: Cli, running: str) -> None:
    vm = running.partition(" ")[0]
    code, out, _ = cli.call("vm", "exec", "-i", "-e", "X=y", vm, "sh", "-c", "cat; echo $X; exit 3", stdin=b"in\n")
    assert (code, out) == (3, b"in\ny\n")


def test_a_module_runs_from_its_file_as_a_command_or_at_a_published_port(cli: Cli, tmp_path: Path) -> None:
    command, service, port = tmp_path / "say.wasm", tmp_path / "serve.wasm", free_port()
    command.write_bytes(SAY)
    service.write_bytes(answers("from a module"))
    assert cli.call("vm", "run", "--rm", str(command))[:2] == (3, b"hello\n")
    vm = cli.well("vm", "run", "-d", "-p", f"{port}:80", str(service))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"from a module"
    connection.close()
    cli.well("vm", "rm", "-f", vm)
    code, _, errors = cli.call("vm", "run", "--rm", str(tmp_path / "nothing.wasm"))
    assert (code, b"cannot be read" in errors) == (125, True)
