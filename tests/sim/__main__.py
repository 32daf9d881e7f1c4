"""Run by `scripts/sim`; see there."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from tests.sim.crashes import crashes
from tests.sim.grove import grow
from tests.sim.mutations import MUTATIONS, run_mutations
from tests.sim.play import Outcome, play
from tests.sim.shrink import shrink
from tests.sim.story import ALL_OPERATIONS, FAULT_KINDS, NODE_DEAD, OF_A_TRUNK, draw

_SHARES = 4
"""Where there are too few seeds to give each process a trunk, a trunk is shared out in so many parts."""


def main() -> int:
    options = _options()
    if options.crashes:
        return _crash(options.crashes)
    if options.mutations:
        return run_mutations(options.seeds, options.only, options.jobs)
    if options.only:
        return _replay(options)
    done = _load(options.batch)
    begin = max(options.start, done["next"])
    seeds = range(begin, options.start + options.seeds * options.every, options.every)
    started = time.monotonic()
    counts = Counter({tuple(key.split("|")): number for key, number in done["counts"].items()})
    for number, outcome in enumerate(played := _played(seeds, options.jobs), 1):
        counts.update(outcome.counts)
        if outcome.violation is not None:
            played.close()
            return _tell(outcome, number, options.shrink)
        if options.batch:
            _save(options.batch, outcome.story.seed + options.every, counts)
    seconds = time.monotonic() - started
    _print_counts(counts)
    print(f"sim: {len(seeds)} seeds from {begin} without a violation, in {seconds:.1f} s")
    empty = _zero_cells(counts)
    if empty and not options.few:
        print(f"sim: never met: {', '.join(empty)}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sim", description="Play seeded stories on a simulated platform.")
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many (100)")
    parser.add_argument("--from", type=int, default=0, dest="start", metavar="S", help="the first (0)")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="only each Kth seed, so of more trunks (1)")
    parser.add_argument("--batch", type=Path, metavar="FILE", help="note in FILE how far it came, and go on from there")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (one a core)")
    parser.add_argument("--only", default="", help="parts of the story to keep, by number; of mutations, their names")
    parser.add_argument("--trace", action="store_true", help="print all that happened (with --only, or one seed)")
    parser.add_argument(
        "--shrink", type=float, default=60.0, metavar="SECONDS", help="for cutting a failing story down"
    )
    parser.add_argument("--few", action="store_true", help="too few seeds to meet every fault with every operation")
    parser.add_argument("--mutations", action="store_true", help=f"play on {len(MUTATIONS)} copies with a fault each")
    parser.add_argument("--crashes", type=int, metavar="N", help="have each part die at each Nth step of operations")
    return parser.parse_args()


def _crash(every: int) -> int:
    failed = total = 0
    for crash in crashes(every):
        total += 1
        if crash.violation or not crash.step:
            print(crash, flush=True)
        failed += bool(crash.violation)
    print(f"sim: {failed} of {total} crashes did not end well")
    return 1 if failed else 0


def _replay(options: argparse.Namespace) -> int:
    story = draw(options.start)
    if options.only != "all":
        story = story.only({int(part) for part in options.only.split(",")})
    outcome = play(story, keep_trace=True)
    print(story.told())
    if options.trace:
        print("\n".join(outcome.trace))
    print(outcome.violation or "no violation")
    return 1 if outcome.violation else 0


def _played(seeds: range, jobs: int) -> Generator[Outcome]:
    gc.freeze()  # what is imported need not be looked at whenever a story is cleared away
    if jobs == 1:
        with closing(grow(seeds)) as outcomes:
            yield from _compared(outcomes)
        return
    size = OF_A_TRUNK if len(seeds) >= jobs * OF_A_TRUNK else OF_A_TRUNK // _SHARES
    shares = [seeds[begin : begin + size] for begin in range(0, len(seeds), size)]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for outcomes in pool.imap(_share, shares):
            yield from outcomes


def _share(seeds: range) -> list[Outcome]:
    return list(_compared(grow(seeds)))


def _compared(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """One story of each trunk is played again by itself, without forks, and must come out the same."""
    for outcome in outcomes:
        seed = outcome.story.seed
        alone = seed // OF_A_TRUNK % OF_A_TRUNK == seed % OF_A_TRUNK and outcome.violation is None
        if alone and play(draw(seed)).digest != outcome.digest:
            raise AssertionError(f"seed {seed} does not come out the same twice")
        yield outcome


def _tell(outcome: Outcome, number: int, seconds: float) -> int:
    """What failed, how to see it again, and the shortest story found."""
    print(f"sim: seed {outcome.story.seed}: {outcome.violation}", file=sys.stderr)
    times = os.times()
    spent = times.user + times.system + times.children_user + times.children_system
    print(f"sim: found by {number} stories in {spent:.1f} s of CPU", file=sys.stderr)
    short = shrink(outcome, seconds=seconds) if seconds else outcome
    only = ",".join(map(str, short.story.kept))
    print(f"sim: in short: {short.violation}\n{short.story.told()}", file=sys.stderr)
    print(f"replay: scripts/sim --from {outcome.story.seed} --only {only} --trace", file=sys.stderr)
    return 1


def _zero_cells(counts: Counter[tuple[str, ...]]) -> list[str]:
    faults = [*FAULT_KINDS, NODE_DEAD]
    return [
        f"{fault} × {operation}" for fault in faults for operation in ALL_OPERATIONS if not counts[fault, operation]
    ]


def _print_counts(counts: Counter[tuple[str, ...]]) -> None:
    """Requests by the faults that were going on when they were made."""
    names = list(ALL_OPERATIONS)
    print(" " * 16 + "".join(f"{name[:9]:>10}" for name in names))
    for fault in ["none", *FAULT_KINDS, NODE_DEAD]:
        print(f"{fault:16}" + "".join(f"{counts[fault, name]:>10}" for name in names))


def _load(batch: Path | None) -> dict:
    if batch is None or not batch.exists():
        return {"next": 0, "counts": {}}
    return json.loads(batch.read_text())


def _save(batch: Path, following: int, counts: Counter[tuple[str, ...]]) -> None:
    fresh = batch.with_name(batch.name + ".new")
    fresh.write_text(json.dumps({"next": following, "counts": {"|".join(key): n for key, n in counts.items()}}))
    fresh.replace(batch)


if __name__ == "__main__":
    sys.exit(main())
