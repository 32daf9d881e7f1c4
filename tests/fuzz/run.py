"""Fuzz one target with atheris, led by coverage: `python -m tests.fuzz.run TARGET SECONDS DIRECTORY`.

The directory gets what it learns, and the input of a crash."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["plasmavmc", "shellwego.wire", "shellwego.drivers.streams"]):
    from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    name, seconds, directory = sys.argv[1:]
    learnt = Path(directory) / f"learnt-{name}"
    learnt.mkdir(exist_ok=True)
    bounds = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=1024", "-verbosity=0"]
    places = [f"-artifact_prefix={directory}/{name}-", str(learnt), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *bounds, *places], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
