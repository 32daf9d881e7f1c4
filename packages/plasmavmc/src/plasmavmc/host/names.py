"""The names that an installation's things carry on the host. Pure.

Theory. Several installations share one host, and a sweep must tell at a glance what is whose: every interface, table,
cgroup, directory and VMM process carries the installation's key, or, where 15 bytes do not hold it, its code (the key's
first four characters). All names begin with `swg`; what does not is never ours. Base32 has neither `-` nor `_`, so a
name takes apart in one way only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from plasmavmc.host.rotation import SLOTS
from plasmavmc.types import vm_key

RUN_ROOT = Path("/run/shellwego")
KEY = re.compile(r"[a-z2-7]{12}")
CODE_OF_LINK = re.compile(r"swg([a-z2-7]{4}).*")
"""The code in an interface's name that follows our scheme."""
GUEST_MEMORY = "swg-guest"
"""The memfd that a restored guest's memory lies in; the platform makes and fills it."""
MEMORY_NAMES = frozenset({"memory-backend-memfd", GUEST_MEMORY})
"""Memfds that hold a guest's memory, by the name they were created with; the first is QEMU's own."""
_SHAPER = "+"
_CGROUP = re.compile(r"[a-z][a-z0-9]{0,31}")


def installation_key(installation_id: str) -> str:
    """The host-side short name of an installation: 12 characters, as of a VM."""
    return vm_key(installation_id)


def tap_name(code: str, key: str) -> str:
    """The tap of VM `key`: exactly the 15 bytes that an interface name may have."""
    return f"swg{code}{key[:8]}"


def shaper_name(tap: str) -> str:
    """The device by which what comes in at a tap is sent round. A `+` is in no key, so it is no tap's name; the key's
    last character gives way to it."""
    return f"{tap[:-1]}{_SHAPER}"


def is_shaper(link: str) -> bool:
    """Whether a link of ours is such a device."""
    return link.endswith(_SHAPER)


def is_key(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return KEY.fullmatch(text) is not None


def is_cgroup_name(text: str) -> bool:
    """Whether a child cgroup other than a VM's may be called so (`vm-…` cannot, for its dash)."""
    return _CGROUP.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class HostNames:
    """The names of one installation, all derived from its key."""

    key: str

    @classmethod
    def of(cls, installation_id: str) -> HostNames:
        return cls(installation_key(installation_id))

    @property
    def code(self) -> str:
        return self.key[:4]

    @property
    def bridge(self) -> str:
        return f"swg{self.code}br"

    @property
    def tunnel(self) -> str:
        """The device that leads to other nodes where the hosts' own network does not."""
        return f"swg{self.code}vx"

    def encrypted(self, slot: int) -> str:
        """One of the two devices of WireGuard (`host.rotation`)."""
        return f"swg{self.code}w{slot}"

    @property
    def tunnels(self) -> tuple[str, ...]:
        """All devices that lead to other nodes."""
        return (self.tunnel, *(self.encrypted(slot) for slot in SLOTS))

    @property
    def table(self) -> str:
        """The nftables tables (one of family inet, one of family bridge)."""
        return f"swg_{self.key}"

    @property
    def limits_table(self) -> str:
        """The nftables table (of family inet) in which connections are counted."""
        return f"{self.table}_limits"

    @property
    def cgroup(self) -> str:
        """The parent cgroup; its children are `vm-<uid>` and those of `cgroup_place`."""
        return f"swg-{self.key}"

    @property
    def link_prefix(self) -> str:
        return f"swg{self.code}"

    def tap(self, key: str) -> str:
        return tap_name(self.code, key)

    def is_tap(self, name: str) -> bool:
        """Whether a link is a VM's tap of this installation, by its name."""
        return re.fullmatch(rf"{self.link_prefix}[a-z2-7]{{8}}", name) is not None

    def vm_cgroup(self, uid: int) -> str:
        """Of the VM with this uid."""
        return f"vm-{uid}"

    def keyed_cgroup(self, key: str) -> str:
        """Of a VM that an older version started."""
        return f"vm-{key}"

    def process(self, key: str) -> str:
        """The value of a VMM's `-name`, by which a sweep knows its process even where there are no cgroups."""
        return f"swg-{self.key}-{key}"

    @property
    def dataset(self) -> str:
        """The last name of the ZFS dataset whose children are volumes."""
        return f"swg-{self.key}"

    def run_dir(self, root: Path = RUN_ROOT) -> Path:
        return root / self.key
