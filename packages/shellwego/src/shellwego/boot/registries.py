"""Logins for image registries, from a file in the form that `docker login` and `skopeo login` write.

It is read by root before the split, so that only root need be able to read it; the platform holds it in memory alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shellwego.boot.preflight import PreflightError

DEFAULT = Path("/etc/shellwego/registries.json")


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and password for one registry. Never shown."""

    username: str
    password: str = field(repr=False)


def read_logins(given: Path | None) -> dict[str, Login]:
    """Registry host → login. Without a path the default file is read, if there is one.

    Raises:
        PreflightError: the file cannot be read, is open to others, or makes no sense; what it holds is never told.
    """
    path = given or DEFAULT
    if given is None and not path.exists():
        return {}
    try:
        if path.stat().st_mode & 0o077:
            raise _refused(path, "it can be read by others than its owner", f"chmod 600 {path}")
        document = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, str(error), "Mend it, or leave --registry-auth out.") from error
    except json.JSONDecodeError:
        raise _refused(path, "it is no JSON", "Write it with: skopeo login --authfile FILE HOST") from None
    auths = document.get("auths", {}) if isinstance(document, dict) else None
    if not isinstance(auths, dict):
        raise _refused(path, "it has no table “auths”", "Write it with: skopeo login --authfile FILE HOST")
    return {host.removeprefix("https://").split("/")[0]: _login(path, host, entry) for host, entry in auths.items()}


def _login(path: Path, host: str, entry: object) -> Login:
    fields: Mapping[object, object] = entry if isinstance(entry, dict) else {}
    username, password, packed = fields.get("username"), fields.get("password"), fields.get("auth")
    if isinstance(username, str) and isinstance(password, str):
        return Login(username, password)
    if isinstance(packed, str):
        try:
            name, colon, secret = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        else:
            if colon:
                return Login(name, secret)
    raise _refused(path, f"the login for {host!r} is neither “auth” nor “username” and “password”", "Log in again.")


def _refused(path: Path, reason: str, resolution: str) -> PreflightError:
    return PreflightError(
        "registry-auth", f"the registry logins in {path} cannot be used: {reason}", resolution=resolution
    )
