"""What all tests share: the `--nightly` switch for those that run long, and a second try for what boots real things.

A real test's deadlines assume that the host gets on with it; a shared one may stand still for a while. So a real test that
failed is run once more, and the report says so (RERUN, with the first failure): a test that is seen there again and again
has a race, and is mended.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.postgres_server import PostgresServer, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests that ask for it; each makes a database of its own."""
    with running_postgres() as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also run what is marked nightly, and the long form of others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "real" in item.keywords:
            item.add_marker(pytest.mark.flaky(reruns=1))
    if config.getoption("--nightly"):
        return
    skip = pytest.mark.skip(reason="only with --nightly")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed at first, and was run again: {report.nodeid}", sep="_")
        terminalreporter.line(report.longreprtext)
