"""The half of `swg doctor` that asks the platform of the current context, through its API like everybody else."""

from __future__ import annotations

import os
from pathlib import Path

from shellwego.boot.findings import Finding, fail, ok, told, warn
from shellwego.client.context import Context, ContextFile, ContextFileError, default_path, load, under
from shellwego.client.generated import Client, NodeView
from shellwego.client.pages import MOST, every
from shellwego.client.transport import ApiProblem, Unreachable


def check_platform(config: Path | None, name: str) -> list[Finding]:
    """All checks of the platform; those that a failed one makes pointless are left out."""
    path = config or default_path()
    try:
        known = load(path)
    except ContextFileError as error:
        return [fail("context", str(error), "Mend or remove that file, then: swg login")]
    context = _context(known, name)
    if context is None and name:
        return [fail("context", f"there is no context {name!r} in {path}", f"There are: {', '.join(known.contexts)}")]
    if context is None:
        return [warn("context", f"no platform is set up in {path}", "Start one here: swg up. Or reach one: swg login")]
    found = [_context_file(path, context)]
    try:
        with Client(context.api_url, context.token, ca_file=context.ca_file) as client:
            return [*found, *_ask(client)]
    except ValueError as error:
        return [*found, fail("api", str(error), "Mend the context: swg login")]


def _context(known: ContextFile, name: str) -> Context | None:
    """As for every command."""
    chosen = known.get(name)
    return None if name and chosen is None else under(os.environ, chosen)


def _context_file(path: Path, context: Context) -> Finding:
    if path.exists() and path.stat().st_mode & 0o077:
        return warn("context", f"{path} holds tokens, and others can read it", f"chmod 600 {path}")
    return ok("context", f"{context.name} → {context.api_url}")


def _ask(client: Client) -> list[Finding]:
    try:
        version = client.version()
    except (Unreachable, ApiProblem) as error:
        return [fail("api", str(error), "Is the platform up? On its machine: swg up")]
    found = [ok("api", f"version {version.version} answers")]
    try:
        user = client.get_user()
    except (Unreachable, ApiProblem) as error:
        return [*found, fail("token", str(error), "Get a new token, then: swg login")]
    found.append(ok("token", f"it is {user.email or user.name}'s"))
    try:
        nodes = every(lambda cursor: client.list_nodes(limit=MOST, cursor=cursor))
    except ApiProblem as error:
        return [*found, warn("nodes", f"cannot be seen with this token: {error}")]
    except Unreachable as error:
        return [*found, fail("nodes", str(error))]
    if not nodes:
        return [*found, fail("nodes", "none has registered", "See the log of swg up.")]
    return [*found, *(finding for node in nodes for finding in _node(node))]


def _node(node: NodeView) -> list[Finding]:
    """A node's health, its backends, and what it says of itself."""
    check = f"node {node.name}"
    found = []
    if node.health == "ready":
        found.append(ok(check, f"ready, {node.scheduling}, {node.instances} instances, bounded by {node.confinement}"))
    else:
        found.append(
            fail(check, f"{node.health}; last heard {node.last_heard_at:%Y-%m-%d %H:%M:%S} UTC", "See its log.")
        )
    if node.scheduling != "open":
        found.append(warn(check, f"{node.scheduling}: it takes no new instances"))
    usable = [backend for backend in node.backends if backend.status in ("ready", "probing")]
    if not usable:
        reasons = "; ".join(f"{backend.name}: {backend.reason}" for backend in node.backends) or "it has none"
        found.append(fail(check, f"no backend can run VMs: {reasons}", "On that machine: swg doctor"))
    return [*found, *(warn(check, *told(warning)) for warning in node.warnings)]
