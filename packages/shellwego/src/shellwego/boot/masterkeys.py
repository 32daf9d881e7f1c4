"""Where the master key comes from: read as root, before the split, and handed to the platform in memory.

In this order: a file that the settings name, a systemd credential (`LoadCredential=`, `$CREDENTIALS_DIRECTORY`), the
environment. What the environment held is taken out of it, so that no child gets it; but the kernel still shows to root what
the process was started with, which is why the other two are better.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from shellwego.boot.preflight import PreflightError
from shellwego.boot.settings import UpSettings
from shellwego.core.envelope import KEY_BYTES
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.local import FileKms, GivenKms
from shellwego.ports.kms import Kms

KEY_DIRECTORY, KEY_FILE = "keys", "master-keys.json"
CREDENTIALS = "CREDENTIALS_DIRECTORY"
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsSource:
    """What the platform needs to reach its master key."""

    passphrase: Sensitive | None = field(default=None, repr=False)
    """Seals the key file."""
    keys: tuple[Sensitive, ...] = field(default=(), repr=False)
    """Given, and kept nowhere; the first is the current one."""

    def open(self, directory: Path) -> Kms:
        """The keeper of the master key; `directory` is the platform's own, for the key file.

        Raises:
            InvalidError: the keys cannot be used.
        """
        if self.keys:
            return GivenKms(self.keys)
        return FileKms.open(directory / KEY_FILE, self.passphrase)


def read_source(settings: UpSettings, environment: MutableMapping[str, str] = os.environ) -> KmsSource:
    """As the operator gave it; nothing given: an unsealed key file.

    Raises:
        PreflightError: a file cannot be read, others can read it, or what it holds is no key.
    """
    keys = _read("master-keys", settings.master_keys_file, environment)
    passphrase = _read("master-passphrase", settings.master_passphrase_file, environment)
    if keys is not None and passphrase is not None:
        raise _refused("master keys and a passphrase are both given", "Give one of the two.")
    return KmsSource(passphrase=passphrase, keys=() if keys is None else _parsed(keys))


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
