"""What images and registries say about themselves, read as hostile input: references, manifests, configurations, tokens."""

from __future__ import annotations

import json
from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from plasmavmc.errors import ImageError, InvalidSpecError
from plasmavmc.host.lookups import lookup
from plasmavmc.images.auth import Credentials, parse_challenge, parse_token, token_url
from plasmavmc.images.config import check_platform, parse_config, parse_diff_ids
from plasmavmc.images.digests import digest_of
from plasmavmc.images.limits import BLOB_BYTES, LAYERS
from plasmavmc.images.manifest import Platform, build_manifest, choose, parse_index, parse_manifest
from plasmavmc.images.policy import RegistryPolicy, is_public
from plasmavmc.images.reference import Reference, names_registry, parse_loaded_name, parse_reference
from plasmavmc.images.source import BlobRef
from tests.contract.images_samples import descriptor, hello

DIGEST = "sha256:" + "a" * 64
AMD64 = Platform("linux", "amd64")


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("registry.example/app", Reference("registry.example", "app")),
            ("registry.example/team/app:v1", Reference("registry.example", "team/app", "v1")),
            ("127.0.0.1:5000/app:v1", Reference("127.0.0.1:5000", "app", "v1")),
            ("localhost/app", Reference("localhost", "app")),
            ("[::1]:5000/app", Reference("[::1]:5000", "app")),
            (f"registry.example/a@{DIGEST}", Reference("registry.example", "a", None, DIGEST)),
            (f"REGISTRY.example/a:V1@{DIGEST}", Reference("registry.example", "a", "V1", DIGEST)),
            ("registry.example/a_b/c__d/e-f.g", Reference("registry.example", "a_b/c__d/e-f.g")),
        ],
    )
    def test_a_reference_names_host_repository_tag_and_digest(self, text: str, expected: Reference) -> None:
        assert parse_reference(text) == expected

    def test_a_reference_survives_being_written(self) -> None:
        text = f"127.0.0.1:5000/team/app:v1@{DIGEST}"
        assert str(parse_reference(text)) == text

    def test_a_digest_goes_before_a_tag_and_latest_is_the_last_resort(self) -> None:
        assert parse_reference(f"r.example/a:v1@{DIGEST}").selector == DIGEST
        assert parse_reference("r.example/a").selector == "latest"

    @pytest.mark.parametrize("text", ["hello", "hello:v1", "team/hello:v1", f"hello@{DIGEST}", "a/b/c"])
    def test_a_name_without_a_host_implies_no_registry(self, text: str) -> None:
        assert not names_registry(text)
        with pytest.raises(ImageError) as caught:
            parse_reference(text)
        assert caught.value.code == "image-reference"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "registry.example/",
            "registry.example//a",
            "registry.example/../a",
            "registry.example/A",
            "registry.example/a:",
            "registry.example/a@sha256:abc",
            f"registry.example/a@sha512:{'a' * 128}",
            "registry.example/a b",
            "registry.example/a?x=1",
            "registry.example/a#x",
            "registry.example/a%2e",
            "user:pw@registry.example/a",
            "https://registry.example/a",
            "registry.example:99999/a",
            "registry.example:0/a",
            "registry.example:x/a",
            "registry.example/a\n",
            "registry.example/a;rm -rf /",
            "registry.example/$(id)",
            "registry.example/" + "a" * 600,
            "registry..example/a",
            f"{'a' * 64}.example/a",
            "[::::]/a",
            "[..]/a",
            "[127.0.0.1]/a",
            "[:1]:5000/a",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ImageError) as caught:
            parse_reference(text)
        assert caught.value.code == "image-reference"

    @given(st.text(max_size=80))
    def test_no_text_breaks_the_parser(self, text: str) -> None:
        with suppress(ImageError):
            assert parse_reference(text).repository

    def test_a_loaded_name_gets_the_tag_latest(self) -> None:
        assert parse_loaded_name("hello") == "hello:latest"
        assert parse_loaded_name("team/hello:v1") == "team/hello:v1"
        assert parse_loaded_name("127.0.0.1:5000/hello") == "127.0.0.1:5000/hello:latest"


