"""How a command ends: the exit status that scripts look at, and the one sentence that people read."""

from __future__ import annotations

from typing import NoReturn

import click

from chunkfarm import errors
from chunkfarm.errors import FarmError
from chunkfarm.links.lines import LinkLost

DONE = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NOT_ALLOWED = 4
NOBODY_ANSWERED = 5
NO_WRITES = 6


class NobodyAnswered(FarmError):
    """No listed server could be talked to in time."""

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


def give_up(error: FarmError | OSError) -> NoReturn:
    """Say what went wrong, and end."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        sentence = f"{name}{error.strerror or error}"
    else:
        sentence = error.sentence
    click.echo(f"chunkfarm: {sentence}", err=True)
    raise click.exceptions.Exit(status_of(error))
