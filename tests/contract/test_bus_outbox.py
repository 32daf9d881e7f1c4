"""Hints on their way: what waits, what was sent, and what becomes of too many."""

from __future__ import annotations

from shellwego.drivers.bus.outbox import Letter, Outbox


def bodies(letters: list[Letter]) -> list[bytes]:
    return [letter.payload for letter in letters]


def test_equal_hints_that_wait_are_one_and_what_was_sent_is_not_waiting() -> None:
    outbox = Outbox("a")
    first = outbox.post("routes", b"")
    assert outbox.post("routes", b"") is first
    outbox.sent(first, 1.0)
    second = outbox.post("routes", b"")
    assert second.id != first.id
    assert len(outbox) == 2


def test_what_is_not_confirmed_in_time_is_due_again_under_its_id() -> None:
    outbox = Outbox("a")
    letter = outbox.post("routes", b"")
    outbox.sent(letter, 1.0)
    assert outbox.due(1.0) == []
    assert [each.id for each in outbox.due(1.5)] == [letter.id]
    outbox.confirmed(letter.id)
    outbox.confirmed(letter.id)
    assert outbox.due(float("inf")) == []
    assert len(outbox) == 0


def test_of_too_many_the_oldest_go() -> None:
    outbox = Outbox("a", limit=3)
    for number in range(5):
        outbox.post("n", str(number).encode())
    assert bodies(outbox.due(0.0)) == [b"2", b"3", b"4"]
    assert outbox.post("n", b"0").payload == b"0"
    assert bodies(outbox.due(0.0)) == [b"3", b"4", b"0"]


def test_ids_of_two_senders_differ() -> None:
    assert Outbox("a").post("n", b"").id != Outbox("b").post("n", b"").id
