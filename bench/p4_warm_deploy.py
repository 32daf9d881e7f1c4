"""P4: a warm deploy of an unchanged image, from its acceptance to its success, without the guest's boot."""

from __future__ import annotations

import os

from bench.measure import Result, median
from bench.stage import stage

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))


def run() -> list[Result]:
    """One app with one instance; each round is a new release of the same image."""
    with stage() as ready:
        whole, without = [], []
        for number in range(ROUNDS):
            before = len(ready.boots())
            took = ready.deploy(number)
            boot = ready.boots()[before]
            whole.append(took * 1000)
            without.append((took - boot) * 1000)
    figure = median(without)
    return [
        Result(
            "P4",
            "warm deploy of an unchanged image, accepted → succeeded, boot excluded",
            figure.text(" ms", 0),
            "≤ 500 ms",
            figure.value <= 500,
            (f"with the boot: {median(whole).text(' ms', 0)}; {ROUNDS} rounds",),
        )
    ]
