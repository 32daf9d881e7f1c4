"""Room on the host's disk for snapshots that are being made.

Theory. A tenant says when his VM sleeps, and what it has in memory; so without a bound he could fill the disk that all
VMs of the host write to. Whoever makes a snapshot claims first what it may come to. What several have claimed counts
together until each is done, also the part that lies on the disk by then: so near the end of the disk one may be refused
that would just have fitted, and can be tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plasmavmc.errors import CapacityError
from plasmavmc.types import MIB

RESERVE_BYTES = 512 * MIB
"""Left for the VMs that run, for logs and records."""


class Room:
    """What is claimed on one host."""

    def __init__(self) -> None:
        self._claimed = 0

    @contextmanager
    def claim(self, wanted: int, free: int) -> Iterator[None]:
        """Have so many bytes for the block, of those that are free on the disk.

        Raises:
            CapacityError: `disk-full`, there are not so many left.
        """
        left = free - self._claimed - RESERVE_BYTES
        if wanted > left:
            raise CapacityError(
                "disk-full",
                f"the snapshot may have {wanted // MIB} MiB, and there is room for {max(left, 0) // MIB} MiB",
                resolution="Free space, give the data directory a larger disk, or wait until other snapshots are made.",
            )
        self._claimed += wanted
        try:
            yield
        finally:
            self._claimed -= wanted
