"""Slow work beside the event loop: in steps, in threads, and never on after its caller has gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import aclosing

import pytest

from plasmavmc.errors import ImageError
from plasmavmc.host.threads import in_thread
from plasmavmc.images.fanout import fan_out
from plasmavmc.images.locks import KeyedLocks
from plasmavmc.images.stepping import stepwise


async def test_a_cancelled_caller_waits_until_its_thread_is_done() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        time.sleep(0.05)
        done.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert done.is_set()


async def test_a_thread_that_fails_tells_its_caller() -> None:
    def work() -> None:
        raise ImageError("image-tar", "broken")

    with pytest.raises(ImageError):
        await in_thread(work)


async def test_the_steps_of_a_generator_run_in_threads_and_in_order() -> None:
    def work() -> Generator[int, None, None]:
        for number in range(3):
            assert threading.current_thread() is not threading.main_thread()
            yield number

    assert [number async for number in stepwise(work())] == [0, 1, 2]


async def test_a_generator_that_is_left_is_closed() -> None:
    closed = threading.Event()

    def work() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async with aclosing(stepwise(work())) as steps:
        async for _ in steps:
            break
    assert closed.is_set()


async def test_of_several_jobs_the_first_error_is_told_and_the_others_end() -> None:
    ended: list[int] = []

    async def job(number: int) -> int:
        if number == 2:
            raise ImageError("image-tar", "broken")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)
        return number

    with pytest.raises(ImageError):
        await fan_out(job, range(5), at_once=3)
    assert {0, 1} <= set(ended)


async def test_results_come_in_the_order_of_the_jobs_and_few_run_at_once() -> None:
    running, most = 0, 0

    async def job(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (5 - number))
        running -= 1
        return number

    assert await fan_out(job, range(5), at_once=2) == (0, 1, 2, 3, 4)
    assert most == 2


async def test_one_holds_a_key_at_a_time_and_others_do_not_wait() -> None:
    locks, order = KeyedLocks(), list[str]()

    async def use(key: str, name: str) -> None:
        async with locks.hold(key):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(use("a", "1"), use("a", "2"))
    assert order == ["1 in", "1 out", "2 in", "2 out"]
    assert not locks.is_held("a")
    async with locks.hold("a"), locks.hold("b"):
        assert locks.is_held("a")
