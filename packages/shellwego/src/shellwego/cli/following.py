"""Streams that go on until they are interrupted, though the server that they come from restarts.

Theory. Whoever follows knows what he saw last, and can open the stream from there on. A stream that ends because the server
stops, or that breaks off, is opened again after a pause, which people are told of once. Where it could not be opened at the
first try, or the API ends it for another reason, going on would hide a mistake: that is an error, as anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from shellwego.client.streams import ServerSentEvent, StreamError
from shellwego.client.transport import ApiProblem, BrokenOff, Unreachable

_STOPPING = "server-stopping"
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)
"""Before each further try; the last one stays."""
_GIVE_UP_S = 300.0
"""A platform that cannot be reached for so long will not come back by itself."""


def followed(
    say: Callable[[str], None],
    begin: Callable[[], Iterator[ServerSentEvent]],
    over: Callable[[], bool] = lambda: False,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[ServerSentEvent]:
    """The messages of a stream, which is begun anew where it breaks off; `begin` opens it after the last that was taken,
    and `say` tells people. Ends where a stream ended in order and `over` says that there can be no more.

    Raises:
        ApiProblem, Unreachable: it cannot be opened, or not again for some minutes, or the API ended it.
    """
    told, tries, lost = False, 0, None
    while True:
        try:
            for message in begin():
                tries, lost = 0, None
                yield message
            if over():
                return
            lost = None
        except (ApiProblem, Unreachable) as error:
            ended = _ended(error)
            if not ended and (lost is None or not _passing(error) or monotonic() > lost + _GIVE_UP_S):
                raise
            if ended:
                lost = None
        if lost is None:
            lost = monotonic()
        if not told:
            say("-- the stream broke off, as when a server restarts; it goes on when one answers")
            told = True
        sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
        tries += 1


def _ended(error: ApiProblem | Unreachable) -> bool:
    """Whether a stream had begun, and ended by no fault of what was asked for."""
    return isinstance(error, BrokenOff) or (isinstance(error, StreamError) and error.code == _STOPPING)


def _passing(error: ApiProblem | Unreachable) -> bool:
    """Whether the same may succeed in a while."""
    return isinstance(error, Unreachable) or (error.status >= 500 and not isinstance(error, StreamError))
