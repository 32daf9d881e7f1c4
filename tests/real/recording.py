"""A client of `recorder_app`: sends record after record, and remembers which of them were acknowledged, and when."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import time
from dataclasses import dataclass, field
from itertools import pairwise

from tests.real.beside import Beside

TIMEOUT_S = 5.0
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an app says that its volume holds."""

    serials: frozenset[int]
    text: str

    def missing(self, of: dict[int, float]) -> dict[int, float]:
        """Those of these records that are not there."""
        return {serial: at for serial, at in of.items() if serial not in self.serials}


@dataclass
class Recorder:
    """The app behind an edge, by its host name. Numbers never come twice, whoever asks for one."""

    port: int
    host: str
    _serials: itertools.count[int] = field(default_factory=itertools.count)

    def send(self, connection: http.client.HTTPConnection) -> int | None:
        """One record; its number once it was acknowledged, and None where it was not."""
        serial = next(self._serials)
        try:
            connection.request("POST", "/", body=str(serial), headers={"Host": self.host})
            answer = connection.getresponse()
            told = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return None
        return serial if answer.status == 200 and told == str(serial).encode() else None

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def answers(self) -> bool:
        """Whether a record can be written now."""
        connection = self.connect()
        try:
            return self.send(connection) is not None
        finally:
            connection.close()

    def recorded(self) -> Recorded:
        """All that is there; each has to be what its sum says, and there once."""
        text = self._get("/records")
        serials = []
        for line in text.splitlines():
            content, _, total = line.rpartition(" ")
            assert hashlib.sha256(content.encode()).hexdigest() == total, f"damaged: {line}"
            serials.append(int(content.split()[0]))
        assert len(set(serials)) == len(serials), "a record is there twice"
        blocks, *bad = self._get("/blocks").split()
        assert not bad, f"of {blocks} blocks these are damaged: {bad}"
        return Recorded(frozenset(serials), text)

    def _get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Host": self.host})
            answer = connection.getresponse()
            assert answer.status == 200, f"{path}: {answer.status}"
            return answer.read().decode()
        finally:
            connection.close()


class Recording(Beside):
    """Sends records while its context is open."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._acknowledged: dict[int, float] = {}

    def _work(self) -> None:
        connection = self._recorder.connect()
        while not self._stop.wait(PAUSE_S):
            if (serial := self._recorder.send(connection)) is not None:
                self._acknowledged[serial] = time.monotonic()
        connection.close()

    def acknowledged(self) -> dict[int, float]:
        """Each record that was, with when."""
        return dict(self._acknowledged)

    def has(self, count: int, since: float = 0.0) -> bool:
        """So many were acknowledged since a moment."""
        return sum(at > since for at in self.acknowledged().values()) >= count

    def longest_silence(self) -> float:
        """The longest time between two that were acknowledged one after the other, in seconds."""
        return max((after - before for before, after in pairwise(self.acknowledged().values())), default=0.0)
