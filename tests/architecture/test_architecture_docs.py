"""What the pages say of this tree is there: links, pages, decisions, files, and every command with its options."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from plasmavmc.cli.root import main as plasmavmc
from shellwego.cli.root import COMMANDS, root_group
from shellwego.main import HOST_COMMANDS, HOST_SUBCOMMANDS
from tests.architecture.command_lines import command_lines, faults

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "packages").glob("*/README.md"))]
_SWG = root_group({**HOST_COMMANDS, **COMMANDS}, HOST_SUBCOMMANDS)
PROGRAMS: Mapping[str, click.Command] = {"swg": _SWG, "shellwego": _SWG, "plasmavmc": plasmavmc}
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_SCRIPT = re.compile(r"\bscripts/[a-z-]+\b")
_SOURCE = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|c|h|proto))`")
_DECISION = re.compile(r"\bADR (\d+)\b|\bdocs/adr/(\d{4})")


def tracked() -> list[str]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def anchors(text: str) -> set[str]:
    """What can be linked to in a page: its headings, as renderers name them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in plain}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for place, anchor in _LINK.findall(page.read_text()):
        yield ((page.parent / place).resolve() if place else page), anchor


def decision(path: Path) -> int:
    return int(path.name.partition("-")[0])


def decisions_named(text: str) -> set[int]:
    return {int(number or file) for number, file in _DECISION.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    dead = [
        f"{target}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target.read_text()))
    ]
    assert dead == []


def test_every_page_is_in_the_index() -> None:
    named = {target for target, _ in links(INDEX)}
    assert {page.relative_to(DOCS) for page in DOCS.rglob("*.md") if page not in named} == {Path("README.md")}


def test_decisions_have_numbers_of_their_own_which_they_say() -> None:
    decisions = sorted((DOCS / "adr").glob("*.md"))
    assert [number for number, count in Counter(map(decision, decisions)).items() if count > 1] == []
    for path in decisions:
        assert path.read_text().startswith(f"# {decision(path)}. "), path.name


def test_decisions_that_are_named_are_there() -> None:
    known = {decision(path) for path in (DOCS / "adr").glob("*.md")}
    texts = (ROOT / name for name in tracked() if name.endswith((".py", ".md", ".c", ".h")))
    named = {(path.name, number) for path in texts for number in decisions_named(path.read_text())}
    assert {(name, number) for name, number in named if number not in known} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_sources_that_a_page_names_are_there(page: Path) -> None:
    text, files = page.read_text(), tracked()
    named = {*_SCRIPT.findall(text), *_SOURCE.findall(text)}
    assert [name for name in sorted(named) if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_shows_are_there_with_their_options(page: Path) -> None:
    calls = command_lines(page.read_text(), frozenset(PROGRAMS))
    assert [fault for words in calls for fault in faults(PROGRAMS[words[0]], words)] == []


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("`swg apps lst`", "swg apps has no command lst"),
        ("`swg volumes delete`", "swg volumes has no command delete"),
        ("Say `swg volumes ls|remove -q`.", "swg volumes has no command remove"),
        ("```sh\nswg logs -a shop \\\n  --follows   # all of it\n```", "swg logs has no --follows"),
        ("```\nX=1 plasmavmc --project a/b vm run --size=1g IMAGE cmd --x\n```", "plasmavmc vm run has no --size"),
        ("```sh\nswg apps ls | sudo swg logs -fz shop\n```", "swg logs has no -z"),
    ],
)
def test_a_planted_mistake_is_found(page: str, found: str) -> None:
    calls = command_lines(page, frozenset(PROGRAMS))
    assert [fault for words in calls for fault in faults(PROGRAMS[words[0]], words)] == [found]


def test_a_decision_is_named_by_its_number_or_its_file() -> None:
    assert decisions_named("so it is said (ADR 6), and why (docs/adr/0024)") == {6, 24}


def test_what_stands_for_something_else_is_no_mistake() -> None:
    page = "`swg volumes snapshots VOLUME […]`, `swg scale -a shop web=3 [-y]`, `swg run -a shop -- ls --color`, `swg nodes`"
    calls = list(command_lines(page, frozenset(PROGRAMS)))
    assert len(calls) == 4
    assert [fault for words in calls for fault in faults(_SWG, words)] == []
