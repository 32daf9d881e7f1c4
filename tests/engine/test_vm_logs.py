"""Logs of VMs: whole lines, once each, within a budget, and never in the app's way."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from plasmavmc.guest.logs import BUDGET_BYTES, KEPT_S, MAX_LINE, LogStore, VmLog
from plasmavmc.types import LogLine, LogStream, Scope

OUT, ERR = LogStream.STDOUT, LogStream.STDERR
OWNER = Scope("org_1", "prj_1")


def texts(log: VmLog, count: int = 100) -> list[str]:
    return [line.text for line in log.tail(count)]


def make(tmp_path: Path, budget: int = 1 << 20) -> VmLog:
    return VmLog(tmp_path / "vm", clock=lambda: 1000.0, budget=budget)


def test_lines_are_stored_whole_however_the_bytes_were_cut(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"one\ntw")
    assert texts(log) == ["one"]
    log.write(OUT, 6, b"o\n")
    assert texts(log) == ["one", "two"]


def test_streams_do_not_mix_within_a_line(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"out ")
    log.write(ERR, 4, b"error\n")
    log.write(OUT, 10, b"put\n")
    assert [(line.stream, line.text) for line in log.tail(10)] == [(ERR, "error"), (OUT, "out put")]


def test_only_what_is_stored_is_acknowledged(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"whole\nhalf")
    log.write(ERR, 10, b"error\n")
    assert log.acknowledged == 6
    log.flush()
    assert log.acknowledged == 16


def test_output_sent_again_after_a_restart_is_stored_once(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"one\ntwo\nthr")
    log.write(ERR, 11, b"error\n")
    after_restart = make(tmp_path)
    after_restart.write(OUT, 8, b"thr")
    after_restart.write(ERR, 11, b"error\n")
    after_restart.write(OUT, 17, b"ee\n")
    assert texts(after_restart) == ["one", "two", "error", "three"]


def test_output_sent_again_in_another_cut_is_stored_once(tmp_path: Path) -> None:
    make(tmp_path).write(OUT, 0, b"one\ntwo\n")
    after_restart = make(tmp_path)
    after_restart.write(OUT, 4, b"two\nthree\n")
    after_restart.write(OUT, 0, b"one\ntwo\nthree\nfour\n")
    assert texts(after_restart) == ["one", "two", "three", "four"]


def test_output_sent_again_after_the_channel_broke_is_stored_once(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"one\nthr")
    log.write(OUT, 0, b"one\n")
    log.write(OUT, 4, b"thr")
    log.write(OUT, 7, b"ee\n")
    assert texts(log) == ["one", "three"]


def test_another_run_numbers_from_nothing_again(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"a long first line\n")
    log.close()
    log.begin_anew()
    assert not log.closed
    log.write(OUT, 0, b"short\n")
    assert log.acknowledged == 6
    make(tmp_path).write(OUT, 0, b"short\nmore\n")
    assert texts(log) == ["a long first line", "a new run of this VM begins", "short", "more"]


def test_an_app_that_writes_the_words_of_a_new_run_begins_none(tmp_path: Path) -> None:
    words = b"1.000 s -1 a new run of this VM begins\n"
    make(tmp_path).write(OUT, 0, words)
    make(tmp_path).write(OUT, 0, words)
    assert texts(make(tmp_path)) == [words.decode().rstrip()]


def test_a_store_begins_anew_only_where_there_is_a_log(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "logs")
    store.begin("k1", OWNER)
    assert texts(store.open("k1")) == []
    store.open("k1").write(OUT, 0, b"one\n")
    store.begin("k1", OWNER)
    assert texts(store.open("k1")) == ["one", "a new run of this VM begins"]


def test_a_gap_is_told_as_dropped_output(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"first\n")
    log.write(OUT, 1006, b"later\n")
    assert texts(log) == ["first", "1000 bytes of output were dropped by the guest", "later"]


def test_a_line_without_end_is_split(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"x" * (MAX_LINE + 10))
    log.write(OUT, MAX_LINE + 10, b"\n")
    assert [len(text) for text in texts(log)] == [MAX_LINE, 10]


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"\xff\x00ok\r\n")
    assert texts(log) == ["\ufffd\x00ok"]


def test_the_budget_drops_the_oldest(tmp_path: Path) -> None:
    log = make(tmp_path, budget=8000)
    for number in range(1000):
        log.write(OUT, number * 10, f"{number:09d}\n".encode())
    kept = texts(log, 1000)
    assert kept[-1] == "000000999"
    assert 0 < len(kept) < 500
    assert sum(path.stat().st_size for path in (tmp_path / "vm").iterdir()) <= 8000


def test_a_full_disk_loses_lines_and_says_so_but_never_fails(tmp_path: Path) -> None:
    log = make(tmp_path)
    directory = tmp_path / "vm"
    log.write(OUT, 0, b"before\n")
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    directory.write_text("in the way")  # nothing can be created below it now
    log.write(OUT, 7, b"lost\n")
    assert log.acknowledged == 12
    directory.unlink()
    directory.mkdir()
    log.write(OUT, 12, b"after\n")
    assert texts(log)[0] == "after"
    assert "were lost" in texts(log)[1]


def test_a_log_for_which_there_is_no_place_yet_loses_lines_and_begins_when_there_is(tmp_path: Path) -> None:
    (tmp_path / "vm").write_text("in the way")
    log = make(tmp_path)
    log.write(OUT, 0, b"lost\n")
    assert log.acknowledged == 5
    (tmp_path / "vm").unlink()
    log.write(OUT, 5, b"after\n")
    assert texts(log)[0] == "after"


async def collect(log: VmLog, lines: list[LogLine]) -> None:
    async for line in log.follow(10):
        lines.append(line)


async def test_a_follower_sees_old_and_new_lines_until_the_log_is_closed(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"old\n")
    lines: list[LogLine] = []
    follower = asyncio.create_task(collect(log, lines))
    await asyncio.sleep(0)
    log.write(OUT, 4, b"new\n")
    log.write(OUT, 8, b"last words")
    log.close()
    await asyncio.wait_for(follower, 5)
    assert [line.text for line in lines] == ["old", "new", "last words"]


async def test_a_follower_that_reads_slowly_misses_no_end_beside_a_fast_one(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"old\n")
    slow = log.follow(0)
    reading = asyncio.ensure_future(anext(slow))
    fast = asyncio.create_task(collect(log, []))
    await asyncio.sleep(0)
    log.write(OUT, 4, b"new\n")
    assert (await reading).text == "new"
    log.close()
    async with asyncio.timeout(5):
        await fast
        assert [line async for line in slow] == []


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


class Days:
    """A store whose clock is moved on; what is written has the time of the disk's."""

    def __init__(self, root: Path) -> None:
        self.now = time.time()
        self.store = LogStore(root, clock=lambda: self.now)

    async def swept(self, *kept: str) -> int:
        return await self.store.sweep(lambda: frozenset(kept))


