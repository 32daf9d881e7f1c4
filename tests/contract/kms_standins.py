"""Stand-ins for Vault's transit engine and AWS KMS on loopback: as much of their APIs as the drivers use."""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.sigv4 import AwsCredentials, Place, sign

TOKEN = "hvs.a-token-of-vault"
CREDENTIALS = AwsCredentials(access_key="AKIDEXAMPLE", secret_key=Sensitive.of("an-aws-secret"))
REGION = "eu-central-1"
NOW = 1_440_938_160.0


class StandIn:
    """An HTTP server; `answer` gives status and body. Set `broken` to have it answer that instead."""

    def __init__(self) -> None:
        self.broken: tuple[int, bytes, dict[str, str]] | None = None
        self.asked: list[tuple[str, str, bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        raise LookupError(path)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                standin.asked.append((self.command, self.path, body))
                if standin.broken is not None:
                    status, content, headers = standin.broken
                else:
                    status, answer = standin.answer(self.command, self.path, self.headers, body)
                    content, headers = json.dumps(answer).encode(), {}
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_request

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

        return Handler


class VaultStandIn(StandIn):
    """Transit at `transit/`, one key `shellwego` of type aes256-gcm96."""

    def __init__(self) -> None:
        super().__init__()
        self.versions = [AESGCM(secrets.token_bytes(32))]
        self.minimum = 1

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("X-Vault-Token") != TOKEN:
            return 403, {"errors": ["permission denied"]}
        asked = json.loads(body) if body else {}
        match method, path.removeprefix("/v1/transit/"):
            case "GET", "keys/shellwego":
                return 200, {"data": {"latest_version": len(self.versions), "min_decryption_version": self.minimum}}
            case "POST", "keys/shellwego/rotate":
                self.versions.append(AESGCM(secrets.token_bytes(32)))
                return 200, {"data": {}}
            case "POST", "keys/shellwego/config":
                self.minimum = asked["min_decryption_version"]
                return 200, {"data": {}}
            case "POST", "encrypt/shellwego":
                return 200, {"data": self._encrypted(asked)}
            case "POST", "decrypt/shellwego":
                return self._decrypted(asked)
        return 404, {"errors": []}

    def _encrypted(self, asked: Mapping[str, str]) -> Any:
        nonce, number = secrets.token_bytes(12), len(self.versions)
        plain, bound = (base64.b64decode(asked[name]) for name in ("plaintext", "associated_data"))
        sealed = base64.b64encode(nonce + self.versions[-1].encrypt(nonce, plain, bound)).decode()
        return {"ciphertext": f"vault:v{number}:{sealed}", "key_version": number}

    def _decrypted(self, asked: Mapping[str, str]) -> tuple[int, Any]:
        number = int(asked["ciphertext"].split(":")[1][1:])
        if number < self.minimum:
            return 400, {"errors": ["ciphertext or signature version is disallowed by policy (too old)"]}
        try:
            sealed = base64.b64decode(asked["ciphertext"].split(":")[2], validate=True)
            bound = base64.b64decode(asked["associated_data"])
            plain = self.versions[number - 1].decrypt(sealed[:12], sealed[12:], bound)
        except (InvalidTag, ValueError):
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}


class AwsStandIn(StandIn):
    """Keys by ARN, `alias/shellwego` for the newest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, AESGCM] = {}
        self.add_key()

    def add_key(self) -> None:
        """A new key, which the alias means from now on."""
        arn = f"arn:aws:kms:{REGION}:111122223333:key/{len(self.keys) + 1:08}"
        self.keys[arn] = AESGCM(secrets.token_bytes(32))

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        signed = {name: headers[name] for name in ("Content-Type", "Host", "X-Amz-Target")}
        wanted = sign(CREDENTIALS, Place(REGION, "kms"), NOW, method=method, path=path, headers=signed, body=body)
        if any(headers.get(name) != value for name, value in wanted.items()):
            return 400, {"__type": "InvalidSignatureException", "message": "no"}
        asked = json.loads(body)
        arn = list(self.keys)[-1] if asked["KeyId"] == "alias/shellwego" else asked["KeyId"]
        if arn not in self.keys:
            return 400, {"__type": "NotFoundException", "message": "no such key"}
        match headers["X-Amz-Target"]:
            case "TrentService.DescribeKey":
                return 200, {"KeyMetadata": {"Arn": arn}}
            case "TrentService.Encrypt":
                return 200, self._encrypted(arn, asked)
            case "TrentService.Decrypt":
                return self._decrypted(arn, asked)
        return 400, {"__type": "UnknownOperationException"}

    def _encrypted(self, arn: str, asked: Mapping[str, Any]) -> Any:
        nonce = secrets.token_bytes(12)
        sealed = nonce + self.keys[arn].encrypt(nonce, base64.b64decode(asked["Plaintext"]), _context(asked))
        return {"CiphertextBlob": base64.b64encode(sealed).decode(), "KeyId": arn}

    def _decrypted(self, arn: str, asked: Mapping[str, Any]) -> tuple[int, Any]:
        sealed = base64.b64decode(asked["CiphertextBlob"])
        try:
            plain = self.keys[arn].decrypt(sealed[:12], sealed[12:], _context(asked))
        except (InvalidTag, ValueError):
            return 400, {"__type": "com.amazonaws.kms#InvalidCiphertextException"}
        return 200, {"Plaintext": base64.b64encode(plain).decode(), "KeyId": arn}


def _context(asked: Mapping[str, Any]) -> bytes:
    context = asked["EncryptionContext"]
    if not all(context.values()):
        raise ValueError("AWS takes no empty value")
    return json.dumps(context, sort_keys=True).encode()
