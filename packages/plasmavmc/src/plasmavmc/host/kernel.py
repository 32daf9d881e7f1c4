"""What the host's kernel was built with, as far as it tells: for people, before anything is tried.

A kernel tells its configuration in /proc/config.gz, or its distribution beside it in /boot. Where neither is to be read
nothing is known.
"""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

CONNECTION_OPTIONS = ("NETFILTER_CONNCOUNT", "NFT_CONNLIMIT", "NFT_LIMIT")
"""By which VMs are held to so many connections."""
LIMIT_OPTIONS = ("NET_SCH_TBF", "IFB", "NET_SCH_INGRESS", "NET_CLS_U32", "NET_ACT_MIRRED")
"""What `host.helper.shaping` needs."""
_OWN = Path("/proc/config.gz")
_BOOT = Path("/boot")


def kernel_configuration() -> str:
    """The configuration of the running kernel; empty where it cannot be read."""
    try:
        if _OWN.exists():
            return gzip.decompress(_OWN.read_bytes()).decode(errors="replace")
        return (_BOOT / f"config-{os.uname().release}").read_text(errors="replace")
    except OSError:
        return ""


def lacking(configuration: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the options that are neither built in nor a module."""
    return tuple(option for option in options if not re.search(rf"^CONFIG_{option}=[ym]$", configuration, re.MULTILINE))
