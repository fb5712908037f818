"""What can go wrong that a user can be told: one class a code, one sentence an error.

The codes are those of the line protocol (`ERR <code> <sentence>`); the file port answers the same
errors with the HTTP status beside them. An exception of any other class is a fault of ours: it is
logged with its traceback and answered as `internal`.
"""

from __future__ import annotations

from typing import ClassVar


class FarmError(Exception):
    """An error that is told to whoever asked, as one sentence."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class InvalidRequest(FarmError):
    """The request breaks the rules of its protocol."""

    code = "syntax"
    http_status = 400


class AuthenticationFailed(FarmError):
    """No key, an unknown key or a wrong secret; never says which."""

    code = "auth"
    http_status = 401


class Denied(FarmError):
    """The key is good, but its role does not allow this."""

    code = "denied"
    http_status = 403


class NotFound(FarmError):
    """There is no such file, chunk or server."""

    code = "notfound"
    http_status = 404


class UnknownCommand(FarmError):
    """There is no such command."""

    code = "unknown"
    http_status = 404


class PreconditionFailed(FarmError):
    """What the request was conditional on does not hold (any more)."""

    code = "conflict"
    http_status = 412


class MissingChunks(FarmError):
    """A commit names chunks that the farm does not hold in enough copies."""

    code = "missing"
    http_status = 409


class Mismatch(FarmError):
    """The bytes are not what was announced: wrong digest or wrong length."""

    code = "mismatch"
    http_status = 422


class LimitExceeded(FarmError):
    """The request is larger than a stated limit."""

    code = "limit"
    http_status = 413


class Full(FarmError):
    """There is no room for the bytes."""

    code = "full"
    http_status = 507


class ReadOnly(FarmError):
    """No writes now: there is no majority of the masters, or this server is leaving."""

    code = "readonly"
    http_status = 503


class Busy(FarmError):
    """Too much is under way; the same request may be made again later."""

    code = "busy"
    http_status = 503


class Waiting(FarmError):
    """This server is not serving yet; HELLO says what it waits for."""

    code = "waiting"
    http_status = 503


class Later(FarmError):
    """The request is understood, but this version does not do it."""

    code = "later"
    http_status = 501


CODES: dict[str, type[FarmError]] = {
    kind.code: kind
    for kind in (
        FarmError,
        InvalidRequest,
        AuthenticationFailed,
        Denied,
        NotFound,
        UnknownCommand,
        PreconditionFailed,
        MissingChunks,
        Mismatch,
        LimitExceeded,
        Full,
        ReadOnly,
        Busy,
        Waiting,
        Later,
    )
}
"""Error class by line protocol code, for clients that turn an answer back into an error."""
