"""What all tests share: the `--nightly` switch for those that run long."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also run what is marked nightly, and the long form of others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--nightly"):
        return
    skip = pytest.mark.skip(reason="only with --nightly")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skip)
