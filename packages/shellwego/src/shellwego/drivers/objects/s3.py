"""Driver `s3`: objects in a bucket of S3, or of what speaks as it does (MinIO, Ceph, Garage, R2).

Only the operator says where that is. It is reached over HTTPS; plain HTTP goes to this very host alone. Calls are repeated
by the library where another try may help, for so long altogether, and then are told to have failed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.objects.errors import no_object, unavailable
from shellwego.ports.objects import check_path, check_prefix

if TYPE_CHECKING:
    from obstore.store import S3Config

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
CREDENTIALS = frozenset({"access_key_id", "secret_access_key", "session_token"})
_CALL = timedelta(seconds=30)
_ALTOGETHER = timedelta(seconds=60)
_NO_BUCKET = "<Code>NoSuchBucket</Code>"
"""Then nothing is missing by itself."""
_HIDDEN = re.compile(r"(?i)(AWSAccessKeyId|Signature|Credential)[=:]\S+")


class S3Objects:
    """See `ports.objects.Objects`. `prefix` goes before every path.

    Raises:
        InvalidError: the bucket, the prefix, the endpoint, the region or the credentials cannot be.
    """

    def __init__(
        self, bucket: str, prefix: str, *, endpoint: str, region: str, credentials: Mapping[str, Sensitive]
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise InvalidError("bad-repository", f"{bucket[:80]!r} is no name of a bucket")
        if not _REGION.fullmatch(region or "us-east-1"):
            raise InvalidError("bad-repository", f"{region[:80]!r} is no region of S3")
        if not {"access_key_id", "secret_access_key"} <= credentials.keys() <= CREDENTIALS:
            raise InvalidError("bad-repository", "S3 takes an access_key_id and a secret_access_key")
        self._prefix = check_prefix(f"{prefix.strip('/')}/" if prefix.strip("/") else "")
        config: S3Config = {
            "region": region or "us-east-1",
            "virtual_hosted_style_request": False,
            "access_key_id": credentials["access_key_id"].reveal_text(),
            "secret_access_key": credentials["secret_access_key"].reveal_text(),
        }
        if endpoint:
            config["endpoint"] = endpoint
        if "session_token" in credentials:
            config["session_token"] = credentials["session_token"].reveal_text()
        self._store = S3Store(
            bucket,
            config=config,
            client_options={"allow_http": _is_plain(endpoint), "timeout": _CALL, "connect_timeout": _CALL},
            retry_config={"max_retries": 4, "retry_timeout": _ALTOGETHER},
        )

    async def put(self, path: str, data: bytes) -> None:
        place = self._prefix + check_path(path)
        try:
            await obstore.put_async(self._store, place, data, use_multipart=False)
        except (BaseError, FileNotFoundError) as error:
            raise _told("store an object", error) from None

    async def get(self, path: str) -> bytes:
        place = self._prefix + check_path(path)
        try:
            found = await obstore.get_async(self._store, place)
            return bytes(await found.bytes_async())
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise _told("read an object", error) from None
            raise no_object(path) from None
        except BaseError as error:
            raise _told("read an object", error) from None

    async def has(self, path: str) -> bool:
        place = self._prefix + check_path(path)
        try:
            await obstore.head_async(self._store, place)
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise _told("look for an object", error) from None
        return True

    async def delete(self, path: str) -> None:
        place = self._prefix + check_path(path)
        try:
            await obstore.delete_async(self._store, place)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise _told("remove an object", error) from None

    async def paths(self, prefix: str) -> AsyncIterator[str]:
        try:
            async for found in obstore.list(self._store, prefix=self._prefix + check_prefix(prefix)):
                for each in found:
                    yield each["path"].removeprefix(self._prefix)
        except (BaseError, FileNotFoundError) as error:
            raise _told("list objects", error) from None


def _is_plain(endpoint: str) -> bool:
    """Whether an endpoint is reached by plain HTTP, which this host alone may be."""
    parts = urlsplit(endpoint)
    if not endpoint or (parts.scheme == "https" and parts.hostname):
        return False
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return True
    raise InvalidError("bad-repository", f"{endpoint[:200]!r}: the endpoint of S3 is an https address")


def _told(doing: str, error: Exception) -> UnavailableError:
    """The first line of what the library says; it repeats requests, which name keys."""
    line = _HIDDEN.sub(r"\1=(hidden)", str(error).partition("\n")[0])
    return unavailable(doing, line[:300])