class TestPolicy:
    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",  # noqa: S104
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fec0::1",
            "::127.0.0.1",
            "5f00::1",
        ],
    )
    def test_only_public_addresses_are_public(self, address: str) -> None:
        assert not is_public(ip_address(address))
        with pytest.raises(ImageError) as caught:
            RegistryPolicy().check_address("registry.example", 443, ip_address(address))
        assert caught.value.code == "registry-forbidden"
        assert caught.value.resolution == 'An operator can allow it: "registry.example:443" in allow.'

    @pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"])
    def test_public_addresses_are_allowed(self, address: str) -> None:
        RegistryPolicy().check_address("registry.example", 443, ip_address(address))

    @pytest.mark.parametrize(
        ("pattern", "host", "port"),
        [
            ("127.0.0.1:*", "127.0.0.1", 5000),
            ("127.0.0.1:*", "localhost", 5000),
            ("127.0.0.1:5000", "127.0.0.1", 5000),
            ("registry.corp.example", "registry.corp.example", 443),
            ("*.corp.example:*", "a.b.corp.example", 8443),
            ("[::1]:*", "::1", 5000),
        ],
    )
    def test_the_list_admits_what_it_names(self, pattern: str, host: str, port: int) -> None:
        RegistryPolicy((pattern,)).check_address(host, port, ip_address("127.0.0.1"))

    @pytest.mark.parametrize(
        ("pattern", "host", "port"),
        [
            ("127.0.0.1:5000", "127.0.0.1", 5001),
            ("127.0.0.1", "127.0.0.1", 5000),
            ("*.corp.example", "corp.example", 443),
            ("*.corp.example", "evilcorp.example", 443),
            ("127.0.0.1:*", "evil.example", 5000),
            ("127.0.0.1:*", "127.0.0.2", 5000),
        ],
    )
    def test_the_list_admits_nothing_else(self, pattern: str, host: str, port: int) -> None:
        with pytest.raises(ImageError):
            RegistryPolicy((pattern,)).check_address(host, port, ip_address("127.0.0.1"))

    @pytest.mark.parametrize("pattern", ["", "*", "*:*", "a b", "http://x", "x:99999999", "10.0.0.0/8", ".*", "x:"])
    def test_a_malformed_pattern_is_refused_at_the_start(self, pattern: str) -> None:
        with pytest.raises(InvalidSpecError):
            RegistryPolicy((pattern,))

    def test_plain_http_is_for_loopback_only(self) -> None:
        policy = RegistryPolicy(("127.0.0.1:*",))
        assert policy.base_url("127.0.0.1:5000") == URL("http://127.0.0.1:5000")
        assert policy.base_url("localhost:5000").scheme == "http"
        assert policy.base_url("registry.example").scheme == "https"
        assert RegistryPolicy(plain_http=False).base_url("127.0.0.1:5000").scheme == "https"
        with pytest.raises(ImageError):
            policy.check_url(URL("http://registry.example/v2/"))

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x.example/", "https://u:p@x.example/", "https:///x"])
    def test_other_urls_are_refused(self, url: str) -> None:
        with pytest.raises(ImageError) as caught:
            RegistryPolicy().check_url(URL(url))
        assert caught.value.code == "registry-forbidden"

    @pytest.mark.parametrize(
        "host", ["2130706433", "127.1", "0", "0177.0.0.1", "0x7f000001", "0x7f.1", "127.0.0.1.", "registry.example.1"]
    )
    def test_a_number_that_is_no_address_as_it_is_written_is_refused_before_anything_is_asked(self, host: str) -> None:
        with pytest.raises(ImageError) as caught:
            RegistryPolicy(("127.0.0.1:*",)).check_url(URL(f"https://{host}:5000/v2/", encoded=True))
        assert caught.value.code == "registry-forbidden"

    def test_a_name_with_numbers_in_it_is_a_name(self) -> None:
        for host in ("1.registry.example", "registry1.example", "0x7f.example", "registry.example."):
            RegistryPolicy().check_url(URL(f"https://{host}/v2/"))

    @pytest.mark.parametrize(
        "host", ["registry..example", "a" * 64 + ".example", "xn--a.example", "xn--zzzzzzzz99999999.example", "x.xn--"]
    )
    def test_what_no_resolver_takes_is_no_host(self, host: str) -> None:
        with pytest.raises(ImageError):
            RegistryPolicy().check_url(URL(f"https://{host}/v2/", encoded=True))
        with pytest.raises(ImageError) as caught:
            RegistryPolicy().base_url(host)
        assert caught.value.code == "image-reference"

    @pytest.mark.parametrize("host", ["a..example", "b" * 64 + ".example"])
    async def test_what_no_resolver_takes_has_no_address(self, host: str) -> None:
        """Redirects and realms name hosts too, in more ways than anybody looks through before."""
        with pytest.raises(OSError, match="is not the name of a host"):
            await lookup(host, 443)

    @given(
        st.lists(
            st.sampled_from(["a", "xn--", ".", "[", "]", ":", "::1", "9", "@", "\u0661", "-", "b" * 64]), max_size=6
        )
    )
    def test_no_reference_breaks_what_asks_for_it(self, parts: list[str]) -> None:
        with suppress(ImageError):
            RegistryPolicy().check_url(RegistryPolicy().base_url(parse_reference("".join(parts) + "/app").host))


