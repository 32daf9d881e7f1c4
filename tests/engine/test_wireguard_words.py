"""What is said to WireGuard and understood of it, whoever that is."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import AsyncWireGuard, wgmsg

from plasmavmc.errors import HostError
from plasmavmc.host.helper import wireguard, wireguard_go, wireguard_kernel, wireguard_uapi
from plasmavmc.host.helper.cgroups import NoCgroups
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.wireguard_device import Change, End, Sight, draw_key, is_key, public_key
from plasmavmc.host.helper.wireguard_go import WireguardGo, tun_flags
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Reach, Underlay

ONE, TWO = (b64encode(bytes([number]) * 32).decode() for number in (1, 2))
END = End(IPv4Address("192.0.2.2"), 7085, (IPv4Network("10.64.16.0/20"), IPv6Network("fd00:0:0:1::/64")))
keys = st.binary(min_size=32, max_size=32).map(lambda raw: b64encode(raw).decode())


def test_a_change_is_an_order_that_takes_away_before_it_gives() -> None:
    """A network is one end's only: the new key of a node takes over what the old one had."""
    order = wireguard_uapi.words_of(Change(ONE, 7085, gone=(TWO,), ends={ONE: END}))
    assert order == (
        f"set=1\nprivate_key={'01' * 32}\nlisten_port=7085\n"
        f"public_key={'02' * 32}\nremove=true\n"
        f"public_key={'01' * 32}\nendpoint=192.0.2.2:7085\npersistent_keepalive_interval=25\n"
        "replace_allowed_ips=true\nallowed_ip=10.64.16.0/20\nallowed_ip=fd00:0:0:1::/64\n\n"
    )


def test_what_is_not_changed_is_not_said() -> None:
    assert wireguard_uapi.words_of(Change()) == "set=1\n\n"


@given(st.builds(Change, keys, st.integers(1, 65535), st.lists(keys).map(tuple)))
def test_an_order_ends_where_it_ends(change: Change) -> None:
    order = wireguard_uapi.words_of(change)
    assert order.index("\n\n") == len(order) - 2


def test_a_private_key_is_in_nothing_that_is_printed() -> None:
    assert ONE not in f"{Change(ONE)!r} {Sight(ONE)!r}"


def test_an_answer_tells_key_port_and_when_who_shook_hands() -> None:
    answer = (
        f"private_key={'01' * 32}\nlisten_port=7084\npublic_key={'02' * 32}\npreshared_key={'00' * 32}\n"
        f"endpoint=192.0.2.2:7084\nlast_handshake_time_sec=12\nlast_handshake_time_nsec=500000000\nallowed_ip=10.0.0.0/8\n"
        f"public_key={'03' * 32}\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"
    )
    three = b64encode(bytes([3]) * 32).decode()
    assert wireguard_uapi.sight_of(answer) == Sight(ONE, 7084, {TWO: 12.5, three: 0.0})
    assert wireguard_uapi.sight_of("") == Sight()


@pytest.mark.parametrize("line", ["private_key=01", "public_key=zz", "listen_port=", "last_handshake_time_sec=1"])
def test_an_answer_that_makes_no_sense_is_an_error(line: str) -> None:
    with pytest.raises(HostError) as caught:
        wireguard_uapi.sight_of(line)
    assert caught.value.code == "wireguard-answer"


