"""What every driver of the webhooks port must do, with the receivers that it sends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shellwego.ports.webhooks import Sender, Shipment

ALLOWED, FORBIDDEN = "127.0.0.1", "127.0.0.2"
"""Two addresses with receivers; the operator allows the first one only."""


@dataclass
class Receiver:
    """Answers each POST with a status, or never (None), and keeps what it got."""

    port: int
    posts: list[Shipment] = field(default_factory=list)


class Receivers(Protocol):
    """The network that the driver reaches."""

    async def receiver(self, answer: int | None, *, address: str = ALLOWED, location: str = "") -> Receiver:
        """Begin to listen. `location` is told in the answer's header."""

    def name(self, host: str, *addresses: str) -> None:
        """Let a name mean these addresses."""


def shipment(url: str, body: bytes = b'{"a": 1}', headers: Mapping[str, str] | None = None) -> Shipment:
    return Shipment(url, headers or {"Content-Type": "application/json", "X-Test": "yes"}, body)


class WebhooksContract:
    """Derive a class, give it fixtures `sender` and `receivers`."""

    async def test_what_is_sent_arrives_as_it_is(self, sender: Sender, receivers: Receivers) -> None:
        receiver = await receivers.receiver(204)
        receivers.name("hook.example", ALLOWED)
        outcome = await sender.send(shipment(f"http://hook.example:{receiver.port}/a?b=%2F", '{"é": 1}'.encode()))
        assert (outcome.status, outcome.reason, outcome.taken) == (204, "", True)
        [post] = receiver.posts
        assert post.body == '{"é": 1}'.encode()
        assert post.url.endswith("/a?b=%2F")
        assert (post.headers["X-Test"], post.headers["Content-Type"]) == ("yes", "application/json")

    async def test_an_answer_that_is_no_success_is_told(self, sender: Sender, receivers: Receivers) -> None:
        for status in (400, 410, 500):
            receiver = await receivers.receiver(status)
            outcome = await sender.send(shipment(f"http://{ALLOWED}:{receiver.port}/"))
            assert (outcome.status, outcome.taken) == (status, False)
            assert str(status) in outcome.reason

    async def test_a_redirect_is_not_followed(self, sender: Sender, receivers: Receivers) -> None:
        aim = await receivers.receiver(200)
        receiver = await receivers.receiver(307, location=f"http://{ALLOWED}:{aim.port}/")
        outcome = await sender.send(shipment(f"http://{ALLOWED}:{receiver.port}/"))
        assert (outcome.status, outcome.taken, aim.posts) == (307, False, [])

    async def test_a_receiver_that_never_answers_is_given_up(self, sender: Sender, receivers: Receivers) -> None:
        receiver = await receivers.receiver(None)
        outcome = await sender.send(shipment(f"http://{ALLOWED}:{receiver.port}/"))
        assert (outcome.status, outcome.taken) == (None, False)
        assert outcome.reason

    async def test_where_nobody_listens_nothing_is_taken(self, sender: Sender, receivers: Receivers) -> None:
        outcome = await sender.send(shipment(f"http://{ALLOWED}:1/"))
        assert (outcome.status, bool(outcome.reason)) == (None, True)

    async def test_a_name_that_is_not_known_is_told(self, sender: Sender, receivers: Receivers) -> None:
        outcome = await sender.send(shipment("http://nowhere.example:8080/"))
        assert outcome.status is None
        assert "nowhere.example" in outcome.reason

    async def test_nothing_reaches_an_address_that_is_not_allowed(self, sender: Sender, receivers: Receivers) -> None:
        receiver = await receivers.receiver(200, address=FORBIDDEN)
        receivers.name("hook.example", FORBIDDEN)
        receivers.name("mapped.example", f"::ffff:{FORBIDDEN}")
        for host in ("hook.example", "mapped.example", FORBIDDEN, f"[::ffff:{FORBIDDEN}]"):
            outcome = await sender.send(shipment(f"http://{host}:{receiver.port}/"))
            assert (outcome.status, outcome.taken) == (None, False), host
        assert receiver.posts == []

    async def test_one_address_that_is_not_allowed_spoils_a_name(self, sender: Sender, receivers: Receivers) -> None:
        receiver = await receivers.receiver(200)
        receivers.name("hook.example", ALLOWED, FORBIDDEN)
        outcome = await sender.send(shipment(f"http://hook.example:{receiver.port}/"))
        assert (outcome.status, receiver.posts) == (None, [])

    async def test_what_is_no_url_is_told_and_not_tried(self, sender: Sender, receivers: Receivers) -> None:
        for url in ("", "http://", f"http://u:p@{ALLOWED}/", "file:///etc/passwd", "http://2130706433/"):
            assert (await sender.send(shipment(url))).status is None
