"""The configuration file of an installation: its table `[up]`, and those whose settings belong together.

A setting stands in one table only, so that nobody has to know which of two counts.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from shellwego.boot.databaseurl import exposed, has_password
from shellwego.core.errors import InvalidError

CONFIG_FILE = Path("/etc/shellwego/config.toml")
_OTHER_SETTINGS = {
    "bus": frozenset({"authority_file", "node_passes"}),
    "backups": frozenset({"url", "endpoint", "region", "credentials_file"}),
    "network": frozenset({"publish", "publish_on"}),
    "edge": frozenset({"connections_per_source", "connections_per_app", "balancers"}),
}
OTHER_TABLES = ("database", *_OTHER_SETTINGS)
"""Tables whose settings have the table's name before theirs."""


def config_file_values(path: Path = CONFIG_FILE) -> dict[str, object]:
    """What the configuration file sets: its table `[up]`, `[database]` (`url` or `url_file`), `[bus]` (`authority_file`,
    `node_passes`), `[backups]` (`url`, `endpoint`, `region`, `credentials_file`), `[network]` (`publish`, `publish_on`) and
    `[edge]` (`connections_per_source`, `connections_per_app`, `balancers`); empty where there is none.

    Raises:
        InvalidError: it cannot be read or parsed, or holds something beside those tables.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidError("invalid-config", f"{path} cannot be read: {reason}") from error
    values = values_of(path, text)
    if has_password(str(values.get("database_url", ""))) and path.stat().st_mode & 0o004:
        raise exposed(path)
    return values


def values_of(path: Path, text: str) -> dict[str, object]:
    """What a configuration file of this text sets, as `config_file_values`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError("invalid-config", f"{path}: {error}") from error
    unknown = sorted(set(document) - {"up", *OTHER_TABLES})
    if unknown:
        raise InvalidError(
            "unknown-setting",
            f"{path}: unknown: {', '.join(unknown)}",
            resolution="All settings stand in the table [up]; others in [database], [bus], [backups], [network] and [edge].",
        )
    values = {name.replace("-", "_"): value for name, value in _table(path, document, "up").items()}
    for table in OTHER_TABLES:
        misplaced = sorted(name for name in values if name.startswith(f"{table}_"))
        if misplaced:
            raise InvalidError("unknown-setting", f"{path}: {', '.join(misplaced)}: it stands in the table [{table}]")
    for table, known in _OTHER_SETTINGS.items():
        values |= _own_values(path, document, table, known)
    return values | _database_values(path, _table(path, document, "database"))


def _table(path: Path, document: dict[str, object], name: str) -> dict[str, object]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise InvalidError("invalid-config", f"{path}: [{name}] is not a table")
    return {str(key): value for key, value in table.items()}


def _database_values(path: Path, table: dict[str, object]) -> dict[str, object]:
    unknown = sorted(set(table) - {"url", "url_file"})
    if unknown:
        raise InvalidError("unknown-setting", f"{path}: unknown: database.{', database.'.join(unknown)}")
    url = table.get("url")
    if not isinstance(url, str | None):
        raise InvalidError("invalid-setting", f"{path}: database.url is not a text")
    return {f"database_{name}": value for name, value in table.items()}


def _own_values(path: Path, document: dict[str, object], name: str, known: frozenset[str]) -> dict[str, object]:
    """Of a table whose settings have its name before theirs."""
    table = _table(path, document, name)
    unknown = [f"{name}.{key}" for key in sorted(set(table) - known)]
    if unknown:
        raise InvalidError("unknown-setting", f"{path}: unknown: {', '.join(unknown)}")
    return {f"{name}_{key}": value for key, value in table.items()}
