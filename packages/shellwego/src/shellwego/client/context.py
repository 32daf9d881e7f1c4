"""Contexts: which platform the command line talks to, and with which token.

The file `~/.config/shellwego/config.toml` (0600) holds named contexts and the name of the current one. It is written
whole and swapped in, so that a reader never sees half of it.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from shellwego.client.text import why_not_read


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    name: str
    api_url: str
    token: str = ""
    project: str = ""
    ca_file: str = ""
    """Certificate authority of the API, where it is not a public one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """All contexts, and which is used when none is named."""

    current: str = ""
    contexts: Mapping[str, Context] = field(default_factory=dict)

    def get(self, name: str = "") -> Context | None:
        """The named context, or the current one."""
        return self.contexts.get(name or self.current)

    def put(self, context: Context, *, make_current: bool) -> ContextFile:
        """A file with this context added or replaced."""
        contexts = {**self.contexts, context.name: context}
        return replace(self, contexts=contexts, current=context.name if make_current else self.current or context.name)

    def without(self, name: str) -> ContextFile:
        """A file without this context."""
        contexts = {key: value for key, value in self.contexts.items() if key != name}
        return replace(self, contexts=contexts, current="" if self.current == name else self.current)


def under(environment: Mapping[str, str], chosen: Context | None) -> Context | None:
    """How to reach the platform: what the environment says (`SHELLWEGO_API_URL`, `SHELLWEGO_TOKEN`) goes before the chosen
    context.

    Where the environment names another platform than the context, nothing of the context is taken: its token must not be
    shown to whoever answers under that URL. Returns None where nothing says how.
    """
    url, token = (environment.get(name, "").strip() for name in ("SHELLWEGO_API_URL", "SHELLWEGO_TOKEN"))
    if url and (chosen is None or url.rstrip("/") != chosen.api_url.rstrip("/")):
        return Context(name="environment", api_url=url, token=token)
    return chosen and replace(chosen, token=token or chosen.token)


class ContextFileError(ValueError):
    """The file cannot be read or makes no sense; the message names it."""


def default_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where the file lies for this user (XDG base directory specification)."""
    environment = os.environ if environment is None else environment
    base = environment.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environment.get("HOME", "/")) / ".config"
    return home / "shellwego" / "config.toml"


def load(path: Path) -> ContextFile:
    """Read the file; one that does not exist holds nothing.

    Raises:
        ContextFileError: it cannot be read or parsed.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return ContextFile()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ContextFileError(f"{path}: {why_not_read(error)}") from error
    contexts = table.get("contexts", {})
    if not isinstance(contexts, dict):
        raise ContextFileError(f"{path}: [contexts] is not a table")
    return ContextFile(
        current=str(table.get("current", "")),
        contexts={name: _context(path, name, values) for name, values in contexts.items()},
    )


def _context(path: Path, name: str, values: object) -> Context:
    if not isinstance(values, dict) or not isinstance(values.get("api_url"), str):
        raise ContextFileError(f"{path}: context {name!r} has no api_url")
    texts = {key: str(values.get(key, "")) for key in ("token", "project", "ca_file")}
    return Context(name=name, api_url=values["api_url"], **texts)


def save(path: Path, contexts: ContextFile) -> None:
    """Write the file, readable by its owner only."""
    import tomli_w  # noqa: PLC0415 - writing is rare, starting is not

    table = {
        "current": contexts.current,
        "contexts": {
            context.name: {
                key: value
                for key, value in (
                    ("api_url", context.api_url),
                    ("token", context.token),
                    ("project", context.project),
                    ("ca_file", context.ca_file),
                )
                if value
            }
            for context in contexts.contexts.values()
        },
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as fresh:
        os.fchmod(fresh.fileno(), 0o600)
        tomli_w.dump(table, fresh)
    Path(fresh.name).replace(path)
