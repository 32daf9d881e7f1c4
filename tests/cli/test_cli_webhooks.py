"""`swg webhooks`: what is asked, and what is shown."""

from __future__ import annotations

import json

from shellwego.client.generated import (
    AttemptView,
    DeliveryList,
    DeliveryView,
    NewWebhookView,
    Pagination,
    WebhookList,
    WebhookView,
)
from tests.cli.cli_world import NOW, HandMadeApi, Machine, view

HOOK = view(WebhookView, id="whk_1", url="https://x.example/", active=True)


def test_webhooks_are_listed_over_all_pages(machine: Machine, api: HandMadeApi) -> None:
    more = view(Pagination, has_more=True, next_cursor="next")
    first, second = (view(WebhookView, id=f"whk_{n}") for n in (1, 2))
    api.answer(
        "GET",
        "/v1/webhooks",
        WebhookList(data=[first], pagination=more),
        WebhookList(data=[second], pagination=view(Pagination)),
    )
    assert machine.swg("webhooks", "ls", "--output", "name").out == "whk_1\nwhk_2\n"


def test_a_new_webhook_shows_its_secret_once(machine: Machine, api: HandMadeApi) -> None:
    api.answer("POST", "/v1/webhooks", view(NewWebhookView, id="whk_1", secret="whsec_x"), status=201)
    ended = machine.swg("webhooks", "create", "https://x.example/", "--event", "app.*", "--event", "node.down")
    assert ended.code == 0
    assert "whsec_x" in ended.out
    assert json.loads(api.asked[-1].body) == {"url": "https://x.example/", "events": ["app.*", "node.down"]}
    api.answer("POST", "/v1/webhooks", view(NewWebhookView, id="whk_1"), status=201)
    machine.swg("webhooks", "create", "https://x.example/", "-o", "acme")
    assert api.asked[-1].query == "organization=acme"


def test_a_webhook_is_shown_switched_off_and_removed(machine: Machine, api: HandMadeApi) -> None:
    failing = view(WebhookView, id="whk_1", active=True, failing_since=NOW)
    api.answer("GET", "/v1/webhooks/whk_1", failing)
    assert "failing" in machine.swg("webhooks", "show", "whk_1").out
    api.answer("PATCH", "/v1/webhooks/whk_1", view(WebhookView, id="whk_1", disabled_reason="too slow"))
    assert "too slow" in machine.swg("webhooks", "update", "whk_1", "--off").out
    assert json.loads(api.asked[-1].body) == {"active": False}
    api.answer("DELETE", "/v1/webhooks/whk_1", status=204)
    refused = machine.swg("webhooks", "rm", "whk_1")
    assert (refused.code, "DELETE" in {each.method for each in api.asked}) == (2, False)
    assert machine.swg("webhooks", "rm", "whk_1", "--yes").code == 0


def test_deliveries_are_listed_shown_with_their_attempts_and_sent_again(machine: Machine, api: HandMadeApi) -> None:
    attempts = [AttemptView(at=NOW, status=503, reason="it answered 503", seconds=0.5)]
    delivery = view(DeliveryView, id="dlv_1", type="app.created", state="failed", attempts=attempts)
    api.answer("GET", "/v1/webhooks/whk_1/deliveries", DeliveryList(data=[delivery], pagination=view(Pagination)))
    api.answer("GET", "/v1/webhooks/whk_1/deliveries/dlv_1", delivery)
    api.answer("POST", "/v1/webhooks/whk_1/deliveries/dlv_1/actions/redeliver", delivery, status=202)
    api.answer("POST", "/v1/webhooks/whk_1/actions/test", delivery, status=202)
    listed = machine.swg("webhooks", "deliveries", "whk_1", "--state", "failed")
    assert "it answered 503" in listed.out
    assert "filter%5Bstate%5D=failed" in api.asked[-1].query
    assert "0.5" in machine.swg("webhooks", "deliveries", "whk_1", "dlv_1").out
    for words in (("redeliver", "whk_1", "dlv_1"), ("test", "whk_1")):
        assert machine.swg("webhooks", *words, "--output", "name").out == "dlv_1\n"
