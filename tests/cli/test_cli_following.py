"""Following logs and events over the restart of a server, and where it is no use to go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
import yaml

from shellwego.cli.following import followed
from shellwego.client.generated import EventList, EventView, InstanceView, LogLineView, Pagination
from shellwego.client.streams import ServerSentEvent, StreamError
from shellwego.client.transport import ApiProblem, BrokenOff, Unreachable, problem
from tests.cli.cli_world import NOW, HandMadeApi, Machine, view

LOGS = "/v1/apps/shop/logs/stream"
EVENTS = "/v1/events/stream"
STOPPING = b'event: error\ndata: {"code":"server-stopping","detail":"the server stops; come again"}\n\n'
GONE = b'event: error\ndata: {"code":"app-not-found","detail":"there is no such app"}\n\n'


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellwego.cli.following._PAUSES_S", (0.0,))


def each_line(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def logged(*lines: tuple[float, str, str]) -> bytes:
    told = [
        view(LogLineView, time=NOW + timedelta(seconds=at), instance_id=f"ins_{who}", process="web", text=text)
        for at, who, text in lines
    ]
    return b"".join(b"event: log\ndata: %s\n\n" % msgspec.json.encode(line) for line in told)


def happened(*numbers: int) -> list[EventView]:
    return [view(EventView, seq=number, type="app.created", data={}) for number in numbers]


def streamed(*numbers: int) -> bytes:
    encoded = ((msgspec.json.encode(event), event.seq) for event in happened(*numbers))
    return b"".join(b"event: app.created\ndata: %s\nid: %d\n\n" % each for each in encoded)


def texts(out: str) -> list[str]:
    return [line.rpartition(" ")[2] for line in out.splitlines()]


@pytest.mark.parametrize("end", [STOPPING, b""])
def test_a_log_goes_on_where_it_was_when_the_server_has_restarted(
    machine: Machine, api: HandMadeApi, end: bytes
) -> None:
    api.answer(
        "GET",
        LOGS,
        logged((0, "a", "one"), (1, "b", "two"), (1, "b", "two"), (2, "a", "three")) + end,
        logged((1, "b", "two"), (1, "b", "two"), (1, "b", "two"), (1.5, "b", "late"), (2, "a", "three"), (3, "c", "x")),
        GONE,
    )
    ended = machine.swg("logs", "-f", "-a", "shop", "-n", "4")
    assert texts(ended.out) == ["one", "two", "two", "three", "two", "late", "x"]
    assert [line for line in ended.err.splitlines() if "goes on" in line] == ended.err.splitlines()[:1], "told once"
    assert (ended.code, "there is no such app" in ended.err) == (1, True)
    queries = [asked.query for asked in api.asked]
    assert "tail=4" in queries[0]
    assert f"since={NOW.timestamp()}" in queries[1], "not from before the first line that was asked for"


def test_a_log_goes_on_from_the_instance_that_was_silent_for_longest_within_some_minutes(
    machine: Machine, api: HandMadeApi
) -> None:
    api.answer(
        "GET",
        LOGS,
        logged((0, "b", "one"), (25, "a", "two"), (26, "b", "three")) + STOPPING,
        logged((26, "b", "three"), (60, "b", "four")) + STOPPING,
        logged((25, "a", "two"), (26, "b", "three"), (27, "a", "late"), (60, "b", "four"), (400, "b", "x")) + STOPPING,
        GONE,
    )
    ended = machine.swg("logs", "-f", "-a", "shop")
    assert texts(ended.out) == ["one", "two", "three", "four", "late", "x"]
    since = [float(parse_qs(asked.query)["since"][0]) - NOW.timestamp() for asked in api.asked[1:]]
    assert since == [15, 15, 100], "a's node is away; then it is given up"


def test_the_log_of_one_instance_ends_with_it_and_not_with_the_server(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", LOGS, logged((0, "a", "one")), logged((0, "a", "one"), (1, "a", "two")))
    runs = view(InstanceView, id="ins_a", phase="healthy")
    api.answer("GET", "/v1/apps/shop/instances/ins_a", runs, msgspec.structs.replace(runs, phase="stopped"))
    ended = machine.swg("logs", "-f", "-a", "shop", "--instance", "web.0")
    assert (ended.code, texts(ended.out)) == (0, ["one", "two"])
    assert ["instance=web.0" in asked.query for asked in api.asked if asked.path == LOGS] == [True, False]


def test_events_go_on_after_the_last_that_was_told(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/events", EventList(data=happened(4), pagination=view(Pagination)))
    api.answer("GET", EVENTS, streamed(5, 6) + STOPPING, streamed(7) + STOPPING, GONE)
    ended = machine.swg("events", "-f")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["4", "5", "6", "7"]
    assert [each.headers["Last-Event-ID"] for each in api.asked if each.path == EVENTS] == ["4", "6", "7"]
    assert ended.code == 1


def test_events_of_a_type_go_on_after_the_newest_of_any(machine: Machine, api: HandMadeApi) -> None:
    newest, found = (EventList(data=happened(number), pagination=view(Pagination)) for number in (90, 4))
    api.answer("GET", "/v1/events", newest, found)
    api.answer("GET", EVENTS, GONE)
    assert texts(machine.swg("events", "-f", "--type", "app.created").out)
    assert api.asked[-1].headers["Last-Event-ID"] == "90"


def test_events_of_the_last_minute_are_not_all_that_there_are(machine: Machine, api: HandMadeApi) -> None:
    some = EventList(data=happened(41), pagination=view(Pagination))
    api.answer("GET", "/v1/events", some, EventList(data=[], pagination=view(Pagination)))
    api.answer("GET", EVENTS, GONE)
    assert machine.swg("events", "-f", "--since", "1m").out == ""
    asked = [each.query for each in api.asked if each.path == "/v1/events"]
    assert ["time" in query for query in asked] == [False, True]
    assert api.asked[-1].headers["Last-Event-ID"] == "41"


@pytest.mark.parametrize(("output", "parse"), [("json", each_line), ("yaml", yaml.safe_load_all)])
def test_machines_get_one_document_for_each_that_comes(
    machine: Machine, api: HandMadeApi, output: str, parse: Callable[[str], Iterable[Any]]
) -> None:
    api.answer("GET", LOGS, logged((0, "a", "one"), (1, "a", "\x9b2J")) + GONE)
    api.answer("GET", "/v1/events", EventList(data=happened(4), pagination=view(Pagination)))
    api.answer("GET", EVENTS, streamed(5) + GONE)
    lines = machine.swg("logs", "-f", "-a", "shop", "--output", output).out
    assert [line["text"] for line in parse(lines)] == ["one", "\x9b2J"]
    assert "\x9b" not in lines
    events = machine.swg("events", "-f", "--output", output).out
    assert [event["seq"] for event in parse(events)] == [4, 5]


def test_a_stream_that_cannot_be_opened_at_first_is_an_error_at_once(machine: Machine, api: HandMadeApi) -> None:
    api.refuse("GET", LOGS, 503, "unavailable")
    assert machine.swg("logs", "-f", "-a", "shop").code == 1
    assert len(api.asked) == 1


class Tries:
    """A stream whose tries end in turn so; time goes on by the pauses alone."""

    def __init__(self, *ends: Exception) -> None:
        self.ends = list(ends)
        self.now = 0.0

    def begin(self) -> Iterator[ServerSentEvent]:
        yield ServerSentEvent("log", f"{len(self.ends)}")
        raise self.ends.pop(0)

    def refused(self) -> Iterator[ServerSentEvent]:
        if len(self.ends) > 1:
            yield from self.begin()
        raise self.ends[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds or 1.0

    def monotonic(self) -> float:
        return self.now


def test_a_platform_that_stays_away_is_given_up_after_some_minutes() -> None:
    tries = Tries(BrokenOff("broken"), Unreachable("refused"))
    messages = followed(print, tries.refused, sleep=tries.sleep, monotonic=tries.monotonic)
    assert next(messages).data == "2"
    with pytest.raises(Unreachable, match="refused"):
        next(messages)
    assert 300 <= tries.now < 310


@pytest.mark.parametrize(
    "end", [problem(404, b'{"code":"x"}'), problem(401, b'{"code":"x"}'), problem(503, b'{"code":"x"}', StreamError)]
)
def test_what_the_api_refuses_when_it_is_begun_anew_is_an_error(end: ApiProblem) -> None:
    tries = Tries(BrokenOff("broken"), end)
    messages = followed(print, tries.refused, sleep=tries.sleep, monotonic=tries.monotonic)
    next(messages)
    with pytest.raises(ApiProblem) as refused:
        next(messages)
    assert refused.value is end
