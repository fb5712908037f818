"""A request as the routes see it: its head, its body to come, and what is known of who sends it."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed

from chunkfarm.errors import LimitExceeded
from chunkfarm.model import Principal
from chunkfarm.wire.http1 import Body, RequestHead, body_of

REMEMBERED_SECONDS = 60.0
"""How long a connection's key or certificate is not looked at again; a disabled key works no longer than this."""


class Session:
    """Who was found to be asking on one connection, and until when that is believed."""

    __slots__ = (
        "_authorization",
        "_certificate",
        "_keys_revision",
        "_peer",
        "_peer_until",
        "_principal",
        "_principal_until",
        "address",
    )

    def __init__(self, certificate: Callable[[], Any], address: str = "") -> None:
        self.address = address
        """Where the connection comes from."""
        self._certificate = certificate
        self._authorization = b""
        self._principal: Principal | None = None
        self._principal_until = 0.0
        self._keys_revision = 0
        self._peer: str | None = None
        self._peer_until = 0.0

    def principal(self, authorization: bytes, now: float, keys_revision: int) -> Principal | None:
        """Who sent the same Authorization on this connection a short time ago, if no key has changed since."""
        # A proxy may send what many clients say over one connection, so that one could try to guess another's.
        same = hmac.compare_digest(authorization, self._authorization)
        good = same and now < self._principal_until and keys_revision == self._keys_revision
        return self._principal if good else None

    def remember(self, authorization: bytes, principal: Principal, now: float, keys_revision: int) -> None:
        """This Authorization was found to be good, by the keys as they were at that revision."""
        self._keys_revision = keys_revision
        self._authorization = authorization
        self._principal = principal
        self._principal_until = now + REMEMBERED_SECONDS

    def peer(self, peer_of: Callable[[Any], str | None], now: float) -> str | None:
        """The server id that the connection's certificate proves, or None."""
        if self._peer is None or now >= self._peer_until:
            self._peer = peer_of(self._certificate())
            self._peer_until = now + REMEMBERED_SECONDS
        return self._peer


class BodyReader(Protocol):
    """What a body asks of its connection."""

    def body_wanted(self) -> None:
        """The body may be read on (after `100 Continue` if the client waits for that)."""

    def body_paused(self) -> None:
        """No more of the body for now."""


class RequestBody:
    """The body of a request. Nothing of it is read until somebody says where it is to go."""

    __slots__ = ("_finished", "_paused", "_reader", "_sink", "decoder", "length")

    def __init__(self, decoder: Body, length: int | None, reader: BodyReader | None) -> None:
        self.decoder = decoder
        self.length = length
        """Bytes, as announced; None for a chunked body."""
        self._reader = reader
        self._sink: Callable[[bytes | memoryview], None] | None = None
        self._finished: Deferred[None] | None = None
        self._paused = False

    @property
    def wanted(self) -> bool:
        """Whether bytes can be delivered now."""
        return self._sink is not None and not self._paused

    @property
    def paused(self) -> bool:
        """Whether whoever takes the bytes has enough for now."""
        return self._paused

    def into(self, sink: Callable[[bytes | memoryview], None]) -> Deferred[None]:
        """Give the body to `sink` as it comes; fires at its end.

        Fails with what `sink` raised, with `InvalidRequest` if the body is malformed, with `TooSlow`, and is
        cancelled when the connection is lost. To be called once.
        """
        assert self._sink is None and self._finished is None
        self._sink = sink
        if self.decoder.done:
            return succeed(None)
        finished: Deferred[None] = Deferred(lambda _: self._drop())
        self._finished = finished
        assert self._reader is not None
        self._reader.body_wanted()
        return finished

    def gather(self, limit: int) -> Deferred[bytes | bytearray]:
        """The whole body; fails with `LimitExceeded` if it is longer than `limit` bytes, announced or not."""
        if self.length is not None:
            if self.length > limit:
                return fail(LimitExceeded(f"the body may have at most {limit} bytes here"))
            # Joined once at the end: memory that is first filled with zeros is written twice.
            pieces: list[bytes | memoryview] = []
            return self.into(pieces.append).addCallback(lambda _: b"".join(pieces))
        grown = bytearray()

        def grow(piece: bytes | memoryview) -> None:
            if len(grown) + len(piece) > limit:
                raise LimitExceeded(f"the body may have at most {limit} bytes here")
            grown.extend(piece)

        whole: Deferred[bytes | bytearray] = self.into(grow).addCallback(lambda _: grown)
        return whole

    def pause(self) -> None:
        """Whoever takes the bytes has enough for now."""
        self._paused = True
        if self._reader is not None and self._finished is not None:
            self._reader.body_paused()

    def resume(self) -> None:
        """More is welcome."""
        self._paused = False
        if self._reader is not None and self._finished is not None:
            self._reader.body_wanted()

    # For the connection.

    def deliver(self, piece: bytes | memoryview) -> None:
        """Bytes have come; called only while `wanted`."""
        assert self._sink is not None
        try:
            self._sink(piece)
        except Exception as error:
            self.fail(error)

    def end(self) -> None:
        """The last byte has been delivered."""
        finished, self._finished = self._finished, None
        if finished is not None:
            finished.callback(None)

    def fail(self, error: Exception) -> None:
        """There will be no more bytes."""
        finished = self._finished
        self._drop()
        if finished is not None:
            finished.errback(error)

    def _drop(self) -> None:
        self._finished = None
        self._sink = None


class Request:
    """One request. `path` is decoded, `query` is raw."""

    __slots__ = ("body", "head", "headers", "path", "principal", "query", "session")

    def __init__(self, head: RequestHead, path: str, query: bytes, session: Session, reader: BodyReader) -> None:
        self.head = head
        self.headers = head.headers
        self.path = path
        self.query = query
        self.session = session
        self.principal: Principal | None = None
        """Who asks, once that was looked at."""
        length = None if head.chunked else head.length or 0
        self.body = RequestBody(body_of(head), length, reader)

    @property
    def method(self) -> bytes:
        return self.head.method
