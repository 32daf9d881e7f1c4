"""A joined host keeps to the servers that there are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from shellwego.boot.serverlist import FILE, LOOK_S, ServerList
from shellwego.core.errors import NotFoundError, ShellWeGoError, UnavailableError
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.wire.uplink import ServersAnswer

ONE, TWO, THREE = (f"https://{name}.example:7081" for name in ("one", "two", "three"))


def servers(directory: Path, *joined: str) -> ServerList:
    return ServerList(joined or (ONE,), directory)


def test_what_is_named_is_used_at_once_and_what_was_known_until_one_of_it_answers(tmp_path: Path) -> None:
    known = servers(tmp_path)
    known.take((TWO, THREE))
    assert known.urls() == (TWO, THREE, ONE)
    known.answered(ONE)
    assert known.urls() == (TWO, THREE, ONE), "that the old one answers says nothing of the new ones"
    known.answered(THREE)
    assert known.urls() == (TWO, THREE)


def test_a_list_that_leads_nowhere_takes_nothing_away(tmp_path: Path) -> None:
    known = servers(tmp_path)
    known.take((TWO,))
    known.take((THREE,))
    assert known.urls() == (THREE, TWO, ONE)


def test_it_is_never_emptied(tmp_path: Path) -> None:
    known = servers(tmp_path)
    known.take((TWO,))
    known.answered(TWO)
    known.take(())
    known.take(("http://clear.example:7081", "nonsense"))
    assert known.urls() == (TWO,)


def test_the_next_life_goes_on_with_it_and_could_go_back(tmp_path: Path) -> None:
    known = servers(tmp_path)
    known.take((TWO,))
    known.answered(TWO)
    again = servers(tmp_path)
    assert again.urls() == (TWO, ONE)
    again.answered(TWO)
    assert again.urls() == (TWO,)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_what_could_not_be_written_is_used_and_written_when_it_is_named_again(tmp_path: Path) -> None:
    directory = tmp_path / "membership"
    known = servers(directory)
    with pytest.raises(OSError, match="membership"):
        known.take((TWO,))
    assert known.urls() == (TWO, ONE)
    directory.mkdir()
    known.take((TWO,))
    assert servers(directory).urls() == (TWO, ONE)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"null"])
def test_what_is_no_list_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert servers(tmp_path).urls() == (ONE,)


def test_a_server_is_known_under_one_spelling(tmp_path: Path) -> None:
    known = servers(tmp_path, ONE + "/")
    known.take((ONE, ONE + "/"))
    assert known.urls() == (ONE,)


@dataclass
class Wire:
    urls: tuple[str, ...] = (ONE,)
    refusal: ShellWeGoError | None = None
    calls: int = 0

    async def call(self, method: str, asked: object, answer: type[ServersAnswer]) -> ServersAnswer:
        assert (method, answer) == ("servers", ServersAnswer)
        self.calls += 1
        if self.refusal is not None:
            raise self.refusal
        return ServersAnswer(urls=self.urls)


@pytest.mark.parametrize(
    "refusal", [UnavailableError("uplink-unavailable", "no"), NotFoundError("uplink-method-unknown", "an old server")]
)
async def test_it_is_asked_for_now_and_then_whatever_is_answered(tmp_path: Path, refusal: ShellWeGoError) -> None:
    clock, known, wire = VirtualClock(), servers(tmp_path), Wire(refusal=refusal)
    following = asyncio.create_task(known.follow(wire, clock))
    await clock.advance(3 * LOOK_S)
    assert known.urls() == (ONE,)
    wire.refusal, wire.urls = None, (ONE, TWO)
    await clock.advance(LOOK_S)
    assert known.urls() == (ONE, TWO)
    assert wire.calls >= 4
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
