"""The JSON schema of `shellwego.toml`, for editors and for whoever writes such files by program."""

from __future__ import annotations

import json

import msgspec

from shellwego.client.manifest.document import Manifest


def schema_text() -> str:
    """The schema (JSON Schema 2020-12) as a document."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "shellwego.toml"}
    return json.dumps(schema | msgspec.json.schema(Manifest), indent=2, sort_keys=True) + "\n"
