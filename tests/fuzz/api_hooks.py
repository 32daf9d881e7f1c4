"""Schemathesis' hooks: put things that exist into the cases that are to make sense, so that they get far, and count answers.

Loaded by schemathesis in its own environment, so it imports nothing of the platform. What a case is meant to get wrong is
left as it is: each part of a request (path, query, header, body) is generated right or wrong, and only a right one is
replaced. Guesses stay in a good part of them.

Each operation has things of its own (`api_things`). They serve again until a request that should have worked was refused:
what an operation can do once only gets fresh ones each time from then on.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import strategies

_THINGS = os.environ["API_THINGS"]
_COUNTS = Path(os.environ["API_COUNTS"])
_SIGNED = os.environ["API_SIGNED"] == "1"
_GUIDED = 0.85
"""The share of the cases that get things that exist; `_WHOLE` of these have a body that works."""
_WHOLE = float(os.environ["API_WHOLE"])
_random = random.Random(int(os.environ["API_SEED"]))
_numbers = itertools.count(int(os.environ["API_SEED"]) * 1_000_000)
_lock = threading.Lock()
_kept: dict[str, Any] = {}
_once: set[str] = set()
_counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
_HOLDING = threading.local()
"""Whether the case that this thread sends should be answered well."""


class _Bearer(requests.auth.AuthBase):
    """Another token than the run's."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = self._field
        return request


def _things(operation: str) -> Any:
    with _lock:
        kept = _kept.get(operation)
    if kept is None:
        try:
            with urllib.request.urlopen(f"{_THINGS}/{operation}", timeout=120) as answer:  # noqa: S310 - of our rig
                kept = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None
        with _lock:
            _kept[operation] = kept
    return kept


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
def before_generate_case(context: Any, strategy: Any) -> Any:
    """The same request may come again: one without parameters would be sent once, and its answer does not follow from it."""
    return strategies.tuples(strategy, strategies.integers(0)).map(lambda pair: pair[0])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    _HOLDING.good = False
    with _lock:
        guided, whole = _random.random() < _GUIDED, _random.random() < _WHOLE
    _end_streams(case)
    if not guided or not (_SIGNED or case.operation.definition.raw["x-permission"] == "public"):
        return  # who is not signed in is refused before anything is looked for
    things = _things(_name(case))
    whole = whole and _is_right_in_all(case)
    if case.path_parameters and _is_right(case, "path"):
        case.path_parameters = {**case.path_parameters, **things["path"]}
    if _is_right(case, "query"):
        case.query = {**({} if whole else case.query or {}), **things["query"]}
    headers = dict(things["headers"])
    own = headers.pop("Authorization", "")
    if own and _SIGNED:
        kwargs["auth"] = _Bearer(own)
    if whole:
        _HOLDING.good = True
        case.headers.pop("If-Match", None)
        case.headers.pop("Idempotency-Key", None)
        case.headers.update(headers)
        if things["raw"] is not None:
            case.body = things["raw"].encode()
        elif things["body"] is not None:
            case.body, case.media_type = _named_anew(things["body"]), "application/json"


def _named_anew(body: Any) -> Any:
    """The body with names that nothing has yet."""
    if isinstance(body, dict):
        return {name: _named_anew(value) for name, value in body.items()}
    return {"fresh": f"fresh-{next(_numbers)}", "FRESH": f"FRESH_{next(_numbers)}"}.get(str(body), body)


def _end_streams(case: Any) -> None:
    """What would not end is not asked for."""
    if (case.query or {}).get("watch") == "true":
        case.query["watch"] = "false"
    declared = {each["name"] for each in case.operation.definition.raw.get("parameters", []) if each["in"] == "query"}
    if "timeout" in declared and _is_right(case, "query"):
        case.query["timeout"] = 0


def _name(case: Any) -> str:
    return str(case.operation.definition.raw["operationId"])


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count the answer; what an operation cannot be asked about twice is not used again."""
    name, worked = _name(case), response.status_code < 300
    good = getattr(_HOLDING, "good", False)
    with _lock:
        _counts[name][response.status_code] += 1
        if good and not worked:
            _once.add(name)
        if (good and not worked) or (worked and name in _once) or (worked and case.method.upper() == "DELETE"):
            _kept.pop(name, None)


@atexit.register
def _tell() -> None:
    _COUNTS.write_text(json.dumps(_counts))
