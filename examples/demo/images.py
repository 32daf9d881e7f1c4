"""Images for the demonstration, made on this host and kept in its cache: nothing is built twice."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HELLO = Path(__file__).parents[1] / "hello"
CACHE = Path(os.environ.get("SHELLWEGO_CACHE", "/var/cache/shellwego")) / "examples"
SUITE = "bookworm"
PACKAGES = "python3"
DPKG_OPTIONS = tuple(
    f"path-exclude={path}/*" for path in ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/var/lib/apt/lists")
)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _made(path: Path, command: list[str]) -> Path:
    """Run `command` with a temporary output name, then move it into place."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")  # others may be at it too
    result = subprocess.run([*command, str(fresh)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        fresh.unlink(missing_ok=True)
        sys.exit(f"demo: {command[0]} failed:\n{result.stderr[-2000:]}")
    fresh.replace(path)
    return path


def base() -> Path:
    """A root file system with Python, from the distribution's archive."""
    options = [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    command = [
        "mmdebstrap",
        "--variant=essential",
        f"--include={PACKAGES}",
        "--mode=root",
        "--format=tar",
        *options,
        SUITE,
    ]
    return _made(CACHE / f"base-{_key(*command)}.tar", command)


def hello(version: str, **environment: str) -> Path:
    """The sample app's image as an OCI-layout tar."""
    pairs = [f"{name}={value}" for name, value in sorted(environment.items())]
    sources = [(HELLO / name).read_text() for name in ("app.py", "build.py")]
    root = base()
    extra = [argument for pair in pairs for argument in ("--env", pair)]
    command = [sys.executable, str(HELLO / "build.py"), "--base", str(root), "--version", version, *extra, "--output"]
    return _made(CACHE / f"hello-{version}-{_key(root.name, version, *pairs, *sources)}.tar", command)
