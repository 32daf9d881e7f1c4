"""What to do about a problem of the API, by commands: its own remedy is for everybody, and not every problem has one."""

from __future__ import annotations

_SIGN_IN_REFUSED = "sign-in-refused"
_LOG_IN = "Sign in again: swg login --url URL"
_WHICH_PROJECT = "swg projects ls shows them. Say which: -p PROJECT, with -o ORG where several have one of that name."
_INSTEAD = {
    "project-needed": _WHICH_PROJECT,
    "project-ambiguous": _WHICH_PROJECT,
    "scope-needed": "Say which: -p PROJECT, or -o ORG.",
}
"""In place of remedies that speak of requests."""
LISTED_BY = {
    "app": "apps ls",
    "backup": "volumes backups ls VOLUME",
    "delivery": "webhooks deliveries WEBHOOK",
    "deployment": "deployments ls",
    "grant": "grants ls",
    "group": "groups ls",
    "image": "images ls",
    "instance": "vms ls",
    "invitation": "invitations ls",
    "member": "members ls",
    "node": "nodes ls",
    "organization": "orgs ls",
    "port": "ports ls",
    "project": "projects ls",
    "release": "releases ls",
    "role": "roles ls",
    "run": "vms ls",
    "secret": "secrets ls",
    "service-account": "service-accounts ls",
    "snapshot": "volumes snapshots ls VOLUME",
    "user": "users ls",
    "volume": "volumes ls",
    "webhook": "webhooks ls",
}
"""The command that shows those there are, by what is not there."""


def remedy(status: int, code: str, told: str) -> str:
    """What to do about the problem `code`, whose own remedy is `told`; empty: nobody knows."""
    if status == 401 and code != _SIGN_IN_REFUSED:
        return _LOG_IN
    if code in _INSTEAD:
        return _INSTEAD[code]
    return told or _where_absent(code)


def _where_absent(code: str) -> str:
    kind = code.removesuffix("-not-found")
    if kind == code or kind not in LISTED_BY:
        return ""
    shown = f"swg {LISTED_BY[kind]} shows those there are"
    return f"{shown}; swg apps create NAME makes one." if kind == "app" else f"{shown}."
