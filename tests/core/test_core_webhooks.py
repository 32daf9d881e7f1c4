"""What a webhook wants, when a delivery is tried again, and how it is signed."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.envelope import SealedValue
from shellwego.core.events import Event
from shellwego.core.webhooks import (
    DISABLE_AFTER_S,
    FIRST_RETRY_S,
    MAX_RETRIES,
    Webhook,
    is_hopeless,
    is_pattern,
    matches,
    retry_after,
    signature,
    wants,
)

NOTHING = SealedValue(key_id="", nonce=b"", ciphertext=b"")
HOOK = Webhook(
    id="whk_1",
    organization_id="org_1",
    url="https://x.example/",
    sealed_secret=NOTHING,
    since_seq=5,
    created_at=0.0,
)
JITTER = st.floats(0, 1, exclude_max=True)


@given(st.lists(JITTER, min_size=MAX_RETRIES, max_size=MAX_RETRIES))
def test_five_retries_come_later_and_later_and_then_none(jitters: list[float]) -> None:
    pauses = [retry_after(attempt, jitter) for attempt, jitter in enumerate(jitters, 1)]
    known = [pause for pause in pauses if pause is not None]
    assert len(known) == MAX_RETRIES
    assert known == sorted(known)
    assert known[0] >= FIRST_RETRY_S
    assert sum(known) < DISABLE_AFTER_S
    assert retry_after(MAX_RETRIES + 1, jitters[0]) is None


@given(st.integers(1, MAX_RETRIES), JITTER, JITTER)
def test_jitter_spreads_a_pause_and_never_shortens_it(attempt: int, one: float, other: float) -> None:
    plain, first, second = retry_after(attempt, 0.0), retry_after(attempt, one), retry_after(attempt, other)
    assert plain is not None
    assert first is not None
    assert second is not None
    assert plain <= first <= plain * 1.5
    assert (first == second) or (one != other)


@pytest.mark.parametrize(
    ("pattern", "type_", "expected"),
    [
        ("*", "app.created", True),
        ("app.created", "app.created", True),
        ("app.created", "app.created.twice", False),
        ("app.*", "app.created", True),
        ("app.*", "app.deployment.failed", True),
        ("app.*", "apparition.seen", False),
        ("app.deployment.*", "app.deployment", False),
    ],
)
def test_a_pattern_names_types(pattern: str, type_: str, expected: bool) -> None:
    assert matches(pattern, type_) is expected


@pytest.mark.parametrize(
    "text", ["", "App.created", "app..x", ".app", "app.", "app.*.x", "*.app", "a*", "a" * 101, "app\n", "é"]
)
def test_what_names_no_type_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["*", "app", "app.created", "app.deployment.*", "node.down", "a-b.c_d"])
def test_a_type_or_the_beginning_of_one_is_a_pattern(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    ("hook", "project", "seq", "expected"),
    [
        (HOOK, "prj_1", 6, True),
        (HOOK, "", 6, True),
        (HOOK, "prj_1", 5, False),
        (replace(HOOK, active=False), "prj_1", 6, False),
        (replace(HOOK, project_id="prj_1"), "prj_1", 6, True),
        (replace(HOOK, project_id="prj_1"), "prj_2", 6, False),
        (replace(HOOK, project_id="prj_1"), "", 6, False),
        (replace(HOOK, organization_id="org_2"), "prj_1", 6, False),
        (replace(HOOK, events=("app.*",)), "prj_1", 6, True),
        (replace(HOOK, events=("node.*", "app.deleted")), "prj_1", 6, False),
    ],
)
def test_a_webhook_wants_later_events_of_its_scope_and_types(
    hook: Webhook, project: str, seq: int, expected: bool
) -> None:
    event = Event(
        id="evt_1", seq=seq, time=0.0, organization_id="org_1", project_id=project, type="app.created", resource="app_1"
    )
    assert wants(hook, event) is expected
    assert not wants(hook, replace(event, resource=hook.id))


def test_a_webhook_is_hopeless_after_a_day_without_a_success() -> None:
    failing = replace(HOOK, failing_since=100.0)
    assert not is_hopeless(HOOK, 1e9)
    assert not is_hopeless(failing, 100.0 + DISABLE_AFTER_S - 1)
    assert is_hopeless(failing, 100.0 + DISABLE_AFTER_S)


def test_the_signature_is_the_one_of_the_contract() -> None:
    expected = hmac.new(b"whsec_x", b'1700000000.{"a":"\xc3\xa9"}', hashlib.sha256).hexdigest()
    assert signature("whsec_x", 1700000000, '{"a":"é"}') == f"sha256={expected}"
