"""What runs in a VM and what it writes: commands, their input and output, log lines."""

from __future__ import annotations

from plasmavmc.errors import InvalidSpecError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.rpc.conversions.values import enum_from_pb, enum_to_pb, text, texts, time_from_pb, time_to_pb
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.types import CopyTarget, ExecSpec, LogLine, LogStream, TerminalSize

MAX_SIGNAL = 64
_MAX_SIDE = 65_535
_STREAM_NAMES = {int(value): name for name, value in vm_pb2.LogLine.Stream.items()}


def exec_to_pb(vm_id: str, spec: ExecSpec) -> vm_pb2.ExecStart:
    return vm_pb2.ExecStart(
        vm_id=vm_id,
        command=spec.command,
        env=spec.env,
        user=spec.user,
        workdir=spec.workdir,
        terminal=None if spec.terminal is None else size_to_pb(spec.terminal),
    )


def exec_from_pb(message: vm_pb2.ExecStart) -> ExecSpec:
    """A command.

    Raises:
        InvalidSpecError: with the path of the field at fault.
    """
    if not message.command or not message.command[0]:
        raise InvalidSpecError("start.command", "a command is needed")
    return ExecSpec(
        command=texts("start.command", message.command),
        env={
            text("start.env", name, 256): text(f"start.env[{name[:40]!r}]", value, most=64 * 1024)
            for name, value in message.env.items()
        },
        workdir=text("start.workdir", message.workdir) if message.HasField("workdir") else None,
        user=text("start.user", message.user, 256) if message.HasField("user") else None,
        terminal=size_from_pb("start.terminal", message.terminal) if message.HasField("terminal") else None,
    )


def copy_target_to_pb(vm_id: str, target: CopyTarget) -> vm_pb2.CopyIntoStart:
    return vm_pb2.CopyIntoStart(vm_id=vm_id, path=target.path, name=target.name, contents=target.contents)


def copy_target_from_pb(message: vm_pb2.CopyIntoStart) -> CopyTarget:
    """Raises `InvalidSpecError`: a field is too long."""
    return CopyTarget(text("start.path", message.path), text("start.name", message.name, 255), message.contents)


def size_to_pb(size: TerminalSize) -> vm_pb2.TerminalSize:
    return vm_pb2.TerminalSize(rows=size.rows, columns=size.columns)


def size_from_pb(field: str, message: vm_pb2.TerminalSize) -> TerminalSize:
    """Raises `InvalidSpecError`: a side is zero or beyond 65535."""
    if not (1 <= message.rows <= _MAX_SIDE and 1 <= message.columns <= _MAX_SIDE):
        raise InvalidSpecError(field, f"rows and columns are 1 to {_MAX_SIDE}")
    return TerminalSize(message.rows, message.columns)


def signal_from_pb(number: int) -> int:
    """Raises `InvalidSpecError`: no signal of Linux (signal(7))."""
    if not 1 <= number <= MAX_SIGNAL:
        raise InvalidSpecError("signal", f"signals are 1 to {MAX_SIGNAL}")
    return number


def output_to_pb(item: ExecOutput | ExecExit) -> vm_pb2.ExecVmResponse:
    match item:
        case ExecExit(code):
            return vm_pb2.ExecVmResponse(exit_code=code)
        case ExecOutput(LogStream.STDERR, data):
            return vm_pb2.ExecVmResponse(stderr=data)
        case ExecOutput(_, data):
            return vm_pb2.ExecVmResponse(stdout=data)


def output_from_pb(message: vm_pb2.ExecVmResponse) -> ExecOutput | ExecExit | None:
    """None for what is no output: that the command runs."""
    match message.WhichOneof("message"):
        case "stdout":
            return ExecOutput(LogStream.STDOUT, message.stdout)
        case "stderr":
            return ExecOutput(LogStream.STDERR, message.stderr)
        case "exit_code":
            return ExecExit(message.exit_code)
        case _:
            return None


def line_to_pb(line: LogLine) -> vm_pb2.LogLine:
    return vm_pb2.LogLine(
        time=time_to_pb(line.time),
        stream=enum_to_pb(line.stream, "STREAM", vm_pb2.LogLine.Stream.Value),
        text=line.text,
    )


def line_from_pb(message: vm_pb2.LogLine) -> LogLine:
    stream = enum_from_pb("line.stream", LogStream, _STREAM_NAMES, message.stream, "STREAM")
    return LogLine(time_from_pb(message.time), stream, message.text)
