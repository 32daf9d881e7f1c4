"""Who may do what: denied unless a grant on the scope or above it, and the token, both say so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.iam import PLATFORM, ROLES, allowed, covers, decide, intersection, read_permission
from shellwego.core.tenancy import Grant, Principal

CHAIN = ("", "org_a", "prj_a")


def principal(role: str, scope_id: str, *scopes: str) -> Principal:
    grant = Grant(id="grn", principal_id="usr", role=role, scope_id=scope_id, created_at=0.0)
    return Principal(principal_id="usr", token_id="tok", scopes=scopes, grants=(grant,))


def test_without_a_grant_everything_is_denied() -> None:
    nobody = Principal(principal_id="usr", token_id="tok", scopes=(), grants=())
    decision = decide(nobody, "apps:read", CHAIN)
    assert not decision.allowed
    assert "no grant" in decision.reason


@pytest.mark.parametrize("scope_id", ["", "org_a", "prj_a"])
def test_a_grant_holds_on_its_scope_and_below(scope_id: str) -> None:
    assert allowed(principal("owner", scope_id), "apps:write", CHAIN)


def test_a_grant_does_not_hold_above_or_beside() -> None:
    assert not allowed(principal("owner", "prj_a"), "apps:write", ("", "org_a"))
    assert not allowed(principal("owner", "prj_b"), "apps:write", CHAIN)


@pytest.mark.parametrize(
    ("role", "permission", "may"),
    [
        ("owner", "organizations:delete", True),
        ("admin", "apps:write", True),
        ("admin", "audit:read", True),
        ("admin", "organizations:delete", False),
        ("developer", "deployments:write", True),
        ("developer", "instances:exec", True),
        ("developer", "audit:read", False),
        ("developer", "nodes:write", False),
        ("viewer", "apps:read", True),
        ("viewer", "apps:write", False),
        ("viewer", "apps:env", False),
        ("viewer", "instances:exec", False),
        ("viewer", "tokens:write", True),
        ("viewer", "members:read", True),
        ("admin", "grants:write", True),
        ("admin", "quotas:write", False),
        ("billing", "usage:read", True),
        ("billing", "apps:read", False),
        ("made-up", "apps:read", False),
    ],
)
def test_roles(role: str, permission: str, *, may: bool) -> None:
    assert allowed(principal(role, ""), permission, CHAIN) is may


def test_a_token_narrows_and_never_widens() -> None:
    narrowed = principal("owner", "", "apps:read")
    assert allowed(narrowed, "apps:read", CHAIN)
    assert not allowed(narrowed, "apps:write", CHAIN)
    widened = principal("viewer", "", "apps:*")
    assert not allowed(widened, "apps:write", CHAIN)


@pytest.mark.parametrize("permission", ["", "apps", ":", "apps:", ":read", "*:*", "apps:*"])
def test_what_is_no_permission_is_held_by_nobody(permission: str) -> None:
    assert not allowed(principal("owner", ""), permission, CHAIN)


def test_every_role_may_read_what_it_may_write() -> None:
    for role, patterns in ROLES.items():
        for pattern in patterns:
            assert allowed(principal(role, ""), read_permission(pattern.replace("*:", "apps:")), CHAIN), (role, pattern)


@pytest.mark.parametrize("permission", sorted(PLATFORM))
def test_what_the_operator_decides_is_held_by_a_grant_on_the_system_only(permission: str) -> None:
    assert allowed(principal("owner", ""), permission, CHAIN)
    assert not allowed(principal("owner", "org_a"), permission, CHAIN)


def test_a_custom_role_gives_what_it_is_made_of() -> None:
    custom = replace(principal("rol_ci", "org_a"), roles={"rol_ci": frozenset({"deployments:write"})})
    assert allowed(custom, "deployments:write", CHAIN)
    assert not allowed(custom, "apps:write", CHAIN)
    assert not allowed(replace(custom, roles={}), "deployments:write", CHAIN)


def test_a_custom_role_cannot_take_the_name_of_one_that_all_have() -> None:
    assert not allowed(replace(principal("viewer", ""), roles={"viewer": frozenset({"*:*"})}), "apps:write", CHAIN)


def test_a_token_bound_to_resources_holds_there_and_below_only() -> None:
    bound = replace(principal("owner", ""), resources=("prj_a",))
    assert allowed(bound, "apps:write", CHAIN)
    assert allowed(bound, "apps:write", (*CHAIN, "app_a"))
    assert not allowed(bound, "apps:write", CHAIN[:2])
    assert not allowed(bound, "nodes:read", ("",))


@pytest.mark.parametrize(
    ("held", "wanted", "covered"),
    [
        (["*:*"], ["*:*"], True),
        (["apps:*"], ["apps:read", "apps:env"], True),
        (["*:read"], ["apps:read"], True),
        (["apps:read", "apps:write", "apps:env"], ["apps:*"], False),
        (["*:read"], ["*:*"], False),
        (["apps:*", "*:read"], ["apps:*", "nodes:read"], True),
        (["apps:*"], ["nodes:read"], False),
        ([], ["apps:read"], False),
        (["apps:read"], [], True),
        (["*:*"], ["nonsense"], False),
    ],
)
def test_covering(held: list[str], wanted: list[str], *, covered: bool) -> None:
    assert covers(held, wanted) is covered


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (["*:*"], ["apps:read"], {"apps:read"}),
        (["apps:*"], ["*:read"], {"apps:read"}),
        (["apps:*", "nodes:read"], ["*:read"], {"apps:read", "nodes:read"}),
        (["apps:*"], ["nodes:*"], set()),
        (["apps:*", "apps:read"], ["*:*"], {"apps:*"}),
    ],
)
def test_intersection(first: list[str], second: list[str], both: set[str]) -> None:
    assert intersection(first, second) == both