async def test_logs_are_kept_for_a_day_after_their_vm(tmp_path: Path) -> None:
    days = Days(tmp_path)
    for key in ("living", "ended"):
        days.store.open(key).write(OUT, 0, b"line\n")
    days.now += KEPT_S - 60
    assert await days.swept("living") == 0
    days.now += 120
    assert await days.swept("living") == 1
    assert days.store.find("ended") is None
    assert names(tmp_path) == ["living"]


async def test_the_day_begins_with_the_end_of_a_vm_that_was_silent_for_long(tmp_path: Path) -> None:
    days = Days(tmp_path)
    days.store.open("quiet").write(OUT, 0, b"line\n")
    days.now += 10 * KEPT_S
    days.store.open("quiet").close()
    days.now += KEPT_S - 60
    assert await days.swept() == 0
    found = days.store.find("quiet")
    assert found is not None, "and who reads it"
    days.now += 120
    assert await days.swept() == 1, "does not prolong it"


async def test_a_store_forgets_the_logs_of_vms_that_are_gone_and_finds_them_again(tmp_path: Path) -> None:
    days = Days(tmp_path)
    for key in ("ended", "living"):
        days.store.open(key).write(OUT, 0, b"line\n")
    before, living = days.store.open("ended"), days.store.open("living")
    before.close()
    assert await days.swept("living") == 0
    again = days.store.find("ended")
    assert again is not None
    assert again is not before
    assert texts(again) == ["line"]
    assert days.store.find("living") is living


async def test_a_vm_that_begins_while_its_keys_old_log_is_swept_has_a_log_of_its_own(tmp_path: Path) -> None:
    days = Days(tmp_path)
    days.store.begin("key", OWNER)
    days.store.open("key").write(OUT, 0, b"old\n")
    days.now += KEPT_S + 60
    asked = 0

    def kept() -> frozenset[str]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return frozenset()
        days.store.begin("key", OWNER)
        days.store.open("key").write(OUT, 0, b"new\n")
        return frozenset({"key"})

    assert await days.store.sweep(kept) == 0
    assert texts(days.store.open("key"))[-1] == "new"


async def test_what_a_sweep_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".half").mkdir()
    (tmp_path / ".half" / "00000001.log").write_text("1.000 o 5 line\n")
    await Days(tmp_path).swept()
    assert names(tmp_path) == []


async def test_following_the_log_of_an_ended_vm_ends(tmp_path: Path) -> None:
    LogStore(tmp_path).open("vm").write(OUT, 0, b"line\n")
    found = LogStore(tmp_path).find("vm")
    assert found is not None
    async with asyncio.timeout(5):
        assert [line.text async for line in found.follow(5)] == ["line"]


