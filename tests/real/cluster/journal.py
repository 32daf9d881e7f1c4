"""What clients asked and were answered, kept outside of the platform: requests to the app through both edges, and to the API
through the balancer. Nothing is repeated while a fault lasts; each POST bears a number that whoever does it keeps.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

from examples.demo.load import Load, Sample
from tests.real.cluster.api import Answer, Api
from tests.real.cluster.hosts import APP_HOST, HTTP, Cluster

RATE, CONNECTIONS = 16, 4
API_CLIENTS, API_EVERY_S = 2, 0.5
_SERIALS = itertools.count(1_000_000, 1_000_000)
_JOURNAL = re.compile(rb"^[0-9.]+ o [0-9]+ journal ([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the API: reads the apps, or makes the one named."""

    app: str
    answer: Answer
    at: float


class ApiLoad:
    """Clients that ask the API twice a second each, by turns to make an app and to list one, while the context is open."""

    def __init__(self, api: Api, first: int) -> None:
        self._api = api
        self._serials = itertools.count(first)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(API_CLIENTS)]
        self.asked: list[Asked] = []

    def __enter__(self) -> ApiLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def failed(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.answer.status not in (200, 201)]

    def doubled(self) -> list[str]:
        """Apps that were there already when they were made: the same request had been done before."""
        return [asked.app for asked in self.asked if asked.answer.status == 409]

    def made(self) -> list[str]:
        """What was acknowledged."""
        return [asked.app for asked in self.asked if asked.app and asked.answer.status == 201]

    def ask_again(self) -> list[Asked]:
        """Repeat, now, each request to make an app that failed, under its own key; returns what came of it (L5)."""
        failed = [asked.app for asked in self.failed if asked.app]
        return [Asked(app, self._make(app), time.monotonic()) for app in failed]

    def _work(self, number: int) -> None:
        due = time.monotonic() + number * API_EVERY_S / API_CLIENTS
        while not self._stop.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + API_EVERY_S, time.monotonic())
            serial = next(self._serials)
            app = f"made-{serial}" if serial % 2 else ""
            answer = self._make(app) if app else self._api.ask("GET", "/v1/apps?limit=1")
            self.asked.append(Asked(app, answer, time.monotonic()))

    def _make(self, app: str) -> Answer:
        return self._api.ask("POST", "/v1/apps", {"name": app}, key=app)


@dataclass
class Journal:
    """Both loads, while the context is open."""

    cluster: Cluster
    apps: list[Load] = field(init=False)
    api: ApiLoad = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.apps = [
            Load(
                HTTP,
                APP_HOST,
                rate=RATE,
                connections=CONNECTIONS,
                first=next(_SERIALS),
                address=edge.host.address,
            )
            for edge in self.cluster.edges
        ]
        self.api = ApiLoad(self.cluster.api, next(_SERIALS))

    def __enter__(self) -> Journal:
        for load in (*self.apps, self.api):
            self._stack.enter_context(load)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def samples(self) -> list[Sample]:
        return [sample for load in self.apps for sample in load.journal.samples]

    @property
    def failed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status != 200]

    def executed(self) -> Counter[int]:
        """How often VMs executed each POST of this journal, by what they wrote, on all nodes."""
        asked = {sample.serial for sample in self.samples}
        files = [path for node in self.cluster.nodes for path in (node.data_dir / "logs").glob("*/*") if path.is_file()]
        found = (int(number) for path in files for number in _JOURNAL.findall(path.read_bytes()))
        return Counter(number for number in found if number in asked)

    def lost(self) -> set[int]:
        """POSTs that were acknowledged, and that no VM wrote of."""
        acknowledged = {number for load in self.apps for number in load.journal.acknowledged}
        return acknowledged - set(self.executed())

    def doubled(self) -> set[int]:
        """POSTs that were executed more than once."""
        return {number for number, times in self.executed().items() if times > 1}
