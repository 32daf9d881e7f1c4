"""A token made by a token is never stronger and never longer, whatever is wished for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.attenuation import Power, attenuate
from shellwego.core.errors import InvalidError
from shellwego.core.iam import allowed
from shellwego.core.tenancy import Grant, Principal

CHAINS: dict[str, tuple[str, ...]] = {
    "org_a": ("", "org_a"),
    "org_b": ("", "org_b"),
    "prj_a": ("", "org_a", "prj_a"),
    "prj_b": ("", "org_b", "prj_b"),
    "app_a": ("", "org_a", "prj_a", "app_a"),
    "app_b": ("", "org_b", "prj_b", "app_b"),
}
PERMISSIONS = [f"{resource}:{action}" for resource in ("apps", "nodes", "tokens") for action in ("read", "write")]
SCOPES = st.lists(st.sampled_from([*PERMISSIONS, "apps:*", "*:read", "*:*"]), max_size=3).map(tuple)
RESOURCES = st.lists(st.sampled_from(sorted(CHAINS)), max_size=3).map(tuple)
POWERS = st.builds(Power, SCOPES, RESOURCES, st.none() | st.floats(0, 100))
GRANTS = st.lists(st.tuples(st.sampled_from(["owner", "viewer"]), st.sampled_from(["", *CHAINS])), max_size=3)


def holder(power: Power, grants: list[tuple[str, str]]) -> Principal:
    held = tuple(Grant(id="g", principal_id="u", role=role, scope_id=scope, created_at=0.0) for role, scope in grants)
    return Principal(principal_id="u", token_id="t", scopes=power.scopes, resources=power.resources, grants=held)


@given(parent=POWERS, wish=POWERS, grants=GRANTS)
def test_what_a_child_may_its_parent_may(parent: Power, wish: Power, grants: list[tuple[str, str]]) -> None:
    try:
        child = attenuate(parent, wish, CHAINS)
    except InvalidError:
        return
    for chain in [("",), *CHAINS.values()]:
        for permission in PERMISSIONS:
            if allowed(holder(child, grants), permission, chain):
                assert allowed(holder(parent, grants), permission, chain)
    if parent.expires_at is not None:
        assert child.expires_at is not None
        assert child.expires_at <= parent.expires_at


@given(parent=POWERS)
def test_a_child_that_names_nothing_is_its_parent(parent: Power) -> None:
    assert attenuate(parent, Power(), CHAINS) == parent


@given(parent=POWERS, wish=POWERS)
def test_a_grandchild_is_no_way_around(parent: Power, wish: Power) -> None:
    narrow = attenuate(Power(), Power(("apps:read",), ("prj_a",), 5.0), CHAINS)
    try:
        child = attenuate(narrow, wish, CHAINS)
    except InvalidError:
        return
    assert set(child.scopes) == {"apps:read"}
    assert set(child.resources) <= {"prj_a", "app_a"}
    assert child.expires_at is not None
    assert child.expires_at <= 5.0


@pytest.mark.parametrize(
    ("parent", "wish", "field", "code"),
    [
        (Power(), Power(("apps",)), "scopes.0", "bad-scope"),
        (Power(), Power(("apps:read\n",)), "scopes.0", "bad-scope"),
        (Power(("apps:read",)), Power(("apps:read", "apps:*")), "scopes.1", "not-held"),
        (Power(), Power((), ("app_gone",)), "resources.0", "not-found"),
        (Power((), ("prj_a",)), Power((), ("app_a", "org_a")), "resources.1", "not-found"),
        (Power((), ("prj_a",)), Power((), ("app_b",)), "resources.0", "not-found"),
    ],
)
def test_each_refusal_names_its_field(parent: Power, wish: Power, field: str, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        attenuate(parent, wish, CHAINS)
    assert [(fault.field, fault.code) for fault in caught.value.errors] == [(field, code)]
