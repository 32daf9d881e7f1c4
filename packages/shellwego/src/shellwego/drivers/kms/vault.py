"""HashiCorp Vault's transit engine (and OpenBao's) as keeper of the master key.

A master key is named `vault:<mount>/<key>:v<n>`. Vault itself says in each ciphertext which version it is under, so the name
is checked against it. Retiring raises `min_decryption_version`: Vault then refuses that version and all before it, which is
why versions are retired oldest first.

https://developer.hashicorp.com/vault/api-docs/secret/transit
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shellwego.core.envelope import KEY_BYTES, Context, associated_data, seal_broken
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.https import JsonClient, Reply, refused
from shellwego.drivers.kms.ring import unknown_key
from shellwego.ports.kms import WrappedKey

_KEY = re.compile(r"([A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*)/([A-Za-z0-9_.-]+)")
_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]+")
_NO_SUCH_VERSION = ("too old", "too new", "not found")
"""In Vault's words for a version, or a key, that it has not (any more)."""


class VaultKms:
    """See `ports.kms.RotatingKms`. The key is of a type with associated data: `aes256-gcm96` or `chacha20-poly1305`.

    Raises:
        InvalidError: `key` is not `<mount>/<key>`, or the address is not one.
    """

    def __init__(self, url: str, key: str, token: Sensitive, ca_file: Path | None = None) -> None:
        parts = _KEY.fullmatch(key)
        if parts is None:
            raise InvalidError("bad-kms-key", "a key of Vault's transit engine is named <mount>/<key> (kms_key)")
        self._mount, self._key = parts[1], parts[2]
        self._client = JsonClient(url, ca_file)
        self._token = token

    async def current(self) -> str:
        return self._name((await self._about())["latest_version"])

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        data = await self._ask("encrypt", {"plaintext": _text(key.reveal()), "associated_data": _bound(context)})
        ciphertext = str(data.get("ciphertext"))
        match = _CIPHERTEXT.fullmatch(ciphertext)
        if match is None:
            raise refused(200, "no ciphertext")
        return WrappedKey(self._name(int(match[1])), ciphertext.encode())

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        try:
            match = _CIPHERTEXT.fullmatch(wrapped.blob.decode("ascii"))
        except UnicodeDecodeError:
            match = None
        if not self._is_ours(wrapped.master_key):
            raise unknown_key(wrapped.master_key)
        if match is None or wrapped.master_key != self._name(int(match[1])):
            raise seal_broken()
        reply = await self._send("decrypt", {"ciphertext": match[0], "associated_data": _bound(context)})
        if reply.status == 400:
            raise self._not_opened(reply, wrapped.master_key)
        try:
            key = base64.b64decode(_data(reply)["plaintext"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError):
            raise refused(reply.status, "no plaintext") from None
        if len(key) != KEY_BYTES:
            raise seal_broken()
        return Sensitive(key)

    async def rotate(self) -> str:
        reply = await self._call("POST", f"/keys/{self._key}/rotate", {})
        if reply.status not in (200, 204):
            raise refused(reply.status)
        return await self.current()

    async def retire(self, master_key: str) -> None:
        about = await self._about()
        number = self._number(master_key)
        if number >= about["latest_version"]:
            raise ConflictError("master-key-in-use", f"{master_key} is the current one", resolution="Rotate it first.")
        if number < about["min_decryption_version"]:
            return
        reply = await self._call("POST", f"/keys/{self._key}/config", {"min_decryption_version": number + 1})
        if reply.status not in (200, 204):
            raise refused(reply.status)

    async def close(self) -> None:
        pass

    async def _about(self) -> dict[str, int]:
        reply = await self._call("GET", f"/keys/{self._key}", None)
        data = _data(reply)
        numbers = {name: data.get(name) for name in ("latest_version", "min_decryption_version")}
        if not all(isinstance(number, int) for number in numbers.values()):
            raise refused(reply.status, "no versions")
        return {name: int(str(number)) for name, number in numbers.items()}

    async def _ask(self, verb: str, body: Mapping[str, object]) -> Mapping[str, Any]:
        return _data(await self._send(verb, body))

    async def _send(self, verb: str, body: Mapping[str, object]) -> Reply:
        return await self._call("POST", f"/{verb}/{self._key}", body)

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None) -> Reply:
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"X-Vault-Token": self._token.reveal_text(), "X-Vault-Request": "true"}
        return await self._client.send(method, f"/v1/{self._mount}{path}", content, headers)

    def _not_opened(self, reply: Reply, master_key: str) -> Exception:
        """A 400 of Vault is a wrong ciphertext or context, unless it says that it has not the version."""
        words = " ".join(str(error) for error in reply.body.get("errors") or ())
        return unknown_key(master_key) if any(each in words for each in _NO_SUCH_VERSION) else seal_broken()

    def _name(self, number: int) -> str:
        return f"vault:{self._mount}/{self._key}:v{number}"

    def _is_ours(self, name: str) -> bool:
        return name.startswith(f"vault:{self._mount}/{self._key}:v")

    def _number(self, name: str) -> int:
        number = name.rpartition(":v")[2]
        if not self._is_ours(name) or not number.isdecimal():
            raise unknown_key(name)
        return int(number)


def _data(reply: Reply) -> Mapping[str, Any]:
    data = reply.body.get("data")
    if reply.status != 200 or not isinstance(data, dict):
        raise refused(reply.status)
    return data


def _bound(context: Context) -> str:
    return _text(associated_data(context))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
