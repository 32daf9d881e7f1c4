"""Where the platform's database is: named by its URL or by a file that holds that, and its password shown to nobody.

Read while the process is still root, whose helper keeps what is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from shellwego.boot.settings import UpSettings
from shellwego.core.errors import InvalidError

_MAX_URL_BYTES = 4096
_DATABASE = ("database_url", "database_url_file")


def read_url(settings: UpSettings) -> str:
    """The URL of PostgreSQL, from the settings or from the file that they name; empty: SQLite.

    Raises:
        InvalidError: the file cannot be read, holds no URL, or shows a password to everybody.
    """
    path = settings.database_url_file
    if path is None:
        return settings.database_url
    try:
        with path.open("rb") as file:
            url = file.read(_MAX_URL_BYTES).decode().strip()
            mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidError("no-database-url", f"--database-url-file {path}: {reason}") from error
    if not url:
        raise InvalidError("no-database-url", f"--database-url-file {path}: it is empty")
    if mode & 0o004 and has_password(url):
        raise exposed(path)
    return url


def has_password(url: str) -> bool:
    """Whether a URL holds one; what is no URL may."""
    try:
        return bool(urlsplit(url).password)
    except ValueError:
        return True


def exposed(path: Path) -> InvalidError:
    """A file with the database's password that everybody can read."""
    return InvalidError(
        "exposed-password",
        f"{path} holds the database's password, and everybody can read it",
        resolution=f"chmod 600 {path}",
    )


def one_database(*layers: Mapping[str, object]) -> dict[str, object]:
    """Settings of several layers, the strongest last: one that names the database in one way takes back the other way.

    Raises:
        InvalidError: one layer names it in both.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        ways = [name for name in _DATABASE if layer.get(name)]
        if len(ways) > 1:
            raise InvalidError("two-databases", "the database is named twice: by its URL, and by a file with its URL")
        if ways:
            merged = {name: value for name, value in merged.items() if name not in _DATABASE}
        merged.update(layer)
    return merged
