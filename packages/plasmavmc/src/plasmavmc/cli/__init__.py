"""The command `plasmavmc`: a microVM as a container engine's command has a container. One noun a file.

What a command needs is imported when it runs, so that `--help` is quick: at its top a module here imports click, the
standard library and its neighbours alone.
"""

from plasmavmc.cli.root import main

__all__ = ["main"]
