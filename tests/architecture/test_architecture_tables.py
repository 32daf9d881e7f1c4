"""What pages list again from the code is all of it, and no more: roles, limits, leases, calls of nodes, exit codes."""

from __future__ import annotations

import re

from shellwego.cli import failure
from shellwego.control.loops import nodes
from shellwego.core.iam import ACTIONS, OWNER, PLATFORM, ROLES, names
from shellwego.core.quota import COUNTED
from shellwego.wire import uplink
from tests.architecture.test_architecture_docs import DOCS, ROOT

_QUOTED = re.compile(r"`([^`]+)`")
_LEASED = re.compile(r"run_leased\(control, (\"[a-z-]+\"|LOOP)")
_OWN = {"tokens", "user"}
"""Each role has these, and they are about the caller alone: the page says it beside the table."""


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the page's table below this head."""
    _, _, after = (DOCS / page).read_text().partition(f"{head}\n")
    lines = after.splitlines()[1:]
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[:end]]


def held(role: str, *, changing: bool) -> set[str]:
    """What a role sees in an organization, or changes."""
    permissions = (
        (name, f"{name}:{action}", action != "read") for name, actions in ACTIONS.items() for action in actions
    )
    given = {
        name
        for name, each, changes in permissions
        if changes == changing and each not in PLATFORM and names(ROLES[role], each)
    }
    return given - _OWN


def test_the_table_of_roles_says_what_each_sees_and_changes() -> None:
    told = rows("design/tenancy.md", "| role | sees, on its scope and below | changes there |")
    cells = {role.strip("`"): texts for role, *texts in told}
    assert set(cells) == set(ROLES)

    def said(role: str, column: int) -> set[str]:
        if cells[role][column].startswith("everything"):
            return held(OWNER, changing=bool(column))
        words = _QUOTED.findall(cells[role][column])
        return set().union(*(said(word, column) if word in cells else {word} for word in words))

    for role in ROLES:
        assert said(role, 0) == held(role, changing=False), f"{role} sees"
        assert said(role, 1) == held(role, changing=True), f"{role} changes"


def test_the_page_names_each_amount_that_has_a_limit() -> None:
    said = re.search(r"Limited are ([^.]+)\.", (DOCS / "design/tenancy.md").read_text())
    assert said is not None
    assert _QUOTED.findall(said[1]) == list(COUNTED)


def test_the_table_of_leases_names_each_loop_that_has_one() -> None:
    loops = (ROOT / "packages/shellwego/src/shellwego/control/loops").glob("*.py")
    leased = {name.strip('"') for path in loops for name in _LEASED.findall(path.read_text())}
    what = dict(rows("design/several-servers.md", "| | |"))["what"]
    assert set(what.removeprefix("one row for each loop: ").split(", ")) == leased - {"LOOP"} | {nodes.LOOP}


def test_the_table_of_the_node_port_names_each_call_and_download() -> None:
    told = [method.strip("`") for method, *_ in rows("design/node-uplink.md", "| method | body → answer | who |")]
    downloads = [f"GET {place}" for place in (uplink.BLOBS, uplink.MEMORIES, uplink.REPLICAS)]
    assert {name for name in told if not name.startswith("GET ")} == {method.value for method in uplink.Method}
    assert sorted(name[: name.index("<")] for name in told if name.startswith("GET ")) == downloads


def test_the_table_of_exit_codes_tells_which_statuses_of_the_api_end_so() -> None:
    head = "| code | word | when | statuses of the API |"
    told = {int(code): statuses for code, _, _, statuses in rows("reference/exit-codes.md", head)}
    ended = {status: failure.exit_code(status, "some-problem") for status in range(400, 600)}
    for code, statuses in told.items():
        if statuses == "all others":
            assert code == failure.FAILED
        else:
            assert {int(each) for each in re.findall(r"\d+", statuses)} == {
                each for each in ended if ended[each] == code
            }
    assert set(ended.values()) <= set(told)
    assert {failure.exit_code(409, code) for code in ("no-capacity", "cannot-be-placed")} == {failure.NO_CAPACITY}
    assert {failure.OK, failure.UNHEALTHY, failure.TIMED_OUT, failure.INTERRUPTED} <= set(told)
