"""Rules of the tree that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = ROOT / "packages/shellwego/src/shellwego"
ENGINE = ROOT / "packages/plasmavmc/src/plasmavmc"
GENERATED = {PLATFORM / "client/generated.py", *(ENGINE / "rpc/v1").glob("*.py")}
PORTS = sorted(path.stem for path in (PLATFORM / "ports").glob("[a-z]*.py"))
ENGINE_PORTS = {"hypervisor": "hypervisor", "storage": "storage", "network": "network", "host": "host"}
PROCESS_CALLS = {
    "create_subprocess_exec",
    "create_subprocess_shell",
    "Popen",
    "posix_spawn",
    "fork",
    "execv",
    "execve",
    "system",
}


def python_files() -> list[Path]:
    folders = ("packages", "tests", "bench", "examples")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path not in GENERATED]


def test_no_hand_written_file_is_longer_than_600_lines() -> None:
    c_files = [*(ROOT / "packages/plasmavmc/native").rglob("*.c"), *(ROOT / "packages/plasmavmc/native").rglob("*.h")]
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    long = {
        path.name: count
        for path in [*python_files(), *c_files, *scripts]
        if (count := len(path.read_text().splitlines())) > 600
    }
    assert long == {}


@pytest.mark.parametrize("port", PORTS)
def test_each_port_has_a_memory_driver_and_a_contract_suite(port: str) -> None:
    assert (PLATFORM / "drivers" / port / "memory.py").is_file()
    assert (ROOT / "tests/contract" / f"{port}_contract.py").is_file()


@pytest.mark.parametrize("room", sorted(ENGINE_PORTS))
def test_each_port_of_the_engine_has_a_memory_driver_and_a_contract_suite(room: str) -> None:
    assert (ENGINE / room / "memory.py").is_file()
    assert (ROOT / "tests/contract" / f"{ENGINE_PORTS[room]}_contract.py").is_file()


CHANGES_AUDIT = re.compile(r"\btx\.audit\.(update|delete)\(|(\w+)\([^()]*\btx\.audit\b(?!\.)")
"""What changes a record, or is given the whole table."""


def test_audit_records_are_only_ever_added_and_chained() -> None:
    """No use case changes or deletes one; that it gets its number in the chain is the one exception."""
    found = {
        path.relative_to(PLATFORM).as_posix(): [change or taker for change, taker in CHANGES_AUDIT.findall(text)]
        for path in PLATFORM.rglob("*.py")
        if CHANGES_AUDIT.search(text := path.read_text())
    }
    assert found == {"api/rest/routes/audit.py": ["page"], "control/audit.py": ["give"]}


ARCHITECTURE_WORDS = re.compile(r"x86|amd64|ttyS0|bzImage|8250|no_timer_check|tsc=|tsc_early|acpi=|reboot=|i8042")
ARCHITECTURE_ROOMS = {
    ENGINE / "host/architecture.py",
    ENGINE / "host/helper/argv.py",  # root's own list of what it lets pass
    ENGINE / "guest/bzimage.py",  # a format of x86 alone
    ENGINE / "hypervisor/firecracker/requests.py",  # its console is the same on every architecture
}


def architecture_words(source: str) -> list[str]:
    """Strings of a module, its prose left out, that have a meaning on one architecture only."""
    tree = ast.parse(source)
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in prose)
    return [node.value for node in texts if isinstance(node.value, str) and ARCHITECTURE_WORDS.search(node.value)]


def test_words_of_one_architecture_are_in_one_module() -> None:
    files = {*PLATFORM.rglob("*.py"), *ENGINE.rglob("*.py")} - GENERATED - ARCHITECTURE_ROOMS
    found = {str(path.relative_to(ROOT)): words for path in files if (words := architecture_words(path.read_text()))}
    assert found == {}


def test_a_planted_word_of_an_architecture_is_found() -> None:
    assert architecture_words('"""On x86."""\nKERNEL = f"/boot/{name}-amd64"\n') == ["-amd64"]


def starts_processes(path: Path) -> bool:
    """Whether a call in it starts a process. A VM is forked, too: `fork` and `system` count as those of `os` only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else "os"
            if name in PROCESS_CALLS and (owner == "os" or name not in ("fork", "system")):
                return True
    return False


def test_only_the_hosts_rooms_and_the_edge_start_processes() -> None:
    allowed = {PLATFORM / "edge/haproxy.py"}
    offenders = [
        path.relative_to(ROOT).as_posix()
        for base in (PLATFORM, ENGINE)
        for path in base.rglob("*.py")
        if path not in allowed and ENGINE / "host" not in path.parents and starts_processes(path)
    ]
    assert offenders == []


def test_nobody_swallows_a_cancellation() -> None:
    """`wait_for` (before Python 3.12) and a suppressed CancelledError lose one that arrives at the wrong moment; then the
    platform does not end. `asyncio.timeout`, and `asyncio.wait` or `gather` on what was cancelled, do not."""
    swallows = re.compile(r"asyncio\.wait_for\(|suppress\([^)]*CancelledError")
    offenders = [
        path.relative_to(ROOT).as_posix()
        for base in (PLATFORM, ENGINE)
        for path in base.rglob("*.py")
        if swallows.search(path.read_text())
    ]
    assert offenders == []


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    """They run by hand, and are no part of what types are checked in."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    lacking = [
        f"{node.module}.{alias.name}"
        for node in imports
        if (node.module or "").partition(".")[0] in ("bench", "plasmavmc", "shellwego", "tests")
        for alias in node.names
        if not hasattr(module := import_module(str(node.module)), alias.name)
        and not (getattr(module, "__path__", None) and find_spec(f"{node.module}.{alias.name}"))
    ]
    assert lacking == []


HEAVY = (
    "fastapi",
    "pydantic",
    "sqlalchemy",
    "aiohttp",
    "uvicorn",
    "plasmavmc",
    "rich",
    "websockets",
    "alembic",
    "asyncio",
    "msgspec",
)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_the_command_line_starts_without_heavy_modules(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from shellwego.main import main\n"
        f"sys.argv = ['swg', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"


def logged_events(tree: ast.AST) -> list[str]:
    """What a module logs, where that is written out: the first argument of each call of a logger's method."""
    return [
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"debug", "info", "warning", "error", "exception"}
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in {"log", "_log"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    ]


def test_events_of_the_log_are_named_room_and_what_happened() -> None:
    """So that they can be searched for; what is for people to read stands in fields."""
    unnamed = {
        f"{path.name}: {event}"
        for folder in (PLATFORM, ENGINE)
        for path in folder.rglob("*.py")
        for event in logged_events(ast.parse(path.read_text()))
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", event)
    }
    assert unnamed == set()
