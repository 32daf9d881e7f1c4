"""Child processes: bounded in time and output, and never left behind."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from plasmavmc.errors import HostError, UnavailableError
from plasmavmc.host.run import feeding, run

pytestmark = pytest.mark.real


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        await asyncio.sleep(0.01)


def content_of(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


async def read_pid(path: Path) -> int:
    deadline = time.monotonic() + 5
    while not content_of(path):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return int(content_of(path))


async def feed_much(argv: list[str]) -> None:
    async with feeding(argv, timeout_s=5) as child:
        for _ in range(100):
            await child.write(b"z" * 100_000)


async def test_output_and_code_are_the_answer_whatever_the_code() -> None:
    completed = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=5)
    assert (completed.returncode, completed.stdout, completed.complaint) == (3, b"out\n", "err")


async def test_a_child_inherits_nothing_of_the_environment() -> None:
    os.environ["SWG_TEST_SECRET"] = "secret"
    try:
        completed = await run(["env"], timeout_s=5, env={"GIVEN": "1"})
    finally:
        del os.environ["SWG_TEST_SECRET"]
    assert b"SWG_TEST_SECRET" not in completed.stdout
    assert b"GIVEN=1" in completed.stdout


async def test_a_missing_program_names_the_package_to_install() -> None:
    with pytest.raises(HostError) as caught:
        await run(["swg-no-such-program"], timeout_s=5)
    assert caught.value.code == "missing-program"
    assert "apt-get install" in caught.value.resolution


async def test_a_deadline_kills_the_grandchildren_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(UnavailableError) as caught:
        await run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], timeout_s=0.5)
    assert caught.value.code == "program-timeout"
    await wait_until_gone(await read_pid(note))


async def test_cancellation_kills_the_child(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    task = asyncio.create_task(run(["sh", "-c", f"echo $$ > {note}; exec sleep 60"], timeout_s=60))
    pid = await read_pid(note)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_gone(pid)


async def test_a_grandchild_that_holds_the_output_cannot_outlive_the_deadline() -> None:
    with pytest.raises(UnavailableError):
        await run(["sh", "-c", "sleep 60 & exit 0"], timeout_s=0.5)


async def test_a_flood_of_output_is_refused() -> None:
    with pytest.raises(HostError) as caught:
        await run(["cat", "/dev/zero"], timeout_s=10, max_output=100_000)
    assert caught.value.code == "program-output"


async def test_a_flood_of_complaints_keeps_the_last_of_them() -> None:
    completed = await run(["sh", "-c", "yes | head -c 1000000 >&2; echo last >&2"], timeout_s=10)
    assert completed.complaint == "last"
    assert len(completed.stderr) <= 64 * 1024


async def test_input_reaches_the_child() -> None:
    completed = await run(["cat"], timeout_s=5, stdin=b"x" * 300_000)
    assert completed.stdout == b"x" * 300_000


async def test_input_that_nobody_reads_is_no_error() -> None:
    completed = await run(["true"], timeout_s=5, stdin=b"x" * 1_000_000)
    assert completed.returncode == 0


async def test_a_stream_is_fed_piece_by_piece() -> None:
    async with feeding(["wc", "-c"], timeout_s=5) as child:
        for _ in range(10):
            await child.write(b"y" * 100_000)
        completed = await child.finish()
    assert completed.stdout.strip() == b"1000000"


async def test_feeding_a_child_that_died_tells_its_last_words() -> None:
    with pytest.raises(HostError) as caught:
        await feed_much(["sh", "-c", "echo broken >&2; exit 2"])
    assert caught.value.code == "program-ended"
    assert caught.value.details == "broken"


async def test_leaving_without_finish_kills_the_child(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    async with feeding(["sh", "-c", f"echo $$ > {note}; exec sleep 60"], timeout_s=60):
        pid = await read_pid(note)
    await wait_until_gone(pid)
