"""Plays all stories of a trunk, and what they share once: at each fork the process that holds the running platform forks.

There are no threads, files or timers of the kernel in it (see `timeline`), so a child has all of the platform, and goes on
by itself. Stories are played one after another, in the order of their seeds, each to its end.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import BinaryIO, NoReturn

from tests.sim.play import Outcome, play
from tests.sim.story import OF_A_TRUNK, Story, draw, path
from tests.sim.watch import Violation


def grow(seeds: Sequence[int]) -> Generator[Outcome]:
    """Play the stories of these seeds, which rise. What is violated before a fork is told of the first of the stories that
    have it; the others are left out."""
    for _, trunk in groupby(seeds, lambda seed: seed // OF_A_TRUNK):
        yield from _grow(list(trunk))


def _grow(seeds: list[int]) -> Generator[Outcome]:
    """Of one trunk."""
    reading, writing = os.pipe()
    trunk = os.fork()
    if not trunk:
        os.close(reading)
        _Trunk(seeds, writing).play()
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as answers:
            yield from _outcomes(answers)
    finally:
        os.waitpid(trunk, 0)  # it ends as soon as nobody reads


def _outcomes(answers: BinaryIO) -> Iterator[Outcome]:
    while True:
        try:
            outcome: Outcome = pickle.load(answers)  # noqa: S301 - a child of ours wrote it
        except EOFError:
            return
        yield outcome


class _Trunk:
    """A process of the tree, with the seeds of the stories that go on from where it is."""

    def __init__(self, seeds: list[int], writing: int) -> None:
        self._seeds = seeds
        self._writing = writing
        self._first = os.getpid()
        self._told = False

    def play(self) -> NoReturn:
        """Play to the end, in this process the last of them; the others in children."""
        gc.disable()  # each process ends with its story, and what it shares with others is not even to be looked at
        code = 1
        try:
            outcome = play(draw(self._seeds[0]), take=self._take, tell=self._tell)
            if not self._told:
                self._write(outcome)
            code = 0
        finally:
            os._exit(code)

    def _take(self, stretch: int) -> Story:
        """Has each way from this fork on played by a child, one after another, but the last, which is for this process."""
        loop = asyncio.get_running_loop()
        *ways, last = self._ways(stretch)
        for way in ways:
            child = os.fork()
            if not child:
                asyncio._set_running_loop(loop)  # which belongs to the process that began it
                self._seeds = way
                break
            _, status = os.waitpid(child, 0)
            if status:
                self._write(_broken(way[0], status))
        else:
            self._seeds = last
        return draw(self._seeds[0])

    def _ways(self, stretch: int) -> list[list[int]]:
        """The seeds by the way that they take at a fork."""
        return [list(way) for _, way in groupby(self._seeds, lambda seed: path(seed)[: stretch + 1])]

    def _tell(self, outcome: Outcome) -> None:
        """What is left of the platform ends with a child."""
        self._write(outcome)
        self._told = True
        if os.getpid() != self._first:
            os._exit(0)

    def _write(self, outcome: Outcome) -> None:
        told = replace(outcome, trace=outcome.trace if outcome.violation else ())
        with os.fdopen(self._writing, "wb", closefd=False) as answers:
            pickle.dump(told, answers)


def _broken(seed: int, status: int) -> Outcome:
    violation = Violation("broken", f"its process ended with {status}", 0.0)
    return Outcome(draw(seed), violation, "", {}, {}, (), 0, 0.0)
