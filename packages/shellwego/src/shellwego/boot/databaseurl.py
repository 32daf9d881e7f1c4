"""Where the platform's database is, read while the process is still root, whose helper keeps what is imported here."""

from __future__ import annotations

from shellwego.boot.settings import UpSettings, exposed, has_password
from shellwego.core.errors import InvalidError

_MAX_URL_BYTES = 4096


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