@pytest.mark.parametrize("raw", ["", "torn", "12.5 o", "12.5 o x text", "x o 1 text", "12.5 z 1 text"])
def test_a_torn_line_is_passed_over(tmp_path: Path, raw: str) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"whole\n")
    with next((tmp_path / "vm").iterdir()).open("a") as segment:
        segment.write(raw + "\n")
    assert texts(log) == ["whole"]


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this thread alone, and without a look for garbage among all that other tests left."""
    gc.disable()
    try:
        began = time.thread_time()
        work()
        return time.thread_time() - began
    finally:
        gc.enable()


def test_a_frame_full_of_empty_lines_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    """It costs less than a tenth of its lines do when each goes to the disk by itself."""

    def one_by_one() -> None:
        for number in range(6_000):
            log.write(OUT, number, b"\n")

    log = make(tmp_path, budget=BUDGET_BYTES)
    alone = cpu_seconds(one_by_one)
    assert cpu_seconds(lambda: log.write(OUT, 6_000, b"\n" * 60_000)) < alone
    assert len(log.tail(100_000)) == 66_000


def test_the_last_lines_of_a_long_log_cost_no_more_than_they_are(tmp_path: Path) -> None:
    log = make(tmp_path, budget=BUDGET_BYTES)
    for number in range(50):
        log.write(OUT, number * 60_000, (b"x" * 59 + b"\n") * 1000)
    whole = cpu_seconds(lambda: log.tail(1_000_000))
    assert cpu_seconds(lambda: log.tail(10)) < whole / 10


def test_a_tail_spans_segments_and_ends_at_lines_that_are_too_old(tmp_path: Path) -> None:
    now = 0.0
    log = VmLog(tmp_path / "vm", clock=lambda: now, budget=8000)
    for number in range(100):
        now = float(number)
        log.write(OUT, number * 10, f"{number:09d}\n".encode())
    assert len(list((tmp_path / "vm").iterdir())) > 1
    assert [int(text) for text in texts(log, 60)] == list(range(40, 100))
    assert [int(line.text) for line in log.tail(60, since=90.0)] == list(range(90, 100))


@pytest.mark.parametrize("reads", [VmLog.follow, VmLog.read])
async def test_readers_that_stop_in_the_middle_keep_nothing_of_the_log_in_memory(
    reads: Callable[[VmLog, int], AsyncGenerator[LogLine]], tmp_path: Path
) -> None:
    log = make(tmp_path, budget=BUDGET_BYTES)
    line = b"x" * (MAX_LINE - 1) + b"\n"
    for number in range(200):
        log.write(OUT, number * len(line), line)
    tracemalloc.start()
    readers = [reads(log, 10_000) for _ in range(20)]
    firsts = [await anext(reader) for reader in readers]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {first.text for first in firsts} == {line[:-1].decode()}
    assert held < len(readers) * 512 * 1024, "each of them may hold a few lines, and not 3 MiB"
    for reader in readers:
        await reader.aclose()


async def test_who_reads_a_long_log_lets_others_have_their_turn(tmp_path: Path) -> None:
    log = make(tmp_path, budget=BUDGET_BYTES)
    log.write(OUT, 0, b"\n" * 10_000)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    assert [line.text async for line in log.read(10_000)] == [""] * 10_000
    counting.cancel()
    assert turns > 100


async def test_what_is_written_while_the_last_lines_are_read_is_left_to_the_next_reader(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.write(OUT, 0, b"a\nb\n")
    reader = log.read(2)
    assert (await anext(reader)).text == "a"
    log.write(OUT, 4, b"c\n")
    assert [line.text async for line in reader] == ["b"]


def test_a_log_full_of_empty_lines_is_taken_up_again_at_once(tmp_path: Path) -> None:
    """At a fraction of what it costs to read them."""
    log = make(tmp_path, budget=BUDGET_BYTES)
    for number in range(10):
        log.write(OUT, number * 60_000, b"\n" * 60_000)
    log.write(ERR, 600_000, b"1.000 o 9000000 forged\n")
    again: list[VmLog] = []
    reading = cpu_seconds(lambda: log.tail(600_000))
    assert cpu_seconds(lambda: again.append(make(tmp_path, budget=BUDGET_BYTES))) < reading / 3
    assert again[0].acknowledged == 600_023
    again[0].write(OUT, 600_000 - 10, b"\n" * 10)
    again[0].write(ERR, 600_000, b"1.000 o 9000000 forged\n")
    assert texts(again[0], 2) == ["", "1.000 o 9000000 forged"]


def test_a_copys_log_begins_where_the_copy_does_and_misses_nothing(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.begin_at(5000)
    log.write(OUT, 5000, b"mine\n")
    assert texts(log) == ["mine"]
    log.begin_at(9000)
    log.write(OUT, 5010, b"later\n")
    assert texts(log) == ["mine", "5 bytes of output were dropped by the guest", "later"]
