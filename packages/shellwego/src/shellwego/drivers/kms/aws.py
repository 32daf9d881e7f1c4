"""AWS KMS as keeper of the master key: a symmetric key, asked through its JSON API with signed requests.

A master key is named by its ARN, which `current` learns by asking for the key that the settings name: an alias that was
pointed to another key is a rotation, and data keys move to it. (AWS' own yearly rotation keeps the ARN and needs nothing of
us.) Keys are scheduled for deletion by whoever owns the account, never by the platform.

https://docs.aws.amazon.com/kms/latest/APIReference/
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shellwego.core.envelope import KEY_BYTES, Context, seal_broken
from shellwego.core.errors import InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.https import JsonClient, Reply, refused
from shellwego.drivers.kms.ring import unknown_key
from shellwego.drivers.kms.sigv4 import AwsCredentials, Place, sign
from shellwego.ports.kms import WrappedKey

_REGION = re.compile(r"[a-z0-9-]{1,40}")
_KEY = re.compile(r"[A-Za-z0-9:/_-]{1,2048}")
_BROKEN = ("InvalidCiphertextException", "IncorrectKeyException")
_UNKNOWN = ("NotFoundException", "InvalidArnException")


class AwsKms:
    """See `ports.kms.Kms`. `key` is a key's id, ARN or alias; `url` only where it is not AWS' own for the region; `now` is
    the wall clock, which AWS compares with its own.

    Raises:
        InvalidError: region, key or address cannot be.
    """

    def __init__(
        self,
        region: str,
        key: str,
        credentials: AwsCredentials,
        now: Callable[[], float],
        *,
        url: str = "",
        ca_file: Path | None = None,
    ) -> None:
        if not _REGION.fullmatch(region) or not _KEY.fullmatch(key):
            raise InvalidError(
                "bad-kms-key", "AWS KMS needs a region (kms_region) and a key's id, ARN or alias (kms_key)"
            )
        self._client = JsonClient(url or f"https://kms.{region}.amazonaws.com", ca_file)
        self._place = Place(region, "kms")
        self._key = key
        self._credentials = credentials
        self._now = now

    async def current(self) -> str:
        reply = await self._call("DescribeKey", {"KeyId": self._key})
        about = _answered(reply).get("KeyMetadata")
        arn = about.get("Arn") if isinstance(about, dict) else None
        if not isinstance(arn, str):
            raise refused(reply.status, "no ARN")
        return arn

    async def wrap(self, key: Sensitive, context: Context) -> WrappedKey:
        asked = {"KeyId": self._key, "Plaintext": _text(key.reveal()), "EncryptionContext": _bound(context)}
        reply = await self._call("Encrypt", asked)
        answer = _answered(reply)
        arn, blob = answer.get("KeyId"), _bytes(reply, "CiphertextBlob")
        if not isinstance(arn, str):
            raise refused(reply.status, "no ARN")
        return WrappedKey(arn, blob)

    async def unwrap(self, wrapped: WrappedKey, context: Context) -> Sensitive:
        if not wrapped.blob:
            raise seal_broken()
        asked = {
            "KeyId": wrapped.master_key,
            "CiphertextBlob": _text(wrapped.blob),
            "EncryptionContext": _bound(context),
        }
        reply = await self._call("Decrypt", asked)
        if _error(reply) in _BROKEN:
            raise seal_broken()
        if _error(reply) in _UNKNOWN:
            raise unknown_key(wrapped.master_key)
        key = _bytes(reply, "Plaintext")
        if len(key) != KEY_BYTES:
            raise seal_broken()
        return Sensitive(key)

    async def close(self) -> None:
        pass

    async def _call(self, operation: str, asked: Mapping[str, object]) -> Reply:
        body = json.dumps(asked).encode()
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "Host": self._client.netloc,
            "X-Amz-Target": f"TrentService.{operation}",
        }
        path = f"{self._client.path}/"
        signed = sign(self._credentials, self._place, self._now(), method="POST", path=path, headers=headers, body=body)
        return await self._client.send("POST", "/", body, signed)


def _error(reply: Reply) -> str:
    """The code of an error, which may come with its name space."""
    return "" if reply.status == 200 else str(reply.body.get("__type", "")).rpartition("#")[2][:80]


def _answered(reply: Reply) -> Mapping[str, Any]:
    if reply.status != 200:
        raise refused(reply.status, re.sub(r"[^A-Za-z]", "", _error(reply)))
    return reply.body


def _bytes(reply: Reply, name: str) -> bytes:
    try:
        return base64.b64decode(_answered(reply)[name], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise refused(reply.status, f"no {name}") from None


def _bound(context: Context) -> dict[str, str]:
    """AWS takes no empty value; one that is left out is authenticated as absent."""
    return {name: value for name, value in context.items() if value}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
