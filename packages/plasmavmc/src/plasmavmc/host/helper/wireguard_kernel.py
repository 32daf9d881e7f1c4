"""WireGuard by the kernel, over netlink.

Keys are the kernel's: a device keeps them as long as it exists, and gives the private one to root alone.

Traps:
- The library writes one peer in each message, and what it reads of one device's peers may come in several messages.
- Keys come back as bytes.

Source: wireguard.h (uapi/linux), pyroute2's netlink.generic.wireguard.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from socket import if_nametoindex
from typing import Any

from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.errors import HostError
from plasmavmc.host.helper.tunnel_device import prepare_tunnel
from plasmavmc.host.helper.wireguard_device import KEEPALIVE_S, Change, End, Sight
from plasmavmc.host.helper.wireguard_uapi import port_taken

KIND = "wireguard"
_LACKING = (errno.EOPNOTSUPP, errno.ENOENT, errno.EPERM)
_NANO = 1e-9


def available(ip: IPRoute, trial: str) -> bool:
    """Whether the kernel has it; tried out on a device of that name."""
    try:
        ip.link("add", ifname=trial, kind=KIND)
    except NetlinkError as error:
        if error.code in _LACKING:
            return False
        raise
    ip.link("del", index=if_nametoindex(trial))
    return True


class WireguardKernel:
    """`Devices` of the kernel's."""

    name = "kernel"

    def __init__(self, ip: IPRoute) -> None:
        self._ip = ip

    def ensure(self, device: str) -> bool:
        with suppress(OSError):
            self._ip.link("set", index=if_nametoindex(device), state="up")
            return True
        self._ip.link("add", ifname=device, kind=KIND)
        prepare_tunnel(self._ip, device)
        return False

    def look(self, device: str) -> Sight:
        with WireGuard() as link:
            return sight_of([dict(message["attrs"]) for message in link.info(device)])

    def change(self, device: str, change: Change) -> None:
        """Its port is taken when it comes up, or at once where it is."""
        try:
            with WireGuard() as link:
                if change.private_key or change.port:
                    link.set(device, private_key=change.private_key or None, listen_port=change.port or None)
                for key in change.gone:
                    link.set(device, peer={"public_key": key, "remove": True})
                for key, end in change.ends.items():
                    link.set(device, peer=words_of(key, end))
            self._ip.link("set", index=if_nametoindex(device), state="up")
        except NetlinkError as error:
            if error.code == errno.EADDRINUSE:
                raise port_taken(change.port) from error
            raise

    def remove(self, device: str) -> None:
        with suppress(OSError):
            self._ip.link("del", index=if_nametoindex(device))


def words_of(key: str, end: End) -> dict[str, object]:
    """An end in the library's words."""
    return {
        "public_key": key,
        "endpoint_addr": str(end.address),
        "endpoint_port": end.port,
        "persistent_keepalive": KEEPALIVE_S,
        "replace_allowed_ips": True,
        "allowed_ips": [str(network) for network in end.networks],
    }


def sight_of(messages: list[Mapping[str, Any]]) -> Sight:
    """What the kernel's answer tells.

    Raises:
        HostError: `wireguard-answer`, it is none.
    """
    private, port = "", 0
    handshakes: dict[str, float] = {}
    try:
        for attributes in messages:
            private = _text(attributes.get("WGDEVICE_A_PRIVATE_KEY", b"")) or private
            port = int(attributes.get("WGDEVICE_A_LISTEN_PORT", port))
            for end in attributes.get("WGDEVICE_A_PEERS", ()):
                told = dict(end["attrs"])
                time = told.get("WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": 0, "tv_nsec": 0})
                handshakes[_text(told["WGPEER_A_PUBLIC_KEY"])] = time["tv_sec"] + time["tv_nsec"] * _NANO
    except (KeyError, TypeError, ValueError) as error:
        raise HostError("wireguard-answer", "the kernel says of WireGuard what nobody can read") from error
    return Sight(private, port, handshakes)


def _text(key: object) -> str:
    """A key as it comes: text, bytes, or a record that has them as its value."""
    value = key.get("value", b"") if isinstance(key, Mapping) else key
    return value.decode() if isinstance(value, bytes) else str(value)