class TestManifests:
    def test_a_manifest_names_its_parts(self) -> None:
        sample = hello()
        manifest = parse_manifest(sample.manifest)
        assert manifest.digest == sample.digest
        assert [layer.size for layer in manifest.layers] == [len(data) for data in sample.layers]

    def test_the_same_parts_build_the_same_manifest(self) -> None:
        config, layers = BlobRef(DIGEST, 3, "c"), (BlobRef(DIGEST, 4, "l"),)
        raw = build_manifest(config, layers)
        assert raw == build_manifest(config, layers)
        assert (parse_manifest(raw).config, parse_manifest(raw).layers) == (config, layers)

    @pytest.mark.parametrize(
        "changes",
        [
            {"schemaVersion": 1},
            {"schemaVersion": "2"},
            {"layers": "x"},
            {"layers": [1]},
            {"layers": [{"digest": DIGEST}]},
            {"layers": [{"digest": DIGEST, "size": -1}]},
            {"layers": [{"digest": DIGEST, "size": True}]},
            {"layers": [{"digest": DIGEST, "size": 1.5}]},
            {"layers": [{"digest": DIGEST, "size": 1 << 63}]},
            {"layers": [{"digest": DIGEST, "size": (1 << 63) - 1}] * 2},
            {"layers": [{"digest": DIGEST, "size": 10**30}]},
            {"layers": [{"digest": "sha256:../../x", "size": 1}]},
            {"layers": [{"digest": DIGEST, "size": 1}] * 257},
            {"config": None},
            {"config": {"digest": DIGEST, "size": 1 << 40}},
            {"mediaType": 5},
        ],
    )
    def test_a_malformed_manifest_is_refused(self, changes: dict[str, object]) -> None:
        with pytest.raises(ImageError, match=r"\w"):
            parse_manifest(json.dumps({**json.loads(hello().manifest), **changes}).encode())

    def test_whatever_a_manifest_says_its_size_is_a_number_that_can_be_stored(self) -> None:
        most = {"digest": DIGEST, "size": BLOB_BYTES}
        manifest = parse_manifest(json.dumps({**json.loads(hello().manifest), "layers": [most] * LAYERS}).encode())
        assert sum(layer.size for layer in manifest.layers) < 1 << 63

    def test_an_entry_of_an_index_has_a_size_too(self) -> None:
        entries = [{"mediaType": "x", "digest": DIGEST, "size": 1 << 64}]
        with pytest.raises(ImageError):
            parse_index(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())

    def test_a_manifest_beyond_the_limit_is_refused(self) -> None:
        with pytest.raises(ImageError):
            parse_manifest(b" " * (5 << 20))

    def test_of_an_index_the_platform_is_chosen_and_attestations_are_not(self) -> None:
        entries = [
            descriptor(b"x", "m", platform={"os": "unknown", "architecture": "unknown"}),
            descriptor(b"arm", "m", platform={"os": "linux", "architecture": "arm64", "variant": "v8"}),
            descriptor(b"amd", "m", platform={"os": "linux", "architecture": "amd64"}),
        ]
        index = parse_index(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
        assert choose(index, AMD64).digest == digest_of(b"amd")
        with pytest.raises(ImageError, match="no manifest for linux/riscv64") as caught:
            choose(index, Platform("linux", "riscv64"))
        assert "linux/arm64" in caught.value.details

    def test_a_single_entry_without_a_platform_is_taken(self) -> None:
        index = parse_index(json.dumps({"schemaVersion": 2, "manifests": [descriptor(b"x", "m")]}).encode())
        assert choose(index, AMD64).digest == digest_of(b"x")


class TestConfigurations:
    def test_what_starts_the_workload_is_read(self) -> None:
        config = parse_config(
            json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "config": {
                        "Entrypoint": ["/bin/app"],
                        "Cmd": ["serve", ""],
                        "Env": ["A=1", "B=x=y", "A=2", "bare", "=z", "E="],
                        "User": "1000:1000",
                        "WorkingDir": "srv",
                        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "443": {}, "0/tcp": {}, "99999": {}, "x": {}},
                        "StopSignal": "SIGQUIT",
                        "Labels": {"a": "b"},
                    },
                }
            ).encode()
        )
        assert (config.entrypoint, config.command) == (("/bin/app",), ("serve", ""))
        assert config.env == {"A": "2", "B": "x=y", "E": ""}
        assert (config.user, config.workdir, config.exposed_ports) == ("1000:1000", "/srv", (443, 8080))
        assert (config.stop_signal, config.labels) == ("SIGQUIT", {"a": "b"})

    @pytest.mark.parametrize(
        "raw", [b"{}", b'{"config":null}', b'{"config":{"Env":null,"Cmd":null,"ExposedPorts":null}}']
    )
    def test_absence_has_plain_meanings(self, raw: bytes) -> None:
        config = parse_config(raw)
        assert (config.entrypoint, config.workdir, config.stop_signal) == ((), "/", "SIGTERM")
        check_platform(config, AMD64)

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b'{"config":[]}',
            b'{"config":{"Cmd":"sh"}}',
            b'{"config":{"Cmd":[1]}}',
            b'{"config":{"Cmd":["a\\u0000b"]}}',
            b'{"config":{"User":"a\\nb"}}',
            b'{"config":{"Labels":{"a":1}}}',
            b'{"config":{"ExposedPorts":[1]}}',
            b'{"config":{"Env":' + json.dumps(["A=b"] * 5000).encode() + b"}}",
            b'{"a":' * 100_000,
            b"\xff\xfe",
        ],
    )
    def test_malformed_configurations_are_refused(self, raw: bytes) -> None:
        with pytest.raises(ImageError) as caught:
            parse_config(raw)
        assert caught.value.code == "image-document"

    def test_an_image_for_another_machine_is_refused(self) -> None:
        with pytest.raises(ImageError, match="built for linux/arm64"):
            check_platform(parse_config(b'{"architecture":"arm64","os":"linux"}'), AMD64)

    def test_diff_ids_must_be_digests(self) -> None:
        assert parse_diff_ids(json.dumps({"rootfs": {"diff_ids": [DIGEST]}}).encode()) == (DIGEST,)
        with pytest.raises(ImageError):
            parse_diff_ids(b'{"rootfs":{"diff_ids":["sha256:x"]}}')

    @given(st.binary(max_size=200))
    def test_no_bytes_break_the_parsers(self, raw: bytes) -> None:
        for parse in (parse_config, parse_manifest, parse_index, parse_diff_ids):
            with suppress(ImageError):
                parse(raw)


