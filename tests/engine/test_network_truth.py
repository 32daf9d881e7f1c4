"""The truth table is declared once: what people read is what is held against packets."""

from __future__ import annotations

from pathlib import Path

from tests.real.network_truth import as_markdown

BOUNDARIES = Path(__file__).resolve().parents[2] / "docs" / "design" / "trust-boundaries.md"


def test_the_docs_quote_the_truth_table() -> None:
    assert as_markdown() in BOUNDARIES.read_text()
