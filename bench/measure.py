"""Numbers that hold on a noisy machine: medians, ratios of interleaved rounds, bootstrap intervals."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, unit: str = "", digits: int = 2) -> str:
        return f"{self.value:.{digits}f}{unit} [{self.low:.{digits}f}–{self.high:.{digits}f}]"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report."""

    row: str
    """`P1` …, as in the goals."""
    what: str
    measured: str
    goal: str
    reached: bool
    details: tuple[str, ...] = ()


def median(samples: Sequence[float]) -> Estimate:
    """The median, with its interval."""
    return _bootstrap(lambda pick: statistics.median(pick(samples)))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Ratio of the medians of two series measured in turn, with its interval."""
    return _bootstrap(lambda pick: statistics.median(pick(ours)) / statistics.median(pick(theirs)))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Median of the ratios of each round's two samples, with its interval; a host that slows down slows both of a round."""
    return median([one / other for one, other in zip(ours, theirs, strict=True)])


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Difference of the medians, with its interval."""
    return _bootstrap(lambda pick: statistics.median(pick(ours)) - statistics.median(pick(theirs)))


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which this share of the samples lies."""
    ordered = sorted(samples)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


Pick = Callable[[Sequence[float]], Sequence[float]]


def _bootstrap(statistic: Callable[[Pick], float]) -> Estimate:
    source = random.Random(1)
    values = sorted(statistic(lambda samples: source.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    return Estimate(statistic(lambda samples: samples), values[int(RESAMPLES * 0.025)], values[int(RESAMPLES * 0.975)])


def interleaved(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Run the sides in turn, in both orders (A B, then B A), so that drift of the machine falls on all alike."""
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else range(len(sides) - 1, -1, -1)
        for side in order:
            samples[side].append(sides[side]())
    return samples
