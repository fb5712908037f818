"""What a request is answered with, as values."""

from __future__ import annotations

import json
from typing import Any

from attrs import define

from chunkfarm.errors import AuthenticationFailed, FarmError, InvalidRequest, LimitExceeded, UnknownCommand
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.http1_rules import RangeNotSatisfiable
from chunkfarm.wire.pump import PieceSource

RETRY_AFTER_SECONDS = 5
"""Told with every 503: an election and a hand-over are done by then."""

JSON = b"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
TEXT = b"Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
HTML = (
    b"Content-Type: text/html; charset=utf-8\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Cache-Control: no-store\r\n"
)


class MethodNotAllowed(UnknownCommand):
    """The target exists, but not for this method."""

    http_status = 405

    def __init__(self, sentence: str, allow: str) -> None:
        super().__init__(sentence)
        self.allow = allow


class LengthRequired(InvalidRequest):
    """A PUT that says neither how long its body is nor that it is chunked."""

    http_status = 411


class TooSlow(LimitExceeded):
    """The client took longer than it may."""

    http_status = 408


@define
class Answer:
    """A status, header lines (each with its line end), and a body: bytes, or a source of `length` bytes.

    Content-Length is not among `fields`; whoever writes the answer adds it. A HEAD is answered with the
    `length` that GET would have, and nothing else.
    """

    status: int
    fields: bytes = b""
    body: bytes = b""
    source: PieceSource | None = None
    length: int = -1
    """Of `source`; -1 means that of `body`."""


def json_answer(status: int, value: Any, extra: bytes = b"") -> Answer:
    """`value` as JSON with a line end, so that it reads well on a terminal."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return Answer(status, JSON + extra, body)


def refusal(error: FarmError) -> Answer:
    """An error as the line `<code> <sentence>`, with the headers that its status asks for."""
    extra = b""
    if isinstance(error, AuthenticationFailed):
        extra = b'WWW-Authenticate: Basic realm="chunkfarm", Bearer\r\n'
    elif isinstance(error, MethodNotAllowed):
        extra = fields(("Allow", error.allow))
    elif isinstance(error, RangeNotSatisfiable):
        extra = fields(("Content-Range", f"bytes */{error.size}"))
    elif error.http_status == 503:
        extra = fields(("Retry-After", str(RETRY_AFTER_SECONDS)))
    sentence = " ".join(str(error).split())
    return Answer(error.http_status, TEXT + extra, f"{error.code} {sentence}\n".encode("utf-8", "replace"))
