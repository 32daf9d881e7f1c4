"""Where the master key comes from: read as root, before the split, and handed to the platform in memory.

In this order: a file that the settings name, a systemd credential (`LoadCredential=`, `$CREDENTIALS_DIRECTORY`), the
environment. What the environment held is taken out of it, so that no child gets it; but the kernel still shows to root what
the process was started with, which is why the other two are better.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from shellwego.boot.preflight import PreflightError
from shellwego.boot.settings import UpSettings
from shellwego.core.envelope import KEY_BYTES
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.local import FileKms, GivenKms
from shellwego.drivers.kms.sigv4 import AwsCredentials
from shellwego.ports.kms import Kms

KEY_DIRECTORY, KEY_FILE = "keys", "master-keys.json"
CREDENTIALS = "CREDENTIALS_DIRECTORY"
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A KMS elsewhere, and what it knows us by."""

    kind: str
    url: str
    key: str
    region: str
    ca_file: Path | None
    credentials: Sensitive = field(repr=False)

    def open(self, now: Callable[[], float]) -> Kms:
        """Its driver, which asks nothing yet; raises `InvalidError`."""
        if self.kind == "vault":
            from shellwego.drivers.kms.vault import VaultKms  # noqa: PLC0415 - only where it is used

            return VaultKms(self.url, self.key, self.credentials, self.ca_file)
        from shellwego.drivers.kms.aws import AwsKms  # noqa: PLC0415

        credentials = _aws_credentials(self.credentials)
        return AwsKms(self.region, self.key, credentials, now, url=self.url, ca_file=self.ca_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsSource:
    """What the platform needs to reach its master key."""

    passphrase: Sensitive | None = field(default=None, repr=False)
    """Seals the key file."""
    keys: tuple[Sensitive, ...] = field(default=(), repr=False)
    """Given, and kept nowhere; the first is the current one."""

    remote: Remote | None = None

    def open(self, directory: Path, now: Callable[[], float]) -> Kms:
        """The keeper of the master key; `directory` is the platform's own, for the key file, and `now` the wall clock.

        Raises:
            InvalidError: the keys, or what is said of the KMS, cannot be used.
        """
        if self.remote is not None:
            return self.remote.open(now)
        if self.keys:
            return GivenKms(self.keys)
        return FileKms.open(directory / KEY_FILE, self.passphrase)


def read_source(settings: UpSettings, environment: MutableMapping[str, str] = os.environ) -> KmsSource:
    """As the operator gave it; nothing given: an unsealed key file.

    Raises:
        PreflightError: a file cannot be read, others can read it, or what it holds is no key.
    """
    if settings.kms != "local":
        return KmsSource(remote=_remote(settings, environment))
    keys = _read("master-keys", settings.master_keys_file, environment)
    passphrase = _read("master-passphrase", settings.master_passphrase_file, environment)
    if keys is not None and passphrase is not None:
        raise _refused("master keys and a passphrase are both given", "Give one of the two.")
    return KmsSource(passphrase=passphrase, keys=() if keys is None else _parsed(keys))


def _remote(settings: UpSettings, environment: MutableMapping[str, str]) -> Remote:
    credentials = _read("kms-credentials", settings.kms_credentials_file, environment)
    if credentials is None:
        raise _refused(f"no credentials for the KMS ({settings.kms})", "Give kms_credentials_file; its mode is 0600.")
    if settings.kms == "aws":
        _aws_credentials(credentials)
    return Remote(
        kind=settings.kms,
        url=settings.kms_url,
        key=settings.kms_key,
        region=settings.kms_region,
        ca_file=settings.kms_ca_file,
        credentials=credentials,
    )


def _aws_credentials(given: Sensitive) -> AwsCredentials:
    """The profile `default` of a file as `aws configure` writes it; nothing of it is repeated."""
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
        raise _refused(
            "the AWS credentials are not as aws configure writes them", "Give a profile [default]."
        ) from None


def _read(name: str, path: Path | None, environment: MutableMapping[str, str]) -> Sensitive | None:
    given = environment.pop(f"SHELLWEGO_{name.upper().replace('-', '_')}", None)
    if path is not None:
        return _file(path)
    credentials = environment.get(CREDENTIALS)
    if credentials and (found := Path(credentials) / f"shellwego.{name}").exists():
        return _file(found)
    return Sensitive.of(given.strip()) if given and given.strip() else None


def _file(path: Path) -> Sensitive:
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise _refused(f"{path} can be read by others than its owner", f"chmod 600 {path}")
            content = stream.read(_MOST_BYTES).strip()
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}", "Mend the path or its mode.") from error
    if not content:
        raise _refused(f"{path} is empty", "Put the passphrase, or the keys, into it.")
    return Sensitive(content)


def _parsed(given: Sensitive) -> tuple[Sensitive, ...]:
    """Keys in base64, one a line or apart by commas; nothing of what is wrong is repeated."""
    keys = []
    for number, word in enumerate(given.reveal().replace(b",", b" ").split(), start=1):
        try:
            key = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise _refused(
                f"master key {number} is not {KEY_BYTES} bytes in base64", "Make one: head -c 32 /dev/urandom | base64"
            )
        keys.append(Sensitive(key))
    return tuple(keys)


def _refused(reason: str, resolution: str) -> PreflightError:
    return PreflightError("master-key", f"the master key cannot be had: {reason}", resolution=resolution)
