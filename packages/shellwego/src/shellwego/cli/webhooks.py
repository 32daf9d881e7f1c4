"""`swg webhooks`: who is told of events over HTTP, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, moment, show, show_one, show_removed
from shellwego.cli.presence import look_first
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import every

if TYPE_CHECKING:
    from shellwego.client.generated import DeliveryView, WebhookView

_PAGE = 100
_events = click.option(
    "--event",
    "events",
    multiple=True,
    metavar="TYPE",
    help="Told of, such as app.deployment.*; several may be given. [all]",
)


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def webhooks() -> None:
    """Have receivers told of events over HTTP."""


def _row(webhook: WebhookView) -> dict[str, object]:
    state = "on" if webhook.active else "off"
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": " ".join(webhook.events) or "all",
        "state": "failing" if webhook.active and webhook.failing_since else state,
        "reason": webhook.disabled_reason,
        "scope": webhook.project_id or webhook.organization_id,
        "age": age(webhook.created_at),
    }


def _show(session: Session, webhook: WebhookView) -> None:
    import msgspec  # noqa: PLC0415

    show_one(session, msgspec.to_builtins(webhook), _row(webhook), name=webhook.id)


@webhooks.command("ls")
@shared
@about_no_app
def list_webhooks(session: Session) -> None:
    """List webhooks, the newest first."""
    import msgspec  # noqa: PLC0415

    client, organization = session.client, session.organization
    found = every(
        lambda cursor: client.list_webhooks(
            project=session.place, organization=organization, limit=_PAGE, cursor=cursor
        )
    )
    rows = [_row(webhook) for webhook in found]
    show(
        session,
        msgspec.to_builtins(found),
        rows,
        name="id",
        empty="no webhooks yet: swg webhooks create URL -p PROJECT",
    )


@webhooks.command("create")
@click.argument("url")
@_events
@shared
@about_no_app
def create_webhook(session: Session, url: str, events: tuple[str, ...]) -> None:
    """Have the receiver at URL told of events. Prints the secret that signs what it gets: it is shown this once."""
    import msgspec  # noqa: PLC0415

    from shellwego.client.generated import WebhookCreate  # noqa: PLC0415

    webhook = session.client.create_webhook(
        WebhookCreate(url=url, events=list(events)),
        project=session.place,
        organization=session.organization,
    )
    pairs = {"id": webhook.id, "url": webhook.url, "secret": webhook.secret}
    show_one(session, msgspec.to_builtins(webhook), pairs, name=webhook.id)
    session.say("The secret is shown this once. Try it: swg webhooks test " + webhook.id)


@webhooks.command("show")
@click.argument("webhook")
@shared
@about_no_app
def show_webhook(session: Session, webhook: str) -> None:
    """Show a webhook."""
    _show(session, session.client.get_webhook(webhook))


@webhooks.command("update")
@click.argument("webhook")
@click.option("--url", metavar="URL", help="Where it goes from now on.")
@_events
@click.option("--on/--off", "active", default=None, help="Switch it on or off.")
@shared
@about_no_app
def update_webhook(
    session: Session, webhook: str, url: str | None, events: tuple[str, ...], active: bool | None
) -> None:
    """Change a webhook, or switch it on or off. What waits when it is switched off fails."""
    from shellwego.client.generated import WebhookPatch  # noqa: PLC0415

    patch = WebhookPatch(url=url, events=list(events) or None, active=active)
    _show(session, session.client.update_webhook(webhook, patch))


@webhooks.command("rm")
@click.argument("webhook")
@shared
@about_no_app
def remove_webhook(session: Session, webhook: str) -> None:
    """Remove a webhook with its deliveries."""
    look_first(session, (webhook,), session.client.get_webhook)
    session.confirm(f"Remove the webhook {webhook} and its deliveries?")
    session.client.delete_webhook(webhook)
    session.say(f"{webhook} is removed")
    show_removed(session, webhook)


@webhooks.command("test")
@click.argument("webhook")
@shared
@about_no_app
def test_webhook(session: Session, webhook: str) -> None:
    """Send an event that never happened, also where the webhook is off."""
    _show_deliveries(session, [session.client.test_webhook(webhook)])
    session.say(f"Follow it: swg webhooks deliveries {webhook}")


@webhooks.command("deliveries")
@click.argument("webhook")
@click.argument("delivery", required=False)
@click.option("-n", "--limit", type=click.IntRange(1, _PAGE), default=20, show_default=True, help="How many.")
@click.option("--state", type=click.Choice(["waiting", "delivered", "failed"]), help="Only those.")
@shared
@about_no_app
def list_deliveries(session: Session, webhook: str, delivery: str | None, limit: int, state: str | None) -> None:
    """List what was sent or waits, the newest first, or show one DELIVERY with its attempts."""
    if delivery is None:
        found = session.client.list_deliveries(webhook, limit=limit, state=state).data
        _show_deliveries(session, found, empty="nothing was sent yet" if state is None else "none match")
        return
    import msgspec  # noqa: PLC0415

    one = session.client.get_delivery(webhook, delivery)
    rows = [
        {
            "at": moment(each.at),
            "status": each.status,
            "seconds": each.seconds,
            "reason": each.reason,
        }
        for each in one.attempts
    ]
    show(session, msgspec.to_builtins(one), rows, name="at", empty="not tried yet")


@webhooks.command("redeliver")
@click.argument("webhook")
@click.argument("delivery")
@shared
@about_no_app
def redeliver(session: Session, webhook: str, delivery: str) -> None:
    """Send the event of a delivery again."""
    _show_deliveries(session, [session.client.redeliver(webhook, delivery)])


def _show_deliveries(session: Session, found: list[DeliveryView], *, empty: str = "") -> None:
    import msgspec  # noqa: PLC0415

    rows = [
        {
            "id": each.id,
            "type": each.type,
            "seq": each.seq or None,
            "state": each.state,
            "attempts": len(each.attempts),
            "last": each.attempts[-1].reason or each.attempts[-1].status if each.attempts else None,
            "age": age(each.created_at),
        }
        for each in found
    ]
    show(session, msgspec.to_builtins(found), rows, name="id", empty=empty)
