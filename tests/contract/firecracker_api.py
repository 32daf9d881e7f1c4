"""Firecracker's API as described in `firecracker_api.json`: which bodies a release takes.

`since` lists the first release of each line that has a field; later lines have it from their start. The stand-in judges what
it is sent by this, the contract tier what we send. No import of ours: it stands apart from the code that it judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_DATA = json.loads(Path(__file__).with_name("firecracker_api.json").read_text())
VERSIONS: tuple[str, ...] = tuple(_DATA["versions"])
REQUESTS: Mapping[str, str] = _DATA["requests"]
_TYPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = _DATA["types"]
_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
_NATIVE: Mapping[str, type] = {"string": str, "boolean": bool, "integer": int}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def has(version: str, since: Sequence[str]) -> bool:
    """Whether a release has what began in these."""
    asked, first = numbers(version), [numbers(each) for each in since]
    return asked[:2] > first[-1][:2] or any(asked[:2] == each[:2] and asked >= each for each in first)


def fields(kind: str, version: str) -> Mapping[str, Mapping[str, Any]]:
    """The fields of a type in a release."""
    return {name: field for name, field in _TYPES[kind].items() if has(version, field.get("since", ["0.0.0"]))}


def request_key(method: str, path: str) -> str | None:
    """The entry of `REQUESTS` that a call is, if it is one."""
    for key in REQUESTS:
        known_method, _, known_path = key.partition(" ")
        if method == known_method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known_path), path):
            return key
    return None


def faults(method: str, path: str, body: Any, version: str) -> list[str]:
    """What is wrong with a body for a release; empty where it is taken."""
    key = request_key(method, path)
    if key is None:
        return [f"no request {method} {path}"]
    found = list(_faults(REQUESTS[key], body, version))
    name = re.search(r"\{(\w+)\}", key)
    if not found and name is not None and body[name[1]] != path.rpartition("/")[2]:
        found.append(f"{name[1]} is another than in the path")
    return found


def deprecated(method: str, path: str, body: Mapping[str, Any], version: str) -> bool:
    """Whether the answer carries `Deprecation: true`."""
    key = request_key(method, path)
    known = fields(REQUESTS[key], version) if key is not None else {}
    return any(
        known[name].get("deprecated") or has(version, known[name].get("deprecated_since", ["9999.0.0"]))
        for name in body
        if name in known
    )


def _faults(kind: str, body: Any, version: str) -> Iterator[str]:
    if not isinstance(body, dict):
        yield f"{kind} is no object"
        return
    known = fields(kind, version)
    if kind == "Anything":
        return
    for name, value in body.items():
        if name not in known:
            yield f"unknown field `{name}` of {kind} in {version}"
        elif not _fits(known[name], value, version):
            yield f"{kind}.{name} cannot be {value!r}"
    for name, field in known.items():
        if field.get("required") and name not in body:
            yield f"missing field `{name}` of {kind}"


def _fits(field: Mapping[str, Any], value: Any, version: str) -> bool:
    kind = field["is"]
    if kind == "one of":
        return any(value == word for word in field["of"])
    if kind == "list":
        return isinstance(value, list) and all(_fits({"is": field["of"]}, each, version) for each in value)
    if kind == "id":
        return isinstance(value, str) and _ID.fullmatch(value) is not None
    if kind not in _NATIVE:
        return not list(_faults(kind, value, version))
    if type(value) is not _NATIVE[kind]:
        return False
    return kind != "integer" or bool(field.get("least", 0) <= value <= field.get("most", 2**64))
