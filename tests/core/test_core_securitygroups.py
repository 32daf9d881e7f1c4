"""Security groups: what they mean for each app, and what is refused by its field."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plasmavmc.policy
from shellwego.core.apps import App
from shellwego.core.destinations import IpProtocol
from shellwego.core.errors import InvalidError
from shellwego.core.openings import Opening
from shellwego.core.securitygroups import (
    MAX_OPENINGS,
    MAX_RULES,
    IngressRule,
    Known,
    RuleWish,
    SecurityGroup,
    SourceKind,
    changed,
    openings_of,
    parse_rules,
    without_app,
)
from tests.core.app_builder import app

KNOWN = Known(groups={"web": "sgr_web", "db": "sgr_db"}, apps={"shop": "app_shop"})
POSTGRES = IngressRule(
    source=SourceKind.GROUP, source_id="sgr_web", protocol=IpProtocol.TCP, first_port=5432, last_port=5432
)


def group(name: str, *rules: IngressRule) -> SecurityGroup:
    return SecurityGroup(id=f"sgr_{name}", project_id="prj", name=name, rules=rules, created_at=0.0, updated_at=0.0)


def member(name: str, *groups: str) -> App:
    return app(id=f"app_{name}", name=name, groups=tuple(f"sgr_{each}" for each in groups))


def ingress(of: App, groups: list[SecurityGroup], *others: App) -> object:
    return openings_of(of, {each.id: each for each in groups}, (of, *others))


def wish(source: str, ports: str = "", protocol: IpProtocol = IpProtocol.ANY) -> RuleWish:
    return RuleWish(source=source, ports=ports, protocol=protocol)


def test_an_app_in_no_group_takes_anything_and_one_in_a_group_without_rules_nothing() -> None:
    assert ingress(member("free"), [group("db")]) is None
    assert ingress(member("db", "db"), [group("db")]) == ()
    assert ingress(member("db", "gone"), [group("db", POSTGRES)]) == (), "what is not known is closed"


def test_a_group_as_source_is_all_apps_in_it_at_the_time() -> None:
    groups = [group("db", POSTGRES), group("web")]
    db, shop, blog = member("db", "db"), member("shop", "web"), member("blog", "web", "db")
    opening = Opening(protocol=IpProtocol.TCP, first_port=5432, last_port=5432)
    assert ingress(db, groups, shop, blog) == tuple(
        replace(opening, identity=f"app_{each}") for each in ("blog", "shop")
    )
    assert ingress(db, groups) == ()


def test_rules_of_all_groups_add_up_and_what_says_the_same_counts_once() -> None:
    everybody = IngressRule(source=SourceKind.PROJECT, protocol=IpProtocol.ICMP)
    shop = replace(POSTGRES, source=SourceKind.APP, source_id="app_shop")
    groups = [group("db", POSTGRES, everybody), group("more", shop), group("web")]
    found = ingress(member("db", "db", "more"), groups, member("shop", "web"))
    assert found == (
        Opening(protocol=IpProtocol.ICMP),
        Opening(identity="app_shop", protocol=IpProtocol.TCP, first_port=5432, last_port=5432),
    )


NAMES = ("a", "b", "c")
RULES = st.builds(
    lambda source, name, protocol: IngressRule(
        source=source,
        source_id="" if source is SourceKind.PROJECT else f"{'sgr' if source is SourceKind.GROUP else 'app'}_{name}",
        protocol=protocol,
    ),
    st.sampled_from(SourceKind),
    st.sampled_from(NAMES),
    st.sampled_from(IpProtocol),
)
GROUPS = st.lists(st.lists(RULES, max_size=3), min_size=3, max_size=3).map(
    lambda rules: [group(name, *each) for name, each in zip(NAMES, rules, strict=True)]
)
APPS = st.lists(st.sets(st.sampled_from(NAMES)), min_size=3, max_size=3).map(
    lambda groups: [member(name, *sorted(each)) for name, each in zip(NAMES, groups, strict=True)]
)


@given(GROUPS, APPS)
def test_who_gets_in_is_who_some_rule_of_some_group_of_the_app_names(
    groups: list[SecurityGroup], apps: list[App]
) -> None:
    for target in apps:
        found = openings_of(target, {each.id: each for each in groups}, apps)
        rules = [rule for each in groups if each.id in target.groups for rule in each.rules]
        assert (found is None) == (not target.groups)
        for source in apps:
            named = {"", source.id, *source.groups}
            wanted = {rule.protocol for rule in rules if rule.source_id in named}
            assert {each.protocol for each in found or () if each.identity in ("", source.id)} == wanted


def test_rules_are_read_by_names_and_by_ids() -> None:
    wishes = [
        wish("group:web", "5432", IpProtocol.TCP),
        wish("app:app_shop"),
        wish("project", protocol=IpProtocol.ICMP),
    ]
    assert parse_rules("allow", wishes, KNOWN) == (
        POSTGRES,
        IngressRule(source=SourceKind.APP, source_id="app_shop"),
        IngressRule(source=SourceKind.PROJECT, protocol=IpProtocol.ICMP),
    )


@pytest.mark.parametrize(
    ("given_wish", "field", "code"),
    [
        (wish("web"), "source", "bad-source"),
        (wish(""), "source", "bad-source"),
        (wish("group:"), "source", "bad-source"),
        (wish("project:x"), "source", "bad-source"),
        (wish("project:"), "source", "bad-source"),
        (wish("vm:web"), "source", "bad-source"),
        (wish("group:mail"), "source", "no-such-group"),
        (wish("group:app_shop"), "source", "no-such-group"),
        (wish("app:blog"), "source", "no-such-app"),
        (wish("app:$(reboot)"), "source", "no-such-app"),
        (wish("group:web", "80"), "ports", "no-ports"),
        (wish("group:web", "80", IpProtocol.ICMP), "ports", "no-ports"),
        (wish("group:web", "0", IpProtocol.TCP), "ports", "out-of-range"),
        (wish("group:web", "9-1", IpProtocol.TCP), "ports", "out-of-range"),
        (wish("group:web", "http", IpProtocol.TCP), "ports", "bad-ports"),
    ],
)
def test_a_rule_that_makes_no_sense_is_told_by_its_field(given_wish: RuleWish, field: str, code: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_rules("allow", [wish("project"), given_wish], KNOWN)
    assert [(each.field, each.code) for each in caught.value.errors] == [(f"allow.1.{field}", code)]


def test_what_is_allowed_twice_is_there_once_and_what_is_denied_goes() -> None:
    once = changed(group("db"), allow=(POSTGRES, POSTGRES))
    assert once.rules == (POSTGRES,)
    assert changed(once, deny=(POSTGRES,)).rules == ()
    with pytest.raises(InvalidError, match=r"deny\.0"):
        changed(group("db"), deny=(POSTGRES,))


def test_a_group_has_an_end() -> None:
    many = [replace(POSTGRES, last_port=6000 + number) for number in range(MAX_RULES + 1)]
    full = changed(group("db"), allow=many[:-1])
    with pytest.raises(InvalidError, match="at most"):
        changed(full, allow=many[-1:])
    assert changed(full, allow=many[-1:], deny=many[:1]).rules == tuple(many[1:])


def test_rules_that_name_an_app_that_is_gone_are_taken_away() -> None:
    shop = IngressRule(source=SourceKind.APP, source_id="app_shop")
    assert without_app(group("db", POSTGRES, shop), "app_shop").rules == (POSTGRES,)


def test_nodes_take_as_many_openings_as_are_told_to_them() -> None:
    assert MAX_OPENINGS == plasmavmc.policy.MAX_OPENINGS
