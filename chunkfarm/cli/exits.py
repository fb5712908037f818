"""How a command ends: the exit status that scripts look at, and the one sentence that people read."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, NoReturn

import click

from chunkfarm import errors
from chunkfarm.cli import INTERRUPTED as INTERRUPTED
from chunkfarm.cli.screen import say
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import LinkLost

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NOT_ALLOWED = 4
NOBODY_ANSWERED = 5
NO_WRITES = 6
NOBODY_READS = 141
"""128 and the number of SIGPIPE."""

MEANINGS = {
    DONE: "done",
    FAILED: "failed; a sentence on the standard error says why",
    USAGE: "wrong usage",
    NOT_FOUND: "not found",
    NOT_ALLOWED: "not allowed, or without a key",
    NOBODY_ANSWERED: "nobody answered in time, or nobody who has what was asked for",
    NO_WRITES: "no writes now: no majority of the masters, or no room",
    INTERRUPTED: "interrupted with Ctrl-C",
    NOBODY_READS: "nobody reads the output any more",
}
"""What each exit status says."""


class NobodyAnswered(FarmError):
    """No listed server could be talked to in time, or none that could tell what was asked for."""

    code = "busy"
    http_status = 503


class NoKey(FarmError):
    """There is no key to show."""

    code = "auth"
    http_status = 401


_STATUS: tuple[tuple[type[FarmError], int], ...] = (
    (NobodyAnswered, NOBODY_ANSWERED),
    (LinkLost, NOBODY_ANSWERED),
    (errors.NotFound, NOT_FOUND),
    (NoKey, NOT_ALLOWED),
    (errors.AuthenticationFailed, NOT_ALLOWED),
    (errors.Denied, NOT_ALLOWED),
    (errors.ReadOnly, NO_WRITES),
    (errors.Waiting, NO_WRITES),
    (errors.Busy, NO_WRITES),
    (errors.Full, NO_WRITES),
)


def status_of(error: BaseException) -> int:
    """The exit status for an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), FAILED)


def interrupted() -> NoReturn:
    """End as somebody who was told to with Ctrl-C."""
    click.echo("chunkfarm: interrupted", err=True)
    raise click.exceptions.Exit(INTERRUPTED)


def nobody_reads() -> NoReturn:
    """End without a word: whoever read the output, such as `head`, has had enough."""
    _leave_output()
    raise click.exceptions.Exit(NOBODY_READS)


def _leave_output() -> None:
    """Have the rest of the output go nowhere: what still is in a buffer would be complained about at the very end."""
    with contextlib.suppress(OSError, ValueError):
        number = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


OUTPUT = "the standard output"
_NOT_WRITTEN = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}
"""Why output is not taken: it goes to a disk that is full, or fails."""


def _output_lost(error: OSError) -> NoReturn:
    """End because of an error that nothing else has put into words."""
    if error.errno in _NOT_WRITTEN:
        error = naming(error, OUTPUT)
    elif error.errno == errno.EBADF:
        error = naming(error, "the standard input or output")
    if isinstance(error, BrokenPipeError) or not error.filename:
        # This is a fault of the program, which shows where it comes from; a pipe that breaks is for click.
        raise error
    _leave_output()
    give_up(error)


class Commands(click.Group):
    """A group of commands that end, when they are interrupted or nobody takes what they say, as people expect."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        # Where --help and --version are answered.
        try:
            return super().make_context(*args, **kwargs)
        except OSError as error:
            _output_lost(error)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            interrupted()
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                interrupted()
            # The answer to a question was no, or an end of file.
            click.echo("chunkfarm: nothing was done", err=True)
            raise click.exceptions.Exit(FAILED) from None
        except BrokenPipeError:
            nobody_reads()
        except FarmError as error:
            # An answer that lacks what it should say is read where it is shown.
            give_up(error)
        except OSError as error:
            _output_lost(error)


def naming(error: OSError, name: str) -> OSError:
    """The error, which says what it is about if it did not."""
    return error if error.filename else type(error)(error.errno, error.strerror, name)


def give_up(error: FarmError | OSError) -> NoReturn:
    """Say what went wrong, and end."""
    if isinstance(error, BrokenPipeError):
        nobody_reads()
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        sentence = f"{name}{error.strerror or error}"
        if error.filename == OUTPUT:
            _leave_output()
    else:
        sentence = error.sentence
    say(f"chunkfarm: {sentence}", err=True)
    raise click.exceptions.Exit(status_of(error))