@given(st.text())
def test_no_answer_is_more_than_an_error(text: str) -> None:
    try:
        wireguard_uapi.sight_of(text)
    except HostError as error:
        assert error.code == "wireguard-answer"  # noqa: PT017 - it may as well be understood


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[Path]:
    """Somebody who says the same to whatever he is told."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield path
        thread.join()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"errno=-22\n\n", "wireguard-refused"),
        (f"errno={errno.EADDRINUSE}\n\n".encode(), "port-taken"),
        (b"errno=\n\n", "wireguard-answer"),
        (b"listen_port=1\n\n", "wireguard-answer"),
        (b"errno=0", "wireguard-answer"),
        (b"", "wireguard-answer"),
    ],
)
def test_what_is_refused_or_broken_is_told(tmp_path: Path, answer: bytes, code: str) -> None:
    with answering(tmp_path / "s", answer) as path, pytest.raises(HostError) as caught:
        wireguard_uapi.converse(path, wireguard_uapi.LOOK)
    assert caught.value.code == code


def test_an_answer_comes_without_its_end_and_nobody_is_told_apart(tmp_path: Path) -> None:
    with answering(tmp_path / "s", b"listen_port=7084\nerrno=0\n\n") as path:
        assert wireguard_uapi.converse(path, wireguard_uapi.LOOK) == "listen_port=7084\n"
    with pytest.raises(HostError) as caught:
        wireguard_uapi.converse(tmp_path / "nobody", wireguard_uapi.LOOK)
    assert caught.value.code == "wireguard-silent"


def test_keys_are_drawn_and_have_one_form() -> None:
    one, other = draw_key(), draw_key()
    assert public_key(one) == public_key(one) != public_key(other)
    assert all(map(is_key, (one, other, public_key(one))))
    for text in ("", "a", "=" * 44, ONE + "\n", ONE[:-2] + "B=", ONE.replace("=", ""), "é" * 44):
        assert not is_key(text)


def test_the_kernel_is_told_an_end_in_its_own_words() -> None:
    """As the library puts them into a message, and as it reads them from one."""
    link = AsyncWireGuard.__new__(AsyncWireGuard)
    message = wgmsg()
    link._wg_set_peer(message, wireguard_kernel.words_of(TWO, END))
    message["attrs"] += [["WGDEVICE_A_PRIVATE_KEY", ONE], ["WGDEVICE_A_LISTEN_PORT", 7084]]
    message.encode()
    read = wgmsg(message.data)
    read.decode()
    assert wireguard_kernel.sight_of([dict(read["attrs"])]) == Sight(ONE, 7084, {TWO: 0.0})
    (end,) = read.get_attr("WGDEVICE_A_PEERS")
    assert [each["addr"] for each in end.get_attr("WGPEER_A_ALLOWEDIPS")] == ["10.64.16.0/20", "fd00:0:0:1::/64"]
    assert (end.get_attr("WGPEER_A_ENDPOINT")["addr"], end.get_attr("WGPEER_A_ENDPOINT")["port"]) == ("192.0.2.2", 7085)


def test_the_kernel_tells_of_its_ends_in_several_messages() -> None:
    handshake = {"tv_sec": 12, "tv_nsec": 500_000_000}
    ends = [
        {"attrs": [("WGPEER_A_PUBLIC_KEY", ONE.encode()), ("WGPEER_A_LAST_HANDSHAKE_TIME", handshake)]},
        {"attrs": [("WGPEER_A_PUBLIC_KEY", TWO.encode())]},
    ]
    first = {"WGDEVICE_A_PRIVATE_KEY": ONE.encode(), "WGDEVICE_A_LISTEN_PORT": 7084, "WGDEVICE_A_PEERS": ends[:1]}
    assert wireguard_kernel.sight_of([first, {"WGDEVICE_A_PEERS": ends[1:]}]) == Sight(ONE, 7084, {ONE: 12.5, TWO: 0.0})
    assert wireguard_kernel.sight_of([{}]) == Sight()
    with pytest.raises(HostError):
        wireguard_kernel.sight_of([{"WGDEVICE_A_PEERS": [{"attrs": []}]}])


def test_a_newer_program_gets_another_kind_of_device() -> None:
    assert tun_flags(b"an older one") == 0x0001
    assert tun_flags(b"..unsupported virtio GSO type..") == 0x0001 | 0x1000 | 0x4000


_FILTERED = """
import fcntl, socket, struct, sys
from plasmavmc.host.helper import seccomp
seccomp.install(seccomp.tunnel_filter(seccomp.own_calls()))
talk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(talk, 0x8922, struct.pack("16sI12x", b"no such device", 1400))
print(struct.unpack("16sI12x", fcntl.ioctl(talk, 0x8921, struct.pack("16sI12x", b"lo", 0)))[1])
try:
    talk.connect(("127.0.0.1", 9))
except PermissionError:
    print("refused")
"""


def test_a_filtered_program_sets_no_mtu_though_it_believes_so_and_connects_to_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _FILTERED], capture_output=True, text=True, timeout=20, check=True)
    mtu, connected = done.stdout.split()
    assert int(mtu) == int(Path("/sys/class/net/lo/mtu").read_text())
    assert connected == "refused"


class NoKernel:
    """The netlink of a host that knows no such kind of device, and has none."""

    def link(self, *_: object, **__: object) -> None:
        raise NetlinkError(errno.EOPNOTSUPP)

    def get_links(self) -> list[object]:
        return []


def test_a_host_on_which_nobody_encrypts_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wireguard_go, "PROGRAM", Path("/nonexistent/wireguard-go"))
    ip = cast(IPRoute, NoKernel())
    program = WireguardGo(ip, NoCgroups(), Uids(tmp_path / "uids", "i", range(1)), tmp_path)
    tunnels = wireguard.Tunnels(ip, HostNames.of("swg_words"), program, settle_s=0)
    with pytest.raises(HostError) as caught:
        tunnels.keep((), Reach(Underlay.WIREGUARD, port=7084))
    assert caught.value.code == "no-wireguard"
    assert "apt-get install wireguard-go" in caught.value.resolution
