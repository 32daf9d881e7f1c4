"""Schemathesis' hooks: puts things that exist into the cases that are to make sense, so that they get far.

Loaded by schemathesis in its own environment, so it imports nothing of the platform. What a case is meant to get wrong is
left as it is: each part of a request (path, query, header, body) is generated right or wrong, and only a right one is
replaced. Guesses stay in a good part of them.
"""

from __future__ import annotations

import json
import os
import random
import threading
import urllib.request
from typing import Any

import schemathesis

_THINGS = os.environ["API_THINGS"]
_GUIDED, _WHOLE = 0.85, 0.5
"""Shares of the cases that get things that exist, and of these those whose body is one that works."""
_random = random.Random(int(os.environ.get("API_SEED", "1")))
_lock = threading.Lock()
_kept: dict[str, Any] = {}


def _fresh() -> dict[str, Any]:
    with urllib.request.urlopen(_THINGS, timeout=60) as answer:  # noqa: S310 - of the server that we fuzz
        made: dict[str, Any] = json.loads(answer.read())
        return made


def _is_right(case: Any, part: str) -> bool:
    """Whether a part of the request was generated to be right."""
    if case.meta is None:
        return True
    for location, component in case.meta.components.items():
        if getattr(location, "value", str(location)) in (part, f"{part}s", f"{part}_parameters"):
            return str(getattr(component.mode, "value", component.mode)) == "positive"
    return True


def _is_right_in_all(case: Any) -> bool:
    return case.meta is None or str(case.meta.generation.mode.value) == "positive"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    with _lock:
        if not _kept:
            _kept.update(_fresh())
        things, guided, whole = dict(_kept), _random.random() < _GUIDED, _random.random() < _WHOLE
    name = case.operation.definition.raw["operationId"]
    _end_streams(case)
    if not guided:
        return
    if case.path_parameters and _is_right(case, "path"):
        known = {**things["paths"], **things["special"].get(name, {})}
        case.path_parameters = {key: known.get(key, value) for key, value in case.path_parameters.items()}
    if _is_right(case, "query"):
        kept, known = {} if whole else dict(case.query or {}), _declared(case, "query")
        case.query = {**kept, **{key: value for key, value in things["queries"].items() if key in known}}
    if whole and _is_right(case, "header"):
        case.headers.pop("If-Match", None)
        case.headers.pop("Idempotency-Key", None)
        known = _declared(case, "header")
        case.headers.update({key: value for key, value in things["headers"].items() if key in known})
    if whole and _is_right_in_all(case) and name in things["bodies"]:
        case.body = things["bodies"][name]
        case.media_type = "application/json"
    elif whole and _is_right_in_all(case) and name == "append_upload":
        case.body = b"x"


def _end_streams(case: Any) -> None:
    """What would not end is not asked for."""
    if (case.query or {}).get("watch") == "true":
        case.query["watch"] = "false"
    if "timeout" in _declared(case, "query") and _is_right(case, "query"):
        case.query["timeout"] = 0


def _declared(case: Any, place: str) -> set[str]:
    """The names of the operation's parameters in one place."""
    parameters = case.operation.definition.raw.get("parameters", [])
    return {each["name"] for each in parameters if each["in"] == place}


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """What was changed is not used again."""
    if case.operation.method.upper() != "GET" and response.status_code < 300:
        with _lock:
            _kept.clear()
