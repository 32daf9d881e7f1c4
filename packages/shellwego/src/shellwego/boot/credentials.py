"""The first administrator's token, and the contexts that carry it.

The token is made while the process is still root, kept in the data directory (root's, 0600) and written into the caller's
own context file, as the caller's user. The platform learns it once and stores its hash only. Nothing secret is printed.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shellwego.boot.preflight import Installation, PreflightError, read_own
from shellwego.boot.settings import UpSettings
from shellwego.client.context import Context, ContextFileError, default_path, load, save
from shellwego.drivers.files import replace_file

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKEN_FILE = "admin-token"  # noqa: S105 - a file's name
LOCAL = "local"
"""The context of the platform that was started last on this machine."""
_OF_AN_INSTALLATION = re.compile(r"local-[a-z2-7]{6}")
_TOKEN = re.compile(r"pat_[0-9A-Za-z]{43}")


def admin_token(installation: Installation) -> str:
    """The administrator's token of this installation, made at its first start."""
    path = installation.data_dir / TOKEN_FILE
    try:
        return read_own(path, (0,), _TOKEN)
    except FileNotFoundError:
        return _make(path)


def _make(path: Path) -> str:
    token = "pat_" + "".join(secrets.choice(_BASE62) for _ in range(43))
    replace_file(path, f"{token}\n".encode())
    return token


def write_contexts(settings: UpSettings, installation: Installation, token: str) -> str:
    """Write context `local` and one named by the installation into the caller's file; returns the latter's name.

    With `sudo` the caller is the user behind it: the file is written with his identity, so that nothing in his home can
    lead root astray.

    Raises:
        PreflightError: the file cannot be written.
    """
    name = f"{LOCAL}-{installation.key[:6]}"
    try:
        with _as_caller() as path:
            _write(path, settings, name, token)
    except (OSError, ContextFileError) as error:
        raise PreflightError(
            "no-context", f"the command line's context could not be written: {error}", resolution="Mend that file."
        ) from error
    return name


@contextmanager
def _as_caller() -> Iterator[Path]:
    """Act as the user behind `sudo`, within; gives the path of his context file."""
    text = os.environ.get("SUDO_UID", "") or "0"
    if text == "0":
        yield default_path()
        return
    try:
        uid = int(text)
        entry = pwd.getpwuid(uid)
    except (ValueError, KeyError, OverflowError):
        raise PreflightError(
            "no-caller",
            f"SUDO_UID is {text!r:.40}, and there is no such user",
            resolution="Run it without: env -u SUDO_UID",
        ) from None
    groups = os.getgroups()
    os.setgroups([entry.pw_gid])
    os.setegid(entry.pw_gid)
    os.seteuid(uid)
    try:
        yield default_path({"HOME": entry.pw_dir})
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _write(path: Path, settings: UpSettings, name: str, token: str) -> None:
    ca_file = str(settings.api_cert.absolute()) if settings.api_cert else ""
    contexts = load(path)
    for known in contexts.contexts.values():
        if _OF_AN_INSTALLATION.fullmatch(known.name) and known.api_url == settings.api_url:
            contexts = contexts.without(known.name)  # of a platform that is no longer there: the address is ours now
    for each in (LOCAL, name):
        context = Context(name=each, api_url=settings.api_url, token=token, ca_file=ca_file)
        contexts = contexts.put(context, make_current=False)
    save(path, contexts)
