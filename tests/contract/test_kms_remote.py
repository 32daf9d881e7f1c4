"""The contract of a KMS on the adapters for Vault and AWS, against stand-ins; and what they make of a KMS that fails."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms import https
from shellwego.drivers.kms.aws import AwsKms
from shellwego.drivers.kms.https import JsonClient
from shellwego.drivers.kms.sigv4 import AwsCredentials, Place, sign
from shellwego.drivers.kms.vault import VaultKms
from shellwego.ports.kms import Kms
from tests.contract.kms_contract import CONTEXT, KEY, KmsContract, RotatingKmsContract
from tests.contract.kms_standins import CREDENTIALS, NOW, REGION, TOKEN, AwsStandIn, StandIn, VaultStandIn


@pytest.fixture
def vault() -> Iterator[VaultStandIn]:
    standin = VaultStandIn()
    with standin.running():
        yield standin


@pytest.fixture
def aws() -> Iterator[AwsStandIn]:
    standin = AwsStandIn()
    with standin.running():
        yield standin


def vault_kms(standin: StandIn, token: str = TOKEN) -> VaultKms:
    return VaultKms(standin.url, "transit/shellwego", Sensitive.of(token))


def aws_kms(standin: StandIn, credentials: AwsCredentials = CREDENTIALS) -> AwsKms:
    return AwsKms(REGION, "alias/shellwego", credentials, lambda: NOW, url=standin.url)


class TestVault(RotatingKmsContract):
    @pytest.fixture
    def kms(self, vault: VaultStandIn) -> Kms:
        return vault_kms(vault)


class TestAws(KmsContract):
    @pytest.fixture
    def kms(self, aws: AwsStandIn) -> Kms:
        return aws_kms(aws)


async def test_an_alias_of_aws_that_means_another_key_is_a_rotation(aws: AwsStandIn) -> None:
    kms = aws_kms(aws)
    old = await kms.wrap(KEY, CONTEXT)
    aws.add_key()
    new = await kms.wrap(KEY, CONTEXT)
    assert await kms.current() == new.master_key != old.master_key
    assert await kms.unwrap(old, CONTEXT) == await kms.unwrap(new, CONTEXT) == KEY


async def test_a_context_with_an_empty_part_opens_too(aws: AwsStandIn, vault: VaultStandIn) -> None:
    for kms in (aws_kms(aws), vault_kms(vault)):
        context = {**CONTEXT, "project_id": ""}
        assert await kms.unwrap(await kms.wrap(KEY, context), context) == KEY


async def test_wrong_credentials_are_told_and_not_repeated(aws: AwsStandIn, vault: VaultStandIn) -> None:
    wrong = replace(CREDENTIALS, secret_key=Sensitive.of("wrong-horse"))
    for kms in (aws_kms(aws, wrong), vault_kms(vault, "wrong-horse")):
        with pytest.raises(UnavailableError) as refused:
            await kms.wrap(KEY, CONTEXT)
        assert refused.value.code == "kms-unavailable"
        assert "horse" not in refused.value.message


@pytest.mark.parametrize(
    "broken",
    [
        (302, b"", {"Location": "http://127.0.0.1:1/"}),
        (500, b"", {}),
        (200, b"<html>", {}),
        (200, b"[]", {}),
        (200, b"{}", {}),
        (200, b'{"data": 1, "KeyMetadata": []}', {}),
        (200, b'{"data": {}, "KeyMetadata": {}}', {}),
        (200, b'{"data": "' + b"x" * https.MAX_ANSWER + b'"}', {}),
    ],
    ids=["redirect", "500", "html", "list", "nothing", "other", "empty", "large"],
)
async def test_an_answer_that_is_none_is_an_absence(
    aws: AwsStandIn, vault: VaultStandIn, broken: tuple[int, bytes, dict[str, str]]
) -> None:
    for standin, kms in ((aws, aws_kms(aws)), (vault, vault_kms(vault))):
        wrapped = await kms.wrap(KEY, CONTEXT)
        standin.broken = broken
        for call in (kms.current(), kms.wrap(KEY, CONTEXT), kms.unwrap(wrapped, CONTEXT)):
            with pytest.raises(UnavailableError):
                await call


async def test_one_that_is_not_there_or_hangs_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError):
            await VaultKms(url, "transit/shellwego", Sensitive.of(TOKEN)).current()
    with pytest.raises(UnavailableError):
        await VaultKms(url, "transit/shellwego", Sensitive.of(TOKEN)).current()


async def test_the_data_key_leaves_us_for_the_kms_only_in_a_body(vault: VaultStandIn) -> None:
    await vault_kms(vault).wrap(KEY, CONTEXT)
    assert all(TOKEN not in path and TOKEN not in body.decode() for _, path, body in vault.asked)
    assert json.loads(vault.asked[-1][2]).keys() == {"plaintext", "associated_data"}


@pytest.mark.parametrize(
    "url",
    [
        "http://vault.example",
        "ftp://x",
        "",
        "https://",
        "https://u@h",
        "https://h?x=1",
        "https://h:x",
        "http://10.0.0.1",
    ],
)
def test_an_address_without_tls_is_refused_but_on_loopback(url: str) -> None:
    with pytest.raises(InvalidError):
        JsonClient(url)


def test_tls_verifies_by_name_and_authority(tmp_path: Path) -> None:
    context = JsonClient("https://vault.example")._tls
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    with pytest.raises(InvalidError):
        JsonClient("https://vault.example", tmp_path / "none.pem")


@pytest.mark.parametrize("key", ["", "shellwego", "transit/", "transit/a?b", "a/../b", "/x"])
def test_a_name_of_a_vault_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(InvalidError):
        VaultKms("https://vault.example", key, Sensitive.of(TOKEN))


@pytest.mark.parametrize(("region", "key"), [("", "k"), ("eu central", "k"), ("evil.example/", "k"), ("eu-1", "a b")])
def test_a_region_or_key_of_aws_that_cannot_be_is_refused(region: str, key: str) -> None:
    with pytest.raises(InvalidError):
        AwsKms(region, key, CREDENTIALS, lambda: NOW)


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ],
)
def test_requests_are_signed_as_in_the_published_examples(method: str, signature: str) -> None:
    """`get-vanilla` and `post-vanilla` of AWS' test suite for Signature Version 4."""
    credentials = AwsCredentials(
        access_key="AKIDEXAMPLE", secret_key=Sensitive.of("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    )
    headers = {"Host": "example.amazonaws.com"}
    place = Place("us-east-1", "service")
    signed = sign(credentials, place, 1_440_938_160.0, method=method, path="/", headers=headers, body=b"")
    assert signed["X-Amz-Date"] == "20150830T123600Z"
    assert signed["Authorization"].endswith(f"Signature={signature}")


def test_a_session_token_is_signed_along() -> None:
    credentials = replace(CREDENTIALS, session_token=Sensitive.of("of-a-session"))
    signed = sign(credentials, Place(REGION, "kms"), NOW, method="POST", path="/", headers={"Host": "h"}, body=b"")
    assert signed["X-Amz-Security-Token"] == "of-a-session"
    assert "x-amz-security-token" in signed["Authorization"]
