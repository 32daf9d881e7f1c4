"""What a module can do and cannot: the sandbox in this process, without host and channel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from plasmavmc.hypervisor.wasm.engine import INTERRUPTED, TRAPPED, BadModuleError, Ended, Run, Sandbox
from plasmavmc.hypervisor.wasm.job import write_file
from plasmavmc.types import MIB, FileSpec
from tests.contract import wasm_modules as modules

ENOENT, EPERM, ENOTCAPABLE, EBADF, ENOTSOCK = 44, 63, 76, 8, 57


class Box:
    """A sandbox with a directory, and what was written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stdout = bytearray()
        self.stderr = bytearray()

    def run(
        self,
        module: bytes,
        *,
        memory_bytes: int = 64 * MIB,
        deadline_s: float | None = 10.0,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        sandbox = Sandbox()
        sandbox.load(module, None)
        return sandbox.run(
            Run(
                argv=["/module.wasm"],
                env=env or {},
                directory=self.directory,
                stdout=self.stdout.extend,
                stderr=self.stderr.extend,
                memory_bytes=memory_bytes,
                deadline_s=deadline_s,
            )
        )


@pytest.fixture
def box(tmp_path: Path) -> Box:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("of the host")
    return Box(root)


def test_a_command_writes_and_ends_with_its_code(box: Box) -> None:
    assert box.run(modules.SAY) == Ended(3)
    assert box.stdout == b"hello\n"


def test_a_trap_ends_as_an_abort_with_its_stack(box: Box) -> None:
    ended = box.run(modules.TRAP)
    assert (ended.exit_code, ended.oom) == (TRAPPED, False)
    assert "wasm backtrace" in ended.trap
    assert "unreachable" in ended.trap


def test_a_stack_that_overflows_is_a_trap(box: Box) -> None:
    ended = box.run(modules.DEEP)
    assert ended.exit_code == TRAPPED
    assert "stack" in ended.trap


def test_a_loop_ends_at_its_deadline(box: Box) -> None:
    began = time.monotonic()
    ended = box.run(modules.LOOP, deadline_s=0.2)
    assert (ended.exit_code, ended.timed_out) == (INTERRUPTED, True)
    assert 0.1 < time.monotonic() - began < 5.0


def test_memory_beyond_the_limit_is_not_given_and_the_abort_is_told_as_out_of_memory(box: Box) -> None:
    ended = box.run(modules.GROWS, memory_bytes=16 * MIB)
    assert (ended.exit_code, ended.oom) == (TRAPPED, True)


def test_a_module_that_needs_more_memory_from_the_start_is_refused(box: Box) -> None:
    with pytest.raises(BadModuleError) as refused:
        box.run(modules.GREEDY, memory_bytes=64 * MIB)
    assert refused.value.code == "memory-limit"


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "/../secret", "link"])
def test_no_path_leads_out_of_the_directory(box: Box, path: str) -> None:
    (box.directory / "link").symlink_to(box.directory.parent / "secret")
    ended = box.run(modules.opens(path))
    assert ended.exit_code in (EPERM, ENOTCAPABLE, ENOENT)
    assert not ended.trap


def test_its_own_directory_can_be_read_and_written(box: Box) -> None:
    assert box.run(modules.opens("made", create=True)) == Ended(0)
    assert (box.directory / "made").exists()


def test_there_are_no_sockets(box: Box) -> None:
    assert box.run(modules.ACCEPTS).exit_code in (EBADF, ENOTSOCK)
    with pytest.raises(BadModuleError) as refused:
        box.run(modules.UNKNOWN_IMPORT)
    assert refused.value.code == "not-executable"


def test_it_has_the_variables_that_it_was_given_and_none_of_the_host_s(box: Box) -> None:
    assert box.run(modules.VARIABLES, env={"A": "b", "C": "d"}) == Ended(2)


@pytest.mark.parametrize("content", [b"\0asm\x01\0\0\0\xff\xff", b"\0asm\x01\0\0\0\x01\x05junk", modules.LIBRARY])
def test_what_is_no_command_is_refused(box: Box, content: bytes) -> None:
    with pytest.raises(BadModuleError) as refused:
        box.run(content)
    assert refused.value.code == "not-executable"


def test_compiled_code_is_taken_and_rubbish_is_compiled_anew(box: Box) -> None:
    first = Sandbox()
    code = first.load(modules.SAY, None)
    assert code is not None
    assert Sandbox().load(modules.SAY, code) is None
    assert Sandbox().load(modules.SAY, code[: len(code) // 2]) == code


@pytest.mark.parametrize("path", ["/a/b", "/../a/b", "//a/./b", "/x/../a/b"])
def test_a_file_of_the_configuration_lies_below_the_root_wherever_it_points(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_file(root, FileSpec(path, b"content", 0o600))
    assert (root / "a/b").read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [root]
