"""Who gets in: sockets that the kernel keeps, and TCP by certificates alone."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from plasmavmc.cli.ends import failure_of
from plasmavmc.errors import (
    ForbiddenError,
    HostError,
    InvalidSpecError,
    NotFoundError,
    PlasmaError,
    UnauthenticatedError,
    UnavailableError,
)
from plasmavmc.rpc import opening
from plasmavmc.rpc.client import ClientTls, connect
from plasmavmc.rpc.gate import Gate
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from plasmavmc.server.authorizer import PolicyAuthorizer
from plasmavmc.server.identity import by_certificate, by_socket
from plasmavmc.server.settings import ServerTls, parse_address
from plasmavmc.server.transport import listen_tls, listen_unix, socket_of
from tests.forks import in_child
from tests.rpc.rpc_rig import TOKENS, RpcRig, running

ALICE, BOB = 61_001, 61_002
REFUSED = 13
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


def connects(path: Path, uid: int) -> bool:
    """Whether a process of this user may open the socket; asked of the kernel, in a child."""

    def ask() -> int:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
            try:
                ours.connect(os.fspath(path))
            except PermissionError:
                return REFUSED
        return 0

    code = in_child(ask)
    assert code in (0, REFUSED)
    return code == 0


@as_root
async def test_a_socket_lets_in_its_own_user_and_no_other(rig: RpcRig) -> None:
    path = socket_of(rig.socket, ALICE)
    assert path.name == f"s-{ALICE}.sock"
    rig.socket.parent.chmod(0o711)
    gate = Gate(by_socket(rig.policy, ALICE), PolicyAuthorizer(rig.policy))
    server = listen_unix(path, ALICE, gate, rig.services.enter)
    await server.start()
    try:
        assert connects(path, ALICE)
        assert not connects(path, BOB)
        assert connects(path, 0)
        assert not connects(rig.socket, ALICE)
        assert connects(rig.socket, 0)
        assert stat.S_IMODE(rig.socket.stat().st_mode) == 0o600
    finally:
        await server.stop(0)


@as_root
async def test_whoever_comes_by_a_users_socket_is_that_user() -> None:
    async with running() as rig:
        rig.policy_path.write_text(
            f'[[principals]]\nname = "alice"\nunix_uid = {ALICE}\n'
            'grants = [{ role = "operator", org = "acme", project = "web" }]\n'
        )
        rig.policy.reload()
        gate = Gate(by_socket(rig.policy, ALICE), PolicyAuthorizer(rig.policy))
        server = listen_unix(socket_of(rig.socket, ALICE), ALICE, gate, rig.services.enter)
        await server.start()
        async with connect(f"unix:{socket_of(rig.socket, ALICE)}") as alice, rig.client() as root:
            made = await alice.vms.create(rig.spec())
            assert made.spec.scope.org == "acme"
            with pytest.raises(NotFoundError):
                await alice.nodes.get()
            with pytest.raises(UnauthenticatedError, match="user 0 is not in the server's policy"):
                await root.vms.get("vm_one")
        await server.stop(0)


async def test_a_token_stands_above_the_socket_and_a_wrong_one_is_not_passed_over(rig: RpcRig) -> None:
    async with rig.client("viewer") as client:
        with pytest.raises(ForbiddenError, match="viewer may not"):
            await client.vms.create(rig.spec())
    async with grpc.aio.insecure_channel(rig.address) as channel:
        good = f"Bearer {TOKENS['operator']}"
        for header in ("Bearer ", "Bearer wrong", "Basic abc", TOKENS["operator"], f"Bearer {'x' * 600}"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest(), metadata=(("authorization", header),))
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError):
            await VmServiceStub(channel).ListVms(
                vm_pb2.ListVmsRequest(), metadata=(("authorization", good), ("authorization", good))
            )
        await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest(), metadata=(("authorization", good),))


async def test_a_socket_that_is_served_is_not_taken_and_a_dead_one_is(rig: RpcRig, tmp_path: Path) -> None:
    gate = Gate(by_socket(rig.policy, 0), PolicyAuthorizer(rig.policy))
    with pytest.raises(HostError) as refused:
        listen_unix(rig.socket, 0, gate, rig.services.enter)
    assert refused.value.code == "socket-taken"
    dead = rig.socket.with_name("dead.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as old:
        old.bind(os.fspath(dead))
    server = listen_unix(dead, 0, gate, rig.services.enter)
    await server.start()
    async with connect(f"unix:{dead}") as client:
        await client.nodes.get()
    await server.stop(0)
    file = rig.socket.with_name("file")
    file.write_text("precious")
    with pytest.raises(HostError):
        listen_unix(file, 0, gate, rig.services.enter)
    assert file.read_text() == "precious"
    with pytest.raises(HostError, match="more than 107 bytes"):
        listen_unix(tmp_path / ("x" * 108), 0, gate, rig.services.enter)


async def test_a_client_is_told_at_once_what_keeps_it_out(tmp_path: Path) -> None:
    async def failure(address: str, tls: ClientTls | None = None) -> PlasmaError:
        with pytest.raises(PlasmaError) as refused:
            async with connect(address, tls=tls, timeout_s=5):
                pass
        return refused.value

    absent = await failure(f"unix:{tmp_path}/none.sock")
    assert isinstance(absent, UnavailableError)
    assert "plasmavmc serve" in absent.resolution
    assert isinstance(await failure("nonsense"), InvalidSpecError)
    plain = await failure("127.0.0.1:50082")
    assert isinstance(plain, InvalidSpecError)
    assert "certificates only" in str(plain)
    missing = ClientTls(tmp_path / "c", tmp_path / "k", tmp_path / "a")
    assert (await failure("127.0.0.1:50082", missing)).code == "tls-files"


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:65536"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(InvalidSpecError):
        parse_address(address)


# TLS


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a directory, by the openssl command."""

    directory: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.crt"

    def make(self) -> Authority:
        key = self._key(self.name)
        self._openssl(
            "req", "-x509", "-new", "-key", key, "-subj", f"/CN={self.name}", "-days", "2", "-out", self.certificate
        )
        return self

    def issue(self, name: str, subject: str, *, days: int = 2) -> tuple[Path, Path]:
        """A certificate and its key, for `localhost` and 127.0.0.1."""
        key, request, certificate = self._key(name), self.directory / f"{name}.csr", self.directory / f"{name}.crt"
        extensions = self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._openssl("req", "-new", "-key", key, "-subj", subject, "-out", request)
        authority = ("-CA", self.certificate, "-CAkey", self.directory / f"{self.name}.key", "-CAcreateserial")
        self._openssl(
            "x509", "-req", "-in", request, *authority, "-days", days, "-extfile", extensions, "-out", certificate
        )
        return certificate, key

    def _key(self, name: str) -> Path:
        key = self.directory / f"{name}.key"
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        return key

    def _openssl(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@asynccontextmanager
async def over_tls(directory: Path) -> AsyncIterator[tuple[RpcRig, Authority, str]]:
    """A server on a loopback port, whose policy knows CN=ci,O=Acme."""
    authority = Authority(directory, "authority").make()
    certificate, key = authority.issue("server", "/CN=server")
    tls = ServerTls(certificate.read_bytes(), key.read_bytes(), authority.certificate.read_bytes())
    async with running() as rig:
        rig.policy_path.write_text(
            '[[principals]]\nname = "ci"\ncertificate_subject = "CN=ci,O=Acme"\n'
            'grants = [{ role = "operator", org = "acme", project = "web" }]\n'
        )
        rig.policy.reload()
        gate = Gate(by_certificate(rig.policy), PolicyAuthorizer(rig.policy))
        server, port = listen_tls("127.0.0.1:0", tls, gate, rig.services.enter)
        await server.start()
        try:
            yield rig, authority, f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


async def test_a_client_certificate_says_who_calls(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (rig, authority, address):
        ours = ClientTls(*authority.issue("ci", "/O=Acme/CN=ci"), authority.certificate)
        async with connect(address, tls=ours) as client:
            assert (await client.vms.create(rig.spec())).spec.id == "vm_one"
        other = ClientTls(*authority.issue("eve", "/O=Acme/CN=eve"), authority.certificate)
        async with connect(address, tls=other) as client:
            with pytest.raises(UnauthenticatedError, match="CN=eve,O=Acme"):
                await client.vms.get("vm_one")


async def test_nobody_gets_in_without_a_certificate_of_the_authority(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (_rig, authority, address):
        stranger = Authority(tmp_path, "stranger").make()
        forged = ClientTls(*stranger.issue("forged", "/O=Acme/CN=ci"), authority.certificate)
        with pytest.raises(UnavailableError):
            async with connect(address, tls=forged, timeout_s=3):
                pass
        host, port = parse_address(address)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
                await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest(), timeout=3)
        assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        naked = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        with pytest.raises(grpc.aio.AioRpcError):
            async with grpc.aio.secure_channel(address, naked) as channel:
                await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest(), timeout=3)


async def test_who_connects_and_says_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "HANDSHAKE_S", 0.5)
    async with over_tls(tmp_path) as (_rig, _authority, address):
        reader, writer = await asyncio.open_connection(*parse_address(address))
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_files_that_are_no_certificates_are_told_by_name_before_anything_is_dialled(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca").make()
    certificate, key = authority.issue("ci", "/O=Acme/CN=ci")
    for text in ("", "[settings]\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        wrong = tmp_path / "wrong"
        wrong.write_text(text)
        with pytest.raises(InvalidSpecError, match=f"tls.authority: {wrong} holds no certificate"):
            async with connect("127.0.0.1:1", tls=ClientTls(None, None, wrong)):
                pass
        with pytest.raises(InvalidSpecError, match=f"tls.certificate: {wrong} is no certificate"):
            async with connect("127.0.0.1:1", tls=ClientTls(wrong, key, authority.certificate)):
                pass
    _, other = authority.issue("other", "/O=Acme/CN=other")
    with pytest.raises(InvalidSpecError, match=f"unencrypted key {other}"):
        async with connect("127.0.0.1:1", tls=ClientTls(certificate, other, authority.certificate)):
            pass
    assert failure_of(InvalidSpecError("tls.authority", "x holds none")).format_message() == "--tls-ca: x holds none"


async def test_a_client_does_not_speak_to_a_server_of_another_authority(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (_rig, authority, address):
        stranger = Authority(tmp_path, "stranger").make()
        fooled = ClientTls(*authority.issue("ci", "/O=Acme/CN=ci"), stranger.certificate)
        with pytest.raises(UnavailableError):
            async with connect(address, tls=fooled, timeout_s=3):
                pass


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (rig, authority, address):
        certificate, key = authority.issue("second", "/CN=server")
        tls = ServerTls(certificate.read_bytes(), key.read_bytes(), authority.certificate.read_bytes())
        gate = Gate(by_certificate(rig.policy), PolicyAuthorizer(rig.policy))
        with pytest.raises(HostError, match="cannot listen"):
            listen_tls(address, tls, gate, rig.services.enter)
