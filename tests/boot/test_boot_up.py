"""The start of the platform, as far as it goes without root."""

from __future__ import annotations

import os
import subprocess
import sys

_LOOK = """
import os, sys
from shellwego.boot import preflight
from shellwego.main import main

def look():
    print(os.path.exists(f"/proc/self/fd/{left}"))
    sys.exit()

left = sys.argv.pop()
sys.argv = ["swg", "up"]
preflight.check_root = look
main()
"""


def test_what_the_starter_left_open_is_closed() -> None:
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-c", _LOOK, str(reading)]
        done = subprocess.run(command, pass_fds=[reading], check=True, capture_output=True, text=True, timeout=60)
    finally:
        os.close(reading)
        os.close(writing)
    assert done.stdout == "False\n"
