"""The registry client against a registry that breaks, lies, redirects and asks for tokens."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from plasmavmc.errors import ImageError, UnavailableError
from plasmavmc.images.auth import Credentials
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.limits import ImageLimits
from plasmavmc.images.manifest import Platform
from plasmavmc.images.policy import RegistryPolicy
from plasmavmc.images.pull import pull
from plasmavmc.images.reference import Reference
from plasmavmc.images.registry import Repository
from plasmavmc.images.source import BlobRef
from tests.contract.images_samples import Sample, descriptor, digest_of, entry, hello, image, layer

pytestmark = pytest.mark.real

AMD64 = Platform("linux", "amd64")
POLICY = RegistryPolicy(("127.0.0.1:*",))
NOISE = image(layer(entry("noise", os.urandom(1_500_000))), compress="none")
CREDENTIALS = Credentials("me", "hunter2")


class FakeRegistry:
    """A registry in this process; attributes say how it misbehaves."""

    def __init__(self, *samples: Sample) -> None:
        self.blobs = {digest: data for sample in samples for digest, data in sample.blobs.items()}
        self.tags: dict[str, bytes] = {"v1": samples[0].manifest} if samples else {}
        self.bytes_per_connection = 1 << 40
        self.ranges = True
        self.wrong_range = False
        self.refuse_blobs = 0
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.redirect: str | None = None
        self.challenge = ""
        self.tokens: set[str] = set()
        self.issue = "t0ken"
        self.seen: list[web.Request] = []
        self.host = ""

    @property
    def asked(self) -> list[str]:
        return [request.path.rpartition("/")[2][:10] for request in self.seen]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if request.path == "/token":
            return web.json_response({"token": self.issue})
        if self.challenge and request.headers.get("Authorization") not in self.tokens:
            return web.Response(status=401, headers={"WWW-Authenticate": self.challenge})
        if self.status is not None:
            return web.Response(status=self.status)
        kind, selector = request.path.split("/")[-2:]
        if kind == "manifests":
            return self.manifest(selector)
        if self.redirect is not None:
            return web.Response(status=307, headers={"Location": self.redirect})
        return await self.blob(request, selector)

    def manifest(self, selector: str) -> web.Response:
        raw = self.tags.get(selector) or self.blobs.get(selector)
        if raw is None:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        return web.Response(body=raw, headers=self.headers)

    async def blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        if self.refuse_blobs:
            self.refuse_blobs -= 1
            return web.Response(status=503)
        data = self.blobs.get(digest)
        if data is None:
            return web.Response(status=404)
        start = request.http_range.start or 0 if self.ranges else 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start + self.wrong_range}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        end = start + self.bytes_per_connection
        await response.write(data[start:end])
        if end < len(data) and request.transport is not None:
            request.transport.abort()
        return response


@asynccontextmanager
async def serving(registry: FakeRegistry) -> AsyncIterator[FakeRegistry]:
    app = web.Application()
    app.router.add_get("/{path:.*}", registry.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
        yield registry
    finally:
        await runner.cleanup()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with serving(FakeRegistry(hello())) as made:
        yield made


@pytest.fixture
async def noise() -> AsyncIterator[FakeRegistry]:
    async with serving(FakeRegistry(NOISE)) as made:
        yield made


def repository(registry: FakeRegistry, tag: str = "v1", credentials: Credentials | None = None) -> Repository:
    return Repository(Reference(registry.host, "team/app", tag), POLICY, credentials, pause_s=0.01)


async def refusal(registry: FakeRegistry, tag: str = "v1", credentials: Credentials | None = None) -> str:
    async with repository(registry, tag, credentials) as source:
        with pytest.raises((ImageError, UnavailableError)) as caught:
            await source.resolve(AMD64)
        assert "hunter2" not in str(caught.value)
        return caught.value.code


async def pulled(
    registry: FakeRegistry, sample: Sample, directory: Path, credentials: Credentials | None = None
) -> BlobStore:
    store = BlobStore(directory)
    async with repository(registry, credentials=credentials) as source:
        await pull(sample.digest, source, store, ImageLimits())
    assert store.has_image(sample.digest)
    return store


async def read_blob(source: Repository, sample: Sample, number: int = 0, offset: int = 0) -> bytes:
    data = sample.layers[number]
    return b"".join([chunk async for chunk in source.blob(BlobRef(digest_of(data), len(data)), offset)])


class TestManifests:
    async def test_an_index_leads_to_our_platform(self, registry: FakeRegistry) -> None:
        media_type = "application/vnd.oci.image.manifest.v1+json"
        entries = [
            descriptor(b"arm", media_type, platform={"os": "linux", "architecture": "arm64"}),
            descriptor(hello().manifest, media_type, platform={"os": "linux", "architecture": "amd64"}),
        ]
        registry.tags["index"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        async with repository(registry, "index") as source:
            assert (await source.resolve(AMD64)).digest == hello().digest

    async def test_a_manifest_that_lies_about_its_digest_is_refused(self, registry: FakeRegistry) -> None:
        registry.headers["Docker-Content-Digest"] = digest_of(b"other")
        assert await refusal(registry) == "digest-mismatch"

    async def test_another_manifest_than_the_digest_asked_for_is_refused(self, registry: FakeRegistry) -> None:
        registry.blobs[NOISE.digest] = hello().manifest
        async with repository(registry) as source:
            with pytest.raises(ImageError) as caught:
                await source.manifest(NOISE.digest)
        assert caught.value.code == "digest-mismatch"

    async def test_an_endless_manifest_is_refused(self, registry: FakeRegistry) -> None:
        registry.tags["v1"] = b" " * (5 << 20)
        assert await refusal(registry) == "image-too-large"

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (404, "image-not-found"),
            (403, "registry-unauthorized"),
            (429, "registry-busy"),
            (500, "registry-unreachable"),
            (503, "registry-unreachable"),
            (418, "registry-protocol"),
        ],
    )
    async def test_every_status_has_its_meaning(self, registry: FakeRegistry, status: int, code: str) -> None:
        registry.status = status
        assert await refusal(registry) == code

    async def test_nobody_there_is_temporary(self, registry: FakeRegistry) -> None:
        registry.host = "127.0.0.1:1"
        assert await refusal(registry) == "registry-unreachable"

    async def test_the_configuration_is_checked(self, registry: FakeRegistry) -> None:
        registry.blobs[digest_of(hello().config)] = b"{}"
        async with repository(registry) as source:
            with pytest.raises(ImageError) as caught:
                await source.config(await source.resolve(AMD64))
        assert caught.value.code == "digest-mismatch"


class TestBlobs:
    async def test_a_broken_connection_is_resumed_where_it_broke(self, noise: FakeRegistry, tmp_path: Path) -> None:
        noise.bytes_per_connection = 400_000
        store = await pulled(noise, NOISE, tmp_path)
        assert store.path(digest_of(NOISE.layers[0])).read_bytes() == NOISE.layers[0]
        ranges = [request.headers.get("Range") for request in noise.seen]
        assert [text for text in ranges if text], "no range was asked for"
        assert all(text != "bytes=0-" for text in ranges)

    async def test_a_registry_without_ranges_has_the_beginning_skipped(self, noise: FakeRegistry) -> None:
        noise.ranges = False
        async with repository(noise) as source:
            assert await read_blob(source, NOISE, offset=1_000_000) == NOISE.layers[0][1_000_000:]

    async def test_another_range_than_was_asked_for_is_refused(self, noise: FakeRegistry) -> None:
        noise.wrong_range = True
        async with repository(noise) as source:
            with pytest.raises(ImageError) as caught:
                await read_blob(source, NOISE, offset=1000)
        assert caught.value.code == "registry-protocol"

    async def test_a_registry_that_is_down_for_a_moment_is_asked_again(self, noise: FakeRegistry) -> None:
        noise.refuse_blobs = 2
        async with repository(noise) as source:
            assert await read_blob(source, NOISE) == NOISE.layers[0]

    async def test_a_registry_that_stays_down_is_given_up(self, noise: FakeRegistry) -> None:
        noise.refuse_blobs = 1000
        async with repository(noise) as source:
            with pytest.raises(UnavailableError):
                await read_blob(source, NOISE)
        assert len(noise.seen) == 5

    async def test_a_registry_that_trickles_is_given_up(self, noise: FakeRegistry) -> None:
        noise.bytes_per_connection = 10
        async with Repository(Reference(noise.host, "app", "v1"), POLICY, pause_s=0.01, patience_s=0.3) as source:
            with pytest.raises(UnavailableError):
                await read_blob(source, NOISE)

    async def test_a_missing_blob_is_permanent(self, noise: FakeRegistry, tmp_path: Path) -> None:
        del noise.blobs[digest_of(NOISE.layers[0])]
        with pytest.raises(ImageError) as caught:
            await pulled(noise, NOISE, tmp_path)
        assert caught.value.code == "image-not-found"

    @pytest.mark.parametrize("change", [b"x", b""])
    async def test_a_corrupt_layer_is_never_stored(self, noise: FakeRegistry, tmp_path: Path, change: bytes) -> None:
        good = NOISE.layers[0]
        noise.blobs[digest_of(good)] = change + good[len(change) or 1 :] if change else good + b"more"
        with pytest.raises(ImageError) as caught:
            await pulled(noise, NOISE, tmp_path)
        assert caught.value.code == "digest-mismatch"
        assert not BlobStore(tmp_path).has(digest_of(good))


class TestTokens:
    def guarded(self, registry: FakeRegistry, realm: str | None = None) -> FakeRegistry:
        place = realm or f"http://{registry.host}/token"
        registry.challenge = f'Bearer realm="{place}",service="registry.example",scope="repository:team/app:push"'
        registry.tokens = {"Bearer t0ken"}
        return registry

    async def test_a_token_is_asked_for_once_and_used_for_all(self, registry: FakeRegistry, tmp_path: Path) -> None:
        await pulled(self.guarded(registry), hello(), tmp_path)
        [token] = [request for request in registry.seen if request.path == "/token"]
        assert dict(token.query) == {"service": "registry.example", "scope": "repository:team/app:pull"}
        assert "Authorization" not in token.headers

    async def test_credentials_go_to_the_token_server(self, registry: FakeRegistry, tmp_path: Path) -> None:
        await pulled(self.guarded(registry), hello(), tmp_path, credentials=CREDENTIALS)
        sent = {request.headers.get("Authorization") for request in registry.seen if request.path == "/token"}
        assert sent == {"Basic " + base64.b64encode(b"me:hunter2").decode()}
        others = {request.headers.get("Authorization") for request in registry.seen if request.path != "/token"}
        assert others <= {None, "Bearer t0ken"}

    async def test_an_expired_token_is_replaced(self, registry: FakeRegistry) -> None:
        async with repository(self.guarded(registry)) as source:
            await source.resolve(AMD64)
            registry.issue, registry.tokens = "fresh", {"Bearer fresh"}
            await source.resolve(AMD64)

    async def test_a_token_that_opens_nothing_is_an_end(self, registry: FakeRegistry) -> None:
        self.guarded(registry).tokens = set()
        assert await refusal(registry, credentials=CREDENTIALS) == "registry-unauthorized"
        assert registry.asked.count("token") == 1

    async def test_basic_authentication_works_with_credentials_only(self, registry: FakeRegistry) -> None:
        registry.challenge, registry.tokens = 'Basic realm="registry"', {CREDENTIALS.header}
        assert await refusal(registry) == "registry-unauthorized"
        async with repository(registry, credentials=CREDENTIALS) as source:
            assert (await source.resolve(AMD64)).digest == hello().digest

    @pytest.mark.parametrize("challenge", ["", "Digest realm=x", "Bearer"])
    async def test_a_challenge_that_we_do_not_know_is_an_end(self, registry: FakeRegistry, challenge: str) -> None:
        registry.challenge = challenge or "Unknown"
        assert await refusal(registry) == "registry-unauthorized"

    @pytest.mark.parametrize(
        "realm",
        ["http://registry.example/token", "http://127.0.0.2:80/token", "https://127.0.0.2/token"],
    )
    async def test_a_realm_in_a_forbidden_place_is_not_asked(self, registry: FakeRegistry, realm: str) -> None:
        assert await refusal(self.guarded(registry, realm), credentials=CREDENTIALS) == "registry-forbidden"


class TestForbiddenPlaces:
    async def test_loopback_is_asked_only_where_the_list_names_it(self, registry: FakeRegistry) -> None:
        for policy in (RegistryPolicy(), RegistryPolicy(("127.0.0.1:1",)), RegistryPolicy(("127.0.0.2:*",))):
            async with Repository(Reference(registry.host, "app", "v1"), policy) as source:
                with pytest.raises(ImageError) as caught:
                    await source.resolve(AMD64)
            assert caught.value.code == "registry-forbidden"
        assert registry.seen == []

    @pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
    async def test_a_name_that_resolves_to_a_forbidden_address_is_not_asked(
        self, registry: FakeRegistry, address: str
    ) -> None:
        async def lookup(host: str, port: int) -> tuple[str, ...]:
            return (address,)

        async with Repository(Reference("evil.example:443", "app", "v1"), POLICY, lookup=lookup) as source:
            with pytest.raises(ImageError) as caught:
                await source.resolve(AMD64)
        assert caught.value.code == "registry-forbidden"

    async def test_the_address_that_was_checked_is_the_one_that_is_asked(self, registry: FakeRegistry) -> None:
        answers = iter([("192.0.2.1", "127.0.0.1"), ("127.0.0.1",), ("127.0.0.1",)])

        async def rebinding(host: str, port: int) -> tuple[str, ...]:
            return next(answers)

        port = registry.host.rpartition(":")[2]
        for _ in range(3):
            async with Repository(Reference(f"evil.example:{port}", "app", "v1"), POLICY, lookup=rebinding) as source:
                with pytest.raises((ImageError, UnavailableError)):
                    await source.resolve(AMD64)
        assert registry.seen == []

    @pytest.mark.parametrize(
        "place",
        [
            "http://127.0.0.2:{port}/blob",
            "http://localhost:{port}/blob",
            "http://169.254.169.254/latest/meta-data",
            "https://10.0.0.1/blob",
            "http://registry.example/blob",
            "file:///etc/passwd",
            "gopher://127.0.0.1/",
        ],
    )
    async def test_a_redirect_to_a_forbidden_place_is_not_followed(self, registry: FakeRegistry, place: str) -> None:
        async with serving(FakeRegistry(hello())) as other:
            registry.redirect = place.format(port=other.host.rpartition(":")[2])
            async with repository(registry) as source:
                with pytest.raises(ImageError) as caught:
                    await read_blob(source, hello())
        assert caught.value.code == "registry-forbidden"
        assert other.seen == []

    async def test_the_list_does_not_help_where_a_registry_sends_us(self, registry: FakeRegistry) -> None:
        policy = RegistryPolicy(("127.0.0.1:*", "127.0.0.2:*", "localhost:*"))
        for place in ("https://127.0.0.2/blob", f"http://localhost:{registry.host.rpartition(':')[2]}/blob"):
            registry.redirect = place
            async with Repository(Reference(registry.host, "app", "v1"), policy) as source:
                with pytest.raises(ImageError) as caught:
                    await read_blob(source, hello())
            assert caught.value.code == "registry-forbidden"

    async def test_a_redirect_within_the_registrys_host_is_followed_without_its_token(
        self, registry: FakeRegistry
    ) -> None:
        TestTokens().guarded(registry)
        async with serving(FakeRegistry(hello())) as storage:
            digest = digest_of(hello().layers[0])
            registry.redirect = f"http://{storage.host}/v2/x/blobs/{digest}"
            async with repository(registry) as source:
                await source.resolve(AMD64)
                assert await read_blob(source, hello()) == hello().layers[0]
        assert [request.headers.get("Authorization") for request in storage.seen] == [None]

    async def test_where_the_registry_redirects_to_gets_no_login(self, registry: FakeRegistry) -> None:
        async with serving(FakeRegistry()) as storage:
            TestTokens().guarded(storage)
            registry.redirect = f"http://{storage.host}/blob"
            async with repository(registry, credentials=CREDENTIALS) as source:
                await source.resolve(AMD64)
                with pytest.raises(ImageError) as caught:
                    await read_blob(source, hello())
        assert caught.value.code == "registry-unauthorized"
        assert [(request.path, request.headers.get("Authorization")) for request in storage.seen] == [("/blob", None)]

    async def test_redirects_without_end_are_given_up(self, registry: FakeRegistry) -> None:
        registry.redirect = "/v2/team/app/blobs/again"
        async with repository(registry) as source:
            with pytest.raises(ImageError, match="redirects without end") as caught:
                await read_blob(source, hello())
        assert caught.value.code == "registry-protocol"
        assert len(registry.seen) == 5

    async def test_a_redirect_to_nowhere_is_refused(self, registry: FakeRegistry) -> None:
        registry.redirect = "http://["
        async with repository(registry) as source:
            with pytest.raises(ImageError) as caught:
                await read_blob(source, hello())
        assert caught.value.code == "registry-protocol"
