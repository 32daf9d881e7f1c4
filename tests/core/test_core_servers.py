"""Which servers nodes and edges are told of."""

from __future__ import annotations

from shellwego.core.servers import KEPT_S, MOST, Server, urls_of

ONE, TWO, THREE = (f"https://{name}.example:7081" for name in ("one", "two", "three"))
NOW = 1000.0


def server(name: str, *urls: str, seen_at: float = NOW) -> Server:
    return Server(id=name, urls=urls, seen_at=seen_at)


def test_each_that_any_server_names_is_told_once_in_an_order_that_all_tell() -> None:
    found = [server("b", TWO, ONE), server("a", ONE, THREE)]
    assert urls_of(found, NOW) == urls_of(reversed(found), NOW) == (ONE, THREE, TWO)


def test_one_that_is_silent_for_long_is_told_as_long_as_others_name_it() -> None:
    gone, stays = server("a", ONE, seen_at=NOW - KEPT_S), server("b", TWO)
    assert urls_of([gone, stays], NOW - 1) == (ONE, TWO)
    assert urls_of([gone, stays], NOW) == (TWO,)
    assert urls_of([gone, server("b", TWO, ONE)], NOW) == (TWO, ONE)


def test_who_names_very_many_names_no_more_than_anybody_would() -> None:
    assert len(urls_of([server("a", *(f"https://h{n}:1" for n in range(1000)))], NOW)) == MOST
