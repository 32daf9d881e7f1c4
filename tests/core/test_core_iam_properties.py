"""What holds of every principal: nothing is held but by a grant, below its scope; nothing is passed on that is not held."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.iam import PERMISSIONS, PLATFORM, ROLES, allowed, covers, held, intersection, may_give, names
from shellwego.core.tenancy import Grant, Principal

CHAINS = tuple(
    ("", *below)[: depth + 1]
    for below in (("org_a", "prj_a", "app_a"), ("org_a", "prj_b", "app_b"), ("org_b", "prj_c", "app_c"))
    for depth in range(4)
)
SCOPES = sorted({scope for chain in CHAINS for scope in chain})
CUSTOM = ("rol_1", "rol_2")

permissions = st.sampled_from(sorted(PERMISSIONS))
chains = st.sampled_from(CHAINS)
patterns = st.one_of(
    permissions,
    permissions.map(lambda each: f"{each.partition(':')[0]}:*"),
    permissions.map(lambda each: f"*:{each.partition(':')[2]}"),
    st.just("*:*"),
)
grants = st.builds(
    Grant,
    id=st.just("grn"),
    principal_id=st.just("usr"),
    role=st.sampled_from([*ROLES, *CUSTOM, "unknown"]),
    scope_id=st.sampled_from(SCOPES),
    created_at=st.just(0.0),
)
principals = st.builds(
    Principal,
    principal_id=st.just("usr"),
    token_id=st.just("tok"),
    scopes=st.lists(patterns, max_size=3).map(tuple),
    grants=st.lists(grants, max_size=3).map(tuple),
    roles=st.dictionaries(st.sampled_from(CUSTOM), st.frozensets(permissions, max_size=4)),
    resources=st.lists(st.sampled_from(SCOPES[1:]), max_size=2).map(tuple),
)


def everything(principal: Principal) -> set[tuple[str, tuple[str, ...]]]:
    """All that a principal may do, anywhere."""
    return {(each, chain) for each in PERMISSIONS for chain in CHAINS if allowed(principal, each, chain)}


@given(principals)
def test_without_grants_nothing_is_held(principal: Principal) -> None:
    assert everything(replace(principal, grants=())) == set()


@given(principals, grants)
def test_no_grant_widens_anything_outside_its_scope(principal: Principal, grant: Grant) -> None:
    wider = replace(principal, grants=(*principal.grants, grant))
    gained = everything(wider) - everything(principal)
    assert all(grant.scope_id in chain for _, chain in gained)
    assert everything(principal) <= everything(wider)


@given(principals)
def test_what_holds_on_a_scope_holds_on_all_below_it(principal: Principal) -> None:
    may = everything(principal)
    for permission, chain in may:
        assert {(permission, below) for below in CHAINS if below[: len(chain)] == chain} <= may


@given(principals)
def test_a_token_never_holds_what_its_user_does_not(principal: Principal) -> None:
    assert everything(principal) <= everything(replace(principal, scopes=(), resources=()))


@given(principals, st.lists(patterns, min_size=1, max_size=3), st.sampled_from(SCOPES[1:]), st.data())
def test_a_minted_token_never_exceeds_its_parent(
    parent: Principal, scopes: list[str], resource: str, data: st.DataObject
) -> None:
    narrowed = tuple(intersection(scopes, parent.scopes or ("*:*",)))
    resources = (data.draw(st.sampled_from(parent.resources or (resource,))),)
    if narrowed:
        assert everything(replace(parent, scopes=narrowed, resources=resources)) <= everything(parent)


@given(principals, chains, st.frozensets(patterns, min_size=1, max_size=3), chains)
def test_nobody_gives_what_he_does_not_hold(
    giver: Principal, given_at: tuple[str, ...], role: frozenset[str], used_at: tuple[str, ...]
) -> None:
    if not may_give(giver, role, given_at):
        return
    grant = Grant(id="grn", principal_id="usr_b", role="rol_new", scope_id=given_at[-1], created_at=0.0)
    taker = Principal(principal_id="usr_b", token_id="t", scopes=(), grants=(grant,), roles={"rol_new": role})
    for permission in PERMISSIONS:
        if allowed(taker, permission, used_at):
            assert allowed(giver, permission, used_at), (permission, used_at)


@given(principals, permissions, chains)
def test_what_is_held_as_patterns_is_what_is_decided(
    principal: Principal, permission: str, chain: tuple[str, ...]
) -> None:
    if permission not in PLATFORM:
        assert names(held(principal, chain), permission) == allowed(principal, permission, chain)


@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), permissions)
def test_an_intersection_names_what_both_name(first: list[str], second: list[str], permission: str) -> None:
    both = intersection(first, second)
    assert names(both, permission) == (names(first, permission) and names(second, permission))
    assert covers(first, both)
    assert covers(second, both)


@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), permissions)
def test_what_covers_names_all_that_is_covered(wide: list[str], narrow: list[str], permission: str) -> None:
    if covers(wide, narrow) and names(narrow, permission):
        assert names(wide, permission)