class TestAuthentication:
    def test_a_challenge_names_the_realm(self) -> None:
        challenge = parse_challenge(
            'Bearer realm="https://auth.example/token",service="registry.example",scope="a:b:*"'
        )
        assert challenge is not None
        url = token_url(challenge, "team/app")
        assert (url.host, url.query["service"], url.query["scope"]) == (
            "auth.example",
            "registry.example",
            "repository:team/app:pull",
        )

    @pytest.mark.parametrize("header", ["", "Bearer", "Digest realm=x", "Bearer " + "x" * 5000])
    def test_challenges_that_we_do_not_know_are_none(self, header: str) -> None:
        assert parse_challenge(header) is None

    @pytest.mark.parametrize(
        "header",
        [
            "Bearer service=x",
            'Bearer realm=""',
            'Bearer realm="/token"',
            'Bearer realm="http://["',
            'Bearer realm="https://]b[@"',
            'Bearer realm="https://[1.2.3.4\u00e9\t:]"',
            'Bearer realm="https://xn--a.example/token"',
            'Bearer realm="https://a..example/token"',
        ],
    )
    def test_a_challenge_without_a_place_is_refused(self, header: str) -> None:
        challenge = parse_challenge(header)
        assert challenge is not None
        with pytest.raises(ImageError) as caught:
            token_url(challenge, "app")
        assert caught.value.code == "registry-protocol"

    def test_a_token_may_have_either_name(self) -> None:
        assert parse_token(b'{"token":"t"}') == "Bearer t"
        assert parse_token(b'{"access_token":"t"}') == "Bearer t"

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b'{"token":"a\\nInjected: x"}', b'{"token":5}', b'{"token":"\\u00e9"}']
    )
    def test_a_bad_token_is_refused(self, body: bytes) -> None:
        with pytest.raises(ImageError):
            parse_token(body)

    def test_passwords_are_not_shown(self) -> None:
        assert "hunter2" not in repr(Credentials("me", "hunter2"))
