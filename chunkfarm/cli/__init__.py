"""The `chunkfarm` command: an operator's and a user's way to a running farm."""

from __future__ import annotations

import contextlib
import os
import sys

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


def main() -> None:
    """Run the command with the arguments of this process."""
    try:
        # Not at the top: who only wants a part of the package need not load the terminal's libraries. And to load
        # them takes long enough for somebody to think better of it.
        from chunkfarm.cli.commands import chunkfarm

        chunkfarm(prog_name="chunkfarm")
    except KeyboardInterrupt:
        sys.stderr.write("chunkfarm: interrupted\n")
        _end_at_once()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end_at_once()
        raise


def _end_at_once() -> None:
    """Wait for no thread: one may wait for an answer, on a terminal or from a pipe, that nobody will give."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)
