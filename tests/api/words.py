"""Words that are commands, paths, rules and templates: where a request may have them, and who is told of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from typing import Any

MARK = "h0st1lew0rds"
TRICKS = (
    f"$(touch /tmp/{MARK}) `touch /tmp/{MARK}`; rm -rf /{MARK} #",
    f"' || touch /tmp/{MARK} || ' \" && touch /tmp/{MARK} && \"",
    f"../../../../tmp/{MARK}",
    f"--{MARK}=/etc/shadow",
    f"{MARK}\r\nX-Injected: {MARK}\n[critical] {MARK}",
    f'"; }} drop ruleset; table inet {MARK} {{ "',
    f"{{{{7*7}}}} {{{{ {MARK} }}}} ${{{MARK}}} %({MARK})s %s%n {{0.__class__}} <% {MARK} %>",
    f"\x1b[31m{MARK}\x1b]0;{MARK}\x07",
    f"\u202e{MARK}\u2066\u200b",
)
TEXT = " ".join(TRICKS)
BRIEF = f"$(x) `x`; ../ {{{{7*7}}}} %s ' \" \x1b[1m \u202e\r\n{MARK}"
"""Some of each, short enough for any name."""
CLIMBING = f"../../{MARK}"
_CONFIG: Mapping[str, Any] = {
    "processes": {
        "web": {
            **{"command": ["true"], "entrypoint": ["true"], "env": {"A": "b"}, "restart": {"policy": "always"}},
            **{"memory": "256m", "cpu": "1", "disk": "1gb", "stop_signal": "SIGTERM"},
        }
    },
    "remove_processes": ["old"],
    "services": [{"process": "web", "port": 80}],
    "checks": [{"type": "http", "path": "/x", "process": "web", "port": 80}, {"type": "exec", "command": ["true"]}],
    "mounts": [{"source": "data", "destination": "/data", "process": "web"}],
    "release_command": ["true"],
}
_PLACED: Mapping[str, Any] = {
    **_CONFIG,
    "placement": {
        "region": "eu",
        "zone": "a",
        "require": {"disk": "ssd"},
        "tolerate": {"gpu": "yes"},
        "spread": "zone",
    },
}
_ENV: Mapping[str, Any] = {"A": "b", "S": {"secret": "DB_URL", "version": "latest"}}
_OPENED = [{"source": "project", "protocol": "tcp", "ports": "80"}]
_REACHED = [{"network": "203.0.113.0/24", "protocol": "tcp", "ports": "80"}]
_WHOLE: Mapping[str, Mapping[str, Any]] = {
    "create_app": {"config": _PLACED, "env": _ENV, "counts": {"web": 1}},
    "update_app": {"config": _PLACED},
    "scale_app": {"sizes": {"web": {"memory": "256m", "cpu": "1", "disk": "1gb"}}},
    "change_env": {"env": _ENV},
    "create_deployment": {
        "config": {key: each for key, each in _CONFIG.items() if key not in ("checks", "mounts")},
        "env": _ENV,
    },
    "create_join_token": {"labels": {"a": "b"}},
    "create_secret": {"metadata": {"a": "b"}},
    "create_token": {"scopes": ["apps:read"]},
    "create_group": {"allow": _OPENED},
    "change_group": {"allow": _OPENED, "deny": _OPENED},
    "change_egress": {"allow": _REACHED, "deny": _REACHED},
}
"""What the usual request to an operation leaves out and has words in it, below the first level."""
Path = tuple[str | int, ...]


def whole(operation: str, body: object) -> dict[str, Any]:
    """A body of this operation with words wherever there may be some below its first level."""
    return {**(body if isinstance(body, dict) else {}), **deepcopy(dict(_WHOLE.get(operation, {})))}


def places(body: object, fields: Mapping[str, Any]) -> list[Path]:
    """Where words are in a body, and the fields of the first level that take some."""
    first = [(name, 0) if "array" in schema else (name,) for name, schema in _takers(fields) if name not in _keys(body)]
    return [*_words(body), *first]


def put(body: Mapping[str, Any], place: Path, words: str) -> dict[str, Any]:
    """The body with these words there."""
    made = deepcopy(dict(body))
    at: Any = made
    for step, following in pairwise(place):
        at = at.setdefault(step, [""] if following == 0 else {}) if isinstance(at, dict) else at[step]
    at[place[-1]] = words
    return made


def _takers(fields: Mapping[str, Any]) -> Iterator[tuple[str, frozenset[str]]]:
    for name, schema in fields.items():
        choices = [schema, *schema.get("anyOf", ())]
        types = frozenset(str(each.get("type", "")) for each in choices)
        items = {str(each.get("items", {}).get("type", "")) for each in choices}
        if "string" in types or "string" in items:
            yield name, types


def _keys(body: object) -> frozenset[str]:
    return frozenset(body) if isinstance(body, dict) else frozenset()


def _words(value: object, at: Path = ()) -> Iterator[Path]:
    if isinstance(value, str):
        yield at
    elif isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _words(each, (*at, key))


_hearers: list[list[str]] = []
_hooked: list[bool] = []
"""A hook stays for the life of its process, so there is one."""


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _hearers and event.startswith(("open", "os.", "subprocess.", "pty.")) and MARK in repr(arguments):
        _hearers[-1].append(f"{event} {arguments!r}"[:300])


@contextmanager
def listening() -> Iterator[list[str]]:
    """What this process asks of the system meanwhile with the words in it: processes, files, directories, variables."""
    if not _hooked:
        sys.addaudithook(_hear)
        _hooked.append(True)
    _hearers.append([])
    try:
        yield _hearers[-1]
    finally:
        _hearers.pop()
