"""A small load generator: keep-alive connections, a fixed rate, GETs and POSTs with serial numbers; nothing is retried.

Each request is recorded with its answer, so that a doubled, lost or failed one shows.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    serial: int
    method: str
    status: int
    """0 where no answer came."""
    seconds: float
    at: float
    """When it was answered, by the monotonic clock."""
    error: str = ""
    """Why no answer came, or the name of the edge's own page where one of those did."""
    version: str = ""


@dataclass(slots=True)
class Journal:
    """What was asked and answered."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def failed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status != 200]

    @property
    def acknowledged(self) -> list[int]:
        """Serial numbers of the POSTs that were answered with 200."""
        return [sample.serial for sample in self.samples if sample.method == "POST" and sample.status == 200]

    def versions(self) -> Counter[str]:
        return Counter(sample.version for sample in self.samples if sample.version)

    def summary(self) -> str:
        times = sorted(sample.seconds for sample in self.samples) or [0.0]
        p50, p99 = (times[min(int(len(times) * share), len(times) - 1)] * 1000 for share in (0.5, 0.99))
        return f"{len(self.samples)} requests, {len(self.failed)} failed, p50 {p50:.0f} ms, p99 {p99:.0f} ms"


class Load:
    """Sends `rate` requests a second over `connections` keep-alive connections while its context is open; serial numbers
    begin at `first`."""

    def __init__(
        self,
        port: int,
        host: str,
        *,
        rate: float = 50,
        connections: int = 8,
        posts: bool = True,
        first: int = 1,
        address: str = "127.0.0.1",
    ) -> None:
        self._address, self._port, self._host = address, port, host
        self._interval = connections / rate
        self._posts = posts
        self._serials = itertools.count(first)
        self._stop = threading.Event()
        self.journal = Journal()
        self._threads = [
            threading.Thread(target=self._work, args=(n * self._interval / connections,)) for n in range(connections)
        ]

    def _work(self, delay: float) -> None:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=30)
        due = time.monotonic() + delay
        while not self._stop.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self._interval, time.monotonic() - 1)
            self._one(connection)
        connection.close()

    def _one(self, connection: http.client.HTTPConnection) -> None:
        serial = next(self._serials)
        method = "POST" if self._posts and serial % 2 else "GET"
        began = time.monotonic()
        status, error, version = 0, "", ""
        try:
            body = str(serial) if method == "POST" else None
            connection.request(method, "/journal" if body else "/", body=body, headers={"Host": self._host})
            answer = connection.getresponse()
            answer.read()
            status, version = answer.status, answer.getheader("X-Hello-Version", "") or ""
            error = answer.getheader("X-ShellWeGo-Error", "") or ""
        except (OSError, http.client.HTTPException) as problem:
            error = f"{type(problem).__name__}: {problem}"
            connection.close()
        ended = time.monotonic()
        self.journal.samples.append(Sample(serial, method, status, ended - began, ended, error, version))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
