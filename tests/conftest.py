"""What all tests share: the `--nightly` switch for those that run long, and a second try for those on real things.

Deadlines of real things assume that the host gets on with it; a shared one may stand still for a while. So `scripts/test`
runs tests marked `real` that failed once more, when all others are through: in a process of their own (a world that several
share is not what the first failure left of it), with the first failure in the report above. One that is seen there again
and again has a race, and is mended. All others depend on no host, and have one try.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.postgres_server import PostgresServer, running_postgres
from tests.contract.store_databases import ALL, SQL, Database


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests that ask for it; each makes a database of its own."""
    with running_postgres() as server:
        yield server


@pytest.fixture
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database of each kind. In memory each time, and the real ones nightly, for each fact costs an fsync there;
    a test marked `databases` runs on all of them each time, or on those that its mark names.
    """
    match request.param:
        case "memory":
            found = Database(None)
        case "sqlite":
            found = Database(tmp_path / "state.db")
        case _:
            server: PostgresServer = request.getfixturevalue("postgres")
            found = Database(server.emptied_database())
    yield found
    await found.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("databases")
    always = (mark.args or ALL) if mark else ("memory",)
    nightly = SQL if not mark and metafunc.config.getoption("--nightly") else ()
    metafunc.parametrize("database", [*always, *nightly], indirect=True)


_LONGEST_NIGHTLY_S = 2 * 3600
"""Some play for long; otherwise what takes longer than `timeout` of `pyproject.toml` hangs."""
_SECOND_TRIES = 10
"""More than these fail where something is broken."""


def pytest_configure() -> None:
    """Commands that tests start listen to interrupts, also where a shell began the tests in its background, deaf to them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also run what is marked nightly, and the long form of others"
    )
    parser.addoption(
        "--second-try", action="store_true", help="run the tests of real things that failed last, and no others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "real" not in item.keywords)  # so that no long one is begun when all others are through
    if config.getoption("--second-try"):
        items[:] = _failed_last(config, items)
    if config.getoption("--nightly"):
        for item in items:
            item.add_marker(pytest.mark.timeout(_LONGEST_NIGHTLY_S))
        return
    skip = pytest.mark.skip(reason="only with --nightly")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skip)


def _failed_last(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Those of `items` that failed, when each of them may have another try."""
    assert config.cache
    failed = set(config.cache.get("cache/lastfailed", {}))
    again = [item for item in items if item.nodeid in failed]
    once = sorted(failed - {item.nodeid for item in again if "real" in item.keywords})
    if once:
        pytest.exit(f"no second try: no host explains the failure of {', '.join(once)}", returncode=1)
    if len(again) > _SECOND_TRIES:
        pytest.exit(f"no second try: {len(again)} tests failed", returncode=1)
    return again
