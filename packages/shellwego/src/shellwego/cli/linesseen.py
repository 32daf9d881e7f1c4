"""Which lines of an app's log were shown, so that its stream can be begun anew without loss or double.

Theory. Lines have no numbers. Those of one instance come in the order of their time, so of each the moment of its last line
is kept, and the lines of that moment. The stream is begun anew a little before the last line of the instance that has been
silent for longest: its node may be away while others write on, over several breaks. Some have ended or say nothing more, so
it goes back some minutes from the youngest line of all at most. What was shown is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shellwego.client.generated import LogLineView

_BEHIND_S = 10.0
"""A line of an instance that was not seen yet may be on its way for longer than those of others."""
_MOST_BEHIND_S = 300.0


@dataclass(slots=True)
class _Last:
    moment: float
    lines: Counter[str] = field(default_factory=Counter)


class LinesSeen:
    """What was shown of a log, over several streams of it."""

    def __init__(self) -> None:
        self._first = self._youngest = 0.0
        self._last: dict[str, _Last] = {}
        self._before: dict[str, _Last] = {}
        """As it was when the stream was begun anew; what comes again is taken out."""

    def onwards(self) -> float | None:
        """From which moment on the next stream is to be; None where nothing was shown yet."""
        self._before = {name: _Last(last.moment, Counter(last.lines)) for name, last in self._last.items()}
        if not self._last:
            return None
        behind = min(last.moment for last in self._last.values()) - _BEHIND_S
        return max(self._first, behind, self._youngest - _MOST_BEHIND_S)

    def is_new(self, line: LogLineView) -> bool:
        """Take note of a line. False where it was shown before, or is older than the first that was."""
        moment, text = line.time.timestamp(), f"{line.stream}\0{line.text}"
        if self._shown(line.instance_id, moment, text):
            return False
        if not self._last:
            self._first = moment
        last = self._last.get(line.instance_id)
        if last is None or last.moment != moment:
            self._last[line.instance_id] = last = _Last(moment)
        last.lines[text] += 1
        self._youngest = max(self._youngest, moment)
        return True

    def _shown(self, instance: str, moment: float, text: str) -> bool:
        before = self._before.get(instance)
        if before is None:
            return bool(self._before) and moment < self._first
        if moment != before.moment:
            return moment < before.moment
        before.lines[text] -= 1
        return before.lines[text] >= 0
