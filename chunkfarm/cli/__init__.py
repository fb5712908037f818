"""The `chunkfarm` command: an operator's and a user's way to a running farm."""

from __future__ import annotations

import contextlib
import os
import sys

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


def main() -> None:
    """Run the command with the arguments of this process."""
    _have_streams()
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


def _have_streams() -> None:
    """Put something in the place of each standard stream that whoever started this has closed (`<&-`, `>&-`).

    Else a file or a connection would get its number, and be written to in its place. Reading such an input, or writing
    such an output, fails, so that nobody takes nothing for what was asked for; complaints go nowhere.
    """
    for number, (name, direction, mode) in enumerate(
        (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_RDWR, "w"))
    ):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, direction)
            setattr(sys, name, open(number, mode, closefd=False, encoding="utf-8"))  # noqa: SIM115 - to the very end


def _end_at_once() -> None:
    """Wait for no thread: one may wait for an answer, on a terminal or from a pipe, that nobody will give."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)
