"""Who may do what: denied unless a grant on the scope or above it, and the token, both say so."""

from __future__ import annotations

import pytest

from shellwego.core.iam import ROLES, allowed, decide, read_permission
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
