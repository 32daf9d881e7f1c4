"""Secrets that an operator gives: by a file, as a systemd credential, or by the environment, in this order.

They are read as root, before it is left. What the environment held is taken out of it, so that no child gets it; but the
kernel still shows to root what the process was started with, which is why the other two are better. Nothing of what was
given is repeated in an error.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path

from shellwego.boot.preflight import PreflightError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.sigv4 import AwsCredentials

CREDENTIALS = "CREDENTIALS_DIRECTORY"
_MOST_BYTES = 64 * 1024

Refuse = Callable[[str, str], PreflightError]
"""Makes the error of a reason and a remedy."""


def read_given(
    name: str, path: Path | None, environment: MutableMapping[str, str], refused: Refuse
) -> Sensitive | None:
    """What was given under this name; None: nothing was."""
    given = environment.pop(f"SHELLWEGO_{name.upper().replace('-', '_')}", None)
    if path is not None:
        return _file(path, refused)
    credentials = environment.get(CREDENTIALS)
    if credentials and (found := Path(credentials) / f"shellwego.{name}").exists():
        return _file(found, refused)
    return Sensitive.of(given.strip()) if given and given.strip() else None


def aws_profile(given: Sensitive, refused: Refuse) -> AwsCredentials:
    """The profile `default` of a file as `aws configure` writes it."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(given.reveal_text())
        profile = parser["default"]
        token = profile.get("aws_session_token")
        return AwsCredentials(
            access_key=profile["aws_access_key_id"],
            secret_key=Sensitive.of(profile["aws_secret_access_key"]),
            session_token=Sensitive.of(token) if token else None,
        )
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise refused("the AWS credentials are not as aws configure writes them", "Give a profile [default].") from None


def _file(path: Path, refused: Refuse) -> Sensitive:
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise refused(f"{path} can be read by others than its owner", f"chmod 600 {path}")
            content = stream.read(_MOST_BYTES).strip()
    except OSError as error:
        raise refused(f"{path}: {error.strerror}", "Mend the path or its mode.") from error
    if not content:
        raise refused(f"{path} is empty", "Put into it what it is to hold.")
    return Sensitive(content)
