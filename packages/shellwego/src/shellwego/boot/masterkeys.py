"""Where the master key comes from (`givensecrets`), to be handed to the platform in memory."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from shellwego.boot.givensecrets import aws_profile, read_given
from shellwego.boot.preflight import PreflightError
from shellwego.boot.settings import UpSettings
from shellwego.core.envelope import KEY_BYTES
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.local import FileKms, GivenKms
from shellwego.ports.kms import Kms

KEY_DIRECTORY, KEY_FILE = "keys", "master-keys.json"


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

        credentials = aws_profile(self.credentials, _refused)
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
            PreflightError: the key file may not be read, or not be written.
        """
        return self._kept_elsewhere(now) or self._of_file(FileKms.open, directory / KEY_FILE)

    def open_existing(self, directory: Path, now: Callable[[], float]) -> Kms:
        """As `open`, for whoever works beside the platform: a key file is neither made nor changed; that there is
        none is refused."""
        return self._kept_elsewhere(now) or self._of_file(FileKms.existing, directory / KEY_FILE)

    def _kept_elsewhere(self, now: Callable[[], float]) -> Kms | None:
        if self.remote is not None:
            return self.remote.open(now)
        return GivenKms(self.keys) if self.keys else None

    def _of_file(self, opened: Callable[[Path, Sensitive | None], FileKms], path: Path) -> FileKms:
        try:
            return opened(path, self.passphrase)
        except PermissionError as error:
            raise _refused(
                f"{error.filename}: {error.strerror}", f"Give {path.parent}, and what is in it, to the platform's user."
            ) from error


def read_source(settings: UpSettings, environment: MutableMapping[str, str] = os.environ) -> KmsSource:
    """As the operator gave it; nothing given: an unsealed key file.

    Raises:
        PreflightError: a file cannot be read, others can read it, or what it holds is no key.
    """
    if settings.kms != "local":
        return KmsSource(remote=_remote(settings, environment))
    keys = read_given("master-keys", settings.master_keys_file, environment, _refused)
    passphrase = read_given("master-passphrase", settings.master_passphrase_file, environment, _refused)
    if keys is not None and passphrase is not None:
        raise _refused("master keys and a passphrase are both given", "Give one of the two.")
    return KmsSource(passphrase=passphrase, keys=() if keys is None else _parsed(keys))


def _remote(settings: UpSettings, environment: MutableMapping[str, str]) -> Remote:
    credentials = read_given("kms-credentials", settings.kms_credentials_file, environment, _refused)
    if credentials is None:
        raise _refused(f"no credentials for the KMS ({settings.kms})", "Give kms_credentials_file; its mode is 0600.")
    if settings.kms == "aws":
        aws_profile(credentials, _refused)
    return Remote(
        kind=settings.kms,
        url=settings.kms_url,
        key=settings.kms_key,
        region=settings.kms_region,
        ca_file=settings.kms_ca_file,
        credentials=credentials,
    )


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
