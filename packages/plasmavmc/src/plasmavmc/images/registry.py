"""Pulling from an OCI registry (OCI distribution-spec, "Pull"; Docker Registry HTTP API V2). Read only.

Everything that comes is checked: manifests here, blobs by their reader. A blob whose connection breaks goes on from
where it broke; a registry that ignores ranges has the beginning skipped. Only tries without progress are counted, and a
blob has a lowest pace, so neither a bad line nor a registry that trickles can hold a pull for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType

import aiohttp
from yarl import URL

from plasmavmc.deadlines import within
from plasmavmc.errors import ImageError, PlasmaError, UnavailableError
from plasmavmc.host.lookups import lookup
from plasmavmc.images.auth import Challenge, Credentials, parse_challenge, parse_token, token_url
from plasmavmc.images.digests import check_digest
from plasmavmc.images.limits import CONFIG_BYTES, MANIFEST_BYTES, TOKEN_BYTES
from plasmavmc.images.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Platform,
    choose,
    is_index,
    parse_document,
    parse_index,
    parse_manifest,
)
from plasmavmc.images.policy import RegistryPolicy, place
from plasmavmc.images.reference import Reference
from plasmavmc.images.source import BlobRef, Manifest
from plasmavmc.images.transport import Lookup, Transport, unreachable
from plasmavmc.types import MIB

_ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))
_CHUNK = MIB // 4
_TRIES = 5
_SLOWEST = 16 * 1024
"""Bytes per second."""
_SMALL_BODY_S = 30.0
_NESTING = 2
_OK, _PARTIAL, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 200, 206, 401, 403, 404, 429


class Repository:
    """One repository of one registry: a `BlobSource`. An async context manager, for it holds connections."""

    def __init__(
        self,
        reference: Reference,
        policy: RegistryPolicy,
        credentials: Credentials | None = None,
        *,
        lookup: Lookup = lookup,
        pause_s: float = 0.2,
        patience_s: float = 60.0,
    ) -> None:
        """`pause_s` is the first pause before a broken blob is asked for again; each one without progress doubles it.

        After `patience_s` a blob must have come at the lowest pace, or it is given up.
        """
        self._reference = reference
        self._credentials = credentials
        self._transport = Transport(policy, reference.host, lookup)
        self._pause_s = pause_s
        self._patience_s = patience_s
        self._authorization = ""
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Repository:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def resolve(self, platform: Platform) -> Manifest:
        """The manifest that the reference means now on `platform`, through indexes.

        Raises:
            ImageError: `image-not-found`, `registry-unauthorized`, `registry-forbidden`, `registry-protocol`,
                `digest-mismatch`, `image-platform`, `image-schema`, `image-document`.
            UnavailableError: `registry-unreachable`, `registry-busy`.
        """
        raw = await self._manifest(self._reference.selector)
        for _ in range(_NESTING):
            if not is_index(parse_document(raw)):
                break
            raw = await self._manifest(choose(parse_index(raw), platform).digest)
        return parse_manifest(raw)

    async def manifest(self, digest: str) -> bytes:
        return await self._manifest(digest)

    async def config(self, manifest: Manifest) -> bytes:
        """The raw configuration of an image; raises as `resolve`."""
        url = self._url("blobs", manifest.config.digest)
        async with self._get(url, {}) as response:
            body = await _read(response, CONFIG_BYTES)
        return check_digest(body, manifest.config.digest, "the image configuration")

    async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        position, failures, begun = offset, 0, time.monotonic()
        while position < ref.size:
            before = position
            try:
                async with aclosing(self._range(ref, position)) as chunks:
                    async for chunk in chunks:
                        position += len(chunk)
                        self._check_pace(position - offset, time.monotonic() - begun)
                        yield chunk
                if position < ref.size:
                    raise unreachable(self._transport.base, "it closed the connection in the middle of a blob")
            except UnavailableError:
                failures = failures + 1 if position == before else 0
                if failures >= _TRIES or self._is_slow(position - offset, time.monotonic() - begun):
                    raise
                await asyncio.sleep(self._pause_s * 2**failures)

    # Requests

    async def _manifest(self, selector: str) -> bytes:
        async with self._get(self._url("manifests", selector), {"Accept": _ACCEPT}) as response:
            raw = await _read(response, MANIFEST_BYTES)
            promised = response.headers.get("Docker-Content-Digest", "")
        expected = selector if selector.startswith("sha256:") else promised
        return check_digest(raw, expected, "the manifest") if expected.startswith("sha256:") else raw

    async def _range(self, ref: BlobRef, position: int) -> AsyncGenerator[bytes, None]:
        """The blob from `position` on, over one connection."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        async with self._get(self._url("blobs", ref.digest), headers) as response:
            skip = position
            if response.status == _PARTIAL:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {position}-"):
                    raise ImageError("registry-protocol", f"{self._where} answers another range than it was asked for")
                skip = 0
            async for chunk in response.content.iter_chunked(_CHUNK):
                if rest := chunk[skip:]:
                    yield rest
                skip = max(0, skip - len(chunk))

    @asynccontextmanager
    async def _get(self, url: URL, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful response; asks for a token where the registry itself wants one. Where it redirects to has no say:
        our login goes to the place that a challenge names."""
        used = self._authorization
        async with self._transport.get(url, _with(headers, used)) as response:
            if response.status != _UNAUTHORIZED:
                yield self._successful(response)
                return
            own = response.url.origin() == self._transport.base.origin()
            challenge = parse_challenge(response.headers.get("WWW-Authenticate", "")) if own else None
        await self._authorize(challenge, used)
        async with self._transport.get(url, _with(headers, self._authorization)) as response:
            yield self._successful(response)

    def _successful(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        if response.status in (_OK, _PARTIAL):
            return response
        raise self._refusal(response.status)

    def _refusal(self, status: int) -> PlasmaError:
        match status:
            case 404:
                return ImageError("image-not-found", f"there is no image {self._reference}")
            case 401 | 403:
                return ImageError(
                    "registry-unauthorized",
                    f"{self._where} does not let us pull {self._reference}",
                    resolution="check that the image exists, and give credentials for this registry if it is private",
                )
            case 429:
                return UnavailableError("registry-busy", f"{self._where} asks us to come back later")
            case _ if status >= 500:
                return UnavailableError("registry-unreachable", f"{self._where} answers with status {status}")
            case _:
                return ImageError("registry-protocol", f"{self._where} answers with status {status}")

    # Authorization

    async def _authorize(self, challenge: Challenge | None, used: str) -> None:
        """Get an Authorization header in place of the one that was refused; concurrent requests share it."""
        async with self._asking:
            if self._authorization != used:
                return
            if challenge is None:
                raise self._refusal(_UNAUTHORIZED)
            if challenge.scheme == "bearer":
                self._authorization = await self._token(challenge)
            elif self._credentials is not None:
                self._authorization = self._credentials.header

    async def _token(self, challenge: Challenge) -> str:
        url = token_url(challenge, self._reference.repository)
        headers = _with({}, self._credentials.header if self._credentials else "")
        async with self._transport.get(url, headers) as response:
            if response.status != _OK:
                raise self._refusal(response.status if response.status >= _TOO_MANY else _UNAUTHORIZED)
            return parse_token(await _read(response, TOKEN_BYTES))

    # Small parts

    @property
    def _where(self) -> str:
        return f"the registry at {place(self._transport.base)}"

    def _url(self, kind: str, selector: str) -> URL:
        """A URL of the API. All parts are from allow-lists (`reference.py`, digests), so nothing needs quoting."""
        return self._transport.base.with_path(f"/v2/{self._reference.repository}/{kind}/{selector}")

    def _is_slow(self, count: int, elapsed_s: float) -> bool:
        return elapsed_s > self._patience_s + count / _SLOWEST

    def _check_pace(self, count: int, elapsed_s: float) -> None:
        if self._is_slow(count, elapsed_s):
            raise UnavailableError("registry-slow", f"{self._where} sends less than {_SLOWEST} bytes per second")


def _with(headers: Mapping[str, str], authorization: str) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """A small body, whole. Raises `ImageError`: `image-too-large`; `TimeoutError`."""
    body = bytearray()
    async with within(_SMALL_BODY_S):
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > limit:
                raise ImageError("image-too-large", f"an answer of the registry has more than {limit} bytes")
    return bytes(body)
