"""Names of apps and the hostnames made from them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shellwego.core.errors import InvalidError
from shellwego.core.hostnames import candidates, check_name
from shellwego.core.tenancy import Project

LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
NAMES = st.from_regex(r"[a-z](?:-?[a-z0-9]){0,19}", fullmatch=True)


def project(name: str = "web", *, first: bool = False, id_: str = "prj_x") -> Project:
    return Project(id=id_, organization_id="org", name=name, network_id="net", first=first, created_at=0.0)


def test_the_first_project_s_apps_have_the_short_name_if_it_is_free() -> None:
    names = list(candidates("shop", project(first=True), "localhost"))
    assert names[:2] == ["shop.localhost", "shop-web.localhost"]


def test_other_projects_carry_theirs() -> None:
    assert next(candidates("shop", project(), "example.org")) == "shop-web.example.org"


def test_two_pairs_that_spell_the_same_still_find_a_name_each() -> None:
    one = list(candidates("a-b", project("c", id_="prj_1"), "d"))
    other = list(candidates("a", project("b-c", id_="prj_2"), "d"))
    assert one[0] == other[0]
    assert one[1] != other[1]


@given(app=NAMES, name=st.text(alphabet="abc-", min_size=1, max_size=70).map(lambda text: "p" + text.strip("-") + "q"))
def test_every_candidate_is_a_dns_label(app: str, name: str) -> None:
    for candidate in candidates(app, project(name, first=True), "d"):
        assert LABEL.fullmatch(candidate.removesuffix(".d")), candidate


@pytest.mark.parametrize("name", ["a", "shop", "my-shop-2", "a" * 40])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "a--b", "1a", "A", "a_b", "a.b", "a b", "a" * 41, "ä", "a\n", "$(reboot)", "../x", "a;b", "xn--a"],
)
def test_hostile_or_unusable_names_are_refused_with_their_field(name: str) -> None:
    with pytest.raises(InvalidError) as refused:
        check_name(name)
    assert refused.value.errors[0].field == "name"
