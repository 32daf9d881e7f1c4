"""The policy: deny by default, inherited downwards, never wider than what was granted; and its file."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.rpc.access import Action, Principal, Request
from plasmavmc.server.authorizer import LOOK_S, PolicyAuthorizer, PolicyFile, read_policy
from plasmavmc.server.policy import ROLES, ROOT_ONLY, Grant, Known, Policy, parse_policy
from plasmavmc.types import SYSTEM_SCOPE, Scope

PARTS = st.sampled_from(["a", "b", "c"])
SCOPES = st.builds(Scope, PARTS, PARTS) | st.just(SYSTEM_SCOPE)
PLACES = st.just(("", "")) | st.tuples(PARTS, st.just("")) | st.tuples(PARTS, PARTS)
GRANTS = st.builds(lambda role, place: Grant(role, *place), st.sampled_from(sorted(ROLES)), PLACES)
POLICIES = st.lists(st.lists(GRANTS, max_size=4), min_size=1, max_size=4).map(
    lambda people: Policy(tuple(Known(f"p{number}", tuple(grants)) for number, grants in enumerate(people)))
)
PEOPLE = st.integers(0, 4).map(lambda number: Principal(f"p{number}"))
REQUESTS = st.builds(Request, st.sampled_from(Action), SCOPES, st.sampled_from(["", "vm_1"]))


@given(POLICIES, PEOPLE, REQUESTS)
def test_what_no_grant_allows_is_denied_and_what_one_allows_is_allowed(
    policy: Policy, who: Principal, request: Request
) -> None:
    number = int(who.id[1:])
    known = policy._by_name.get(f"p{number}")
    grants = () if known is None else known.grants
    expected = any(
        request.action in ROLES[grant.role]
        and grant.org in ("", request.scope.org)
        and grant.project in ("", request.scope.project)
        for grant in grants
    )
    decision = policy.decide(who, request)
    assert decision.allowed == expected
    assert who.id in decision.reason


@given(POLICIES, PEOPLE, REQUESTS)
def test_a_list_reaches_just_as_far_as_single_questions(policy: Policy, who: Principal, request: Request) -> None:
    assert policy.reach(who, request.action).covers(request.scope) == policy.decide(who, request).allowed


@given(POLICIES, PEOPLE, REQUESTS, st.lists(GRANTS, max_size=3))
def test_a_grant_to_one_widens_nobody_elses(
    policy: Policy, who: Principal, request: Request, more: list[Grant]
) -> None:
    others = tuple(known for known in policy._by_name.values() if known.name != "p9")
    wider = Policy((*others, Known("p9", tuple(more))))
    assert wider.decide(who, request) == policy.decide(who, request)


@given(POLICIES, PEOPLE, REQUESTS)
async def test_each_question_gets_the_policys_own_answer(policy: Policy, who: Principal, request: Request) -> None:
    class Held(PolicyFile):
        def __init__(self) -> None:
            """Without a file."""

        def current(self) -> Policy:
            return policy

    authorizer = PolicyAuthorizer(Held())
    assert await authorizer.authorize_all(who, [request, request]) == (policy.decide(who, request),) * 2


def test_roles_contain_one_another_and_only_admins_touch_nodes() -> None:
    assert ROLES["viewer"] < ROLES["operator"] < ROLES["admin"] == frozenset(Action)
    assert ROLES["admin"] - ROLES["operator"] == {Action.NODE_CORDON, Action.NODE_DRAIN}


def test_a_tenants_admin_has_no_say_over_nodes_and_what_all_use() -> None:
    policy = Policy((Known("p", (Grant("admin", "acme"),)),))
    for action in (Action.NODE_READ, Action.NODE_DRAIN, Action.IMAGE_REGISTER):
        assert not policy.decide(Principal("p"), Request(action, SYSTEM_SCOPE)).allowed


def test_without_a_file_root_may_do_everything_and_nobody_else_anything() -> None:
    root = ROOT_ONLY.of_uid(0)
    assert root is not None
    assert all(ROOT_ONLY.decide(root, Request(action, Scope("any", "any"))).allowed for action in Action)
    assert ROOT_ONLY.of_uid(1000) is None
    assert ROOT_ONLY.of_token("") is None
    assert ROOT_ONLY.of_subject("") is None


TOKEN = hashlib.sha256(b"secret").hexdigest()
GOOD = f"""
[[principals]]
name = "ci"
token_sha256 = "{TOKEN}"
grants = [{{ role = "operator", org = "acme", project = "web" }}]
[[principals]]
name = "alice"
unix_uid = 1000
certificate_subject = "CN=alice"
home = {{ org = "acme", project = "shop" }}
grants = [{{ role = "viewer", org = "acme" }}]
"""


def test_a_principal_is_known_by_each_of_its_marks() -> None:
    policy = parse_policy(GOOD)
    assert policy.of_token("secret") == Principal("ci", Scope("acme", "web"))
    assert policy.of_token(TOKEN) is None, "the hash itself opens nothing"
    alice = Principal("alice", Scope("acme", "shop"))
    assert policy.of_uid(1000) == policy.of_subject("CN=alice") == alice
    assert policy.uids == {1000}
    assert "secret" not in repr(policy._by_name)
    assert TOKEN not in repr(policy._by_name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("principals = [", "Invalid"),
        ('[[principal]]\nname = "x"', "principal"),
        ('[[principals]]\nname = "x"\nunix_uid = 1', "grants"),
        ('[[principals]]\nname = "x"\ngrants = []', "give token_sha256, unix_uid or certificate_subject"),
        ('[[principals]]\nname = "x y"\nunix_uid = 1\ngrants = []', "a name has"),
        ('[[principals]]\nname = "x"\nunix_uid = -1\ngrants = []', "unix_uid"),
        ('[[principals]]\nname = "x"\ntoken_sha256 = "secret"\ngrants = []', "64 hexadecimal"),
        ('[[principals]]\nname = "x"\nunix_uid = 1\ngrants = [{ role = "root" }]', "there is no role"),
        ('[[principals]]\nname = "x"\nunix_uid = 1\ngrants = [{ role = "viewer", project = "p" }]', "names its org"),
        ('[[principals]]\nname = "x"\nunix_uid = 1\ngrants = [{ role = "viewer", org = "A" }]', "org and project"),
        ('[[principals]]\nname = "x"\nunix_uid = 1\ngrants = [{ role = "viewer", org = "system" }]', "System scope"),
        ('[[principals]]\nname = "x"\nunix_uid = 1\ngrants = [{ role = "viewer", orgs = "a" }]', "orgs"),
        (
            '[[principals]]\nname = "x"\nunix_uid = 1\ngrants = []\nhome = { org = "a", project = "b" }',
            "none of its grants",
        ),
        (
            '[[principals]]\nname = "x"\nunix_uid = 1\ngrants = []\n[[principals]]\nname = "y"\nunix_uid = 1\ngrants = []',
            "the same unix_uid",
        ),
    ],
)
def test_a_file_that_says_what_we_do_not_know_is_refused_whole(text: str, words: str) -> None:
    with pytest.raises(HostError, match="the policy cannot be used") as refused:
        parse_policy(text)
    assert refused.value.code == "bad-policy"
    assert words in str(refused.value)


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def test_a_file_that_others_could_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write(path, GOOD)
    assert read_policy(path).uids == {1000}
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(HostError, match="could be written by others") as refused:
            read_policy(path)
        assert "chmod go-w" in refused.value.resolution
    path.chmod(0o644)
    read_policy(path)
    if os.geteuid() == 0:
        os.chown(path, 1000, 0)
        with pytest.raises(HostError, match="uid 1000"):
            read_policy(path)


def test_a_link_a_directory_and_a_pipe_are_no_policies(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(GOOD)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "absent", "."):
        with pytest.raises(HostError):
            read_policy(tmp_path / name)
    assert stat.S_ISLNK((tmp_path / "link").lstat().st_mode)


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "policy.toml"
    write(path, GOOD)
    file = PolicyFile(path, lambda: now)
    write(path, "principals = []  # nobody")
    assert file.current().uids == {1000}, "not looked at again within a second"
    now = LOOK_S
    assert file.current().uids == frozenset()
    write(path, "broken [")
    now += LOOK_S
    assert file.current().uids == frozenset()
    path.unlink()
    now += LOOK_S
    assert file.current().uids == frozenset()
    write(path, GOOD)
    file.reload()
    assert file.current().uids == {1000}
