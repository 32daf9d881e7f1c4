"""What the unprivileged side may have root do with ZFS, as values.

An installation has one dataset of its own below the one that the operator named, and all orders are for children of it, by
their last name: a volume's id, or a snapshot's with `VIEW` where that is looked at. Nothing is ever renamed: zfs-fuse
unmounts what was cloned from it then, which may be in use.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from plasmavmc.errors import HostError

VIEW = ".view"
SIZE_PROPERTY, SEALED_PROPERTY, WHOLE_PROPERTY = "shellwego:size", "shellwego:sealed", "shellwego:whole"
"""Of a volume: its size in bytes; `yes` where what is stored is ciphertext; `yes` or `receiving` from when it is made
until it goes. A snapshot has the size of its time."""
LOOK_PROPERTIES = ("referenced", "available", "origin", "defer_destroy", SIZE_PROPERTY, SEALED_PROPERTY, WHOLE_PROPERTY)
"""What `zfs_look` tells."""
MAX_DATASET = 128

_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.:-]*)*")


class _Order(msgspec.Struct, forbid_unknown_fields=True, tag=str.lower):
    child: str


class ZfsCreate(_Order):
    """Make a dataset, mounted, and the caller's user's."""

    size_bytes: int
    sealed: bool


class ZfsClone(_Order):
    """Make a dataset of a snapshot, mounted; `whole` writes down with the same that it is made."""

    snapshot: str
    target: str
    size_bytes: int
    sealed: bool
    whole: bool


class ZfsSnapshot(_Order):
    """Keep a dataset as it is."""

    snapshot: str
    size_bytes: int


class ZfsResize(_Order):
    """Write down another size."""

    size_bytes: int


class ZfsMark(_Order):
    """Write down that it is made; that its own content is given up, until it is marked anew; or that it is to go."""

    whole: Literal["yes", "receiving", "no"]


class ZfsMount(_Order):
    """Have it mounted; one that is stays so."""


class ZfsRollback(_Order):
    """Make a dataset what it was in its youngest snapshot, which this one must be. It is mounted afterwards."""

    snapshot: str


class ZfsPromote(_Order):
    """Let a clone have the snapshot that it was made of, and those before it."""


class ZfsDestroy(_Order):
    """Remove a dataset that has no snapshots."""


class ZfsDestroySnapshot(_Order):
    """Remove a snapshot, once nothing needs it any more."""

    snapshot: str


ZfsOrder = (
    ZfsCreate
    | ZfsClone
    | ZfsSnapshot
    | ZfsResize
    | ZfsMark
    | ZfsMount
    | ZfsRollback
    | ZfsPromote
    | ZfsDestroy
    | ZfsDestroySnapshot
)


def check_dataset(dataset: str) -> str:
    """Return the name that an operator gave if it can be that of a dataset.

    Raises:
        HostError: `bad-zfs-dataset`.
    """
    if len(dataset) > MAX_DATASET or not _DATASET.fullmatch(dataset):
        raise HostError(
            "bad-zfs-dataset",
            f"{dataset!r:.160} is not the name of a ZFS dataset",
            resolution="Give one like tank/shellwego, as zfs list shows it.",
        )
    return dataset
