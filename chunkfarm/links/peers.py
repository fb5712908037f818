"""Connections to the peer ports of other servers.

A link is an AMP connection over mutual TLS 1.3. What the other side is, its certificate says: an address
is only a hint of where to look. `Peers` keeps one link for each server and opens it when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ConnectionClosed, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from chunkfarm.links.boxes import Boxes, Lines, line_in
from chunkfarm.model import Address
from chunkfarm.wire.tls import HandshakeTimedOut, PeerEnded
from chunkfarm.wire.transport import end_when_silent

CALL_TIMEOUT = 10.0
"""Seconds until a call to a peer counts as unanswered: as long as `master_grace`, past which it is replaced."""
CONNECT_TIMEOUT = 5.0
"""Seconds for TCP and TLS together; on a network of one farm a second is already slow."""
UNANSWERED_MAX = 3
"""Calls without an answer, or any other byte, until their link is given up: some six seconds of reports."""
RETRY_DELAY = 0.25
"""Seconds in which an address that just failed is not tried again, so that ten heartbeats are one attempt."""


DESCRIPTION_BYTES_MAX = 1024
"""Of what another server says of an error: a sentence, or where the first is. It is shown to people, and told on."""


_ONE_LINE = bytes(0x20 if byte < 0x20 or byte == 0x7F else byte for byte in range(256))
"""Control characters become spaces."""


class LinkFailed(Exception):
    """The peer cannot be reached, or is not the server that was asked for; the text says which."""


def reason_of(error: BaseException) -> str:
    """Why an address could not be reached, in the words that people are told everywhere."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError | HandshakeTimedOut):
        return f"no answer within {CONNECT_TIMEOUT:g} s"
    return str(error).rstrip(".") or type(error).__name__


class PeerLink(Boxes):
    """One outgoing connection to a peer port. It answers no commands."""

    def __init__(
        self, lines: Lines | None = None, peer_of: Callable[[Any], str | None] = lambda certificate: None
    ) -> None:
        super().__init__(lines)
        self._peer_of = peer_of
        self._peer: str | None = None
        self.lost: Deferred[None] = Deferred()
        self.alive = False
        self.reads = 0
        """How often bytes have come."""
        self.ended_by_peer = False
        """Whether the other side ended it."""

    def connectionMade(self) -> None:
        self.alive = True
        end_when_silent(self.transport)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self.reads += 1
        super().dataReceived(data)

    def ampBoxReceived(self, box: amp.AmpBox) -> None:
        """Take an answer, and note the line of whoever gave it."""
        line = line_in(box)
        if line is not None and line != self._lines.said:
            # Once a link: it costs the check of a signature, and the lines may differ for long.
            self._peer = self._peer or self._peer_of(self.certificate())
            if self._peer is not None:
                self._lines.met(self._peer, line)
        if amp.ERROR_DESCRIPTION in box:
            box[amp.ERROR_DESCRIPTION] = box[amp.ERROR_DESCRIPTION][:DESCRIPTION_BYTES_MAX].translate(_ONE_LINE)
        super().ampBoxReceived(box)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.alive = False
        self.ended_by_peer = reason.check(PeerEnded) is not None
        super().connectionLost(reason)
        self.lost.callback(None)

    def certificate(self) -> Any:
        """The peer's certificate, or None."""
        return cast(Any, self.transport).getPeerCertificate()

    def close(self) -> None:
        """End the link."""
        self.abort()


class _PeerLinkFactory(Factory):
    """Makes a `PeerLink`, without a word in the log."""

    noisy = False

    def __init__(self, lines: Lines | None, peer_of: Callable[[Any], str | None]) -> None:
        self._lines = lines
        self._peer_of = peer_of

    def buildProtocol(self, addr: IAddress | None) -> PeerLink:
        return PeerLink(self._lines, self._peer_of)


class OpenLink(Protocol):
    """Opens a TLS connection to an address with a protocol from the factory, handshake done."""

    def __call__(self, address: Address, factory: Factory, timeout: float) -> Deferred[Any]: ...


@define
class _Place:
    """What is known of the link to one server."""

    link: PeerLink | None = None
    opening: list[Deferred[PeerLink]] = field(factory=list)
    attempt: Deferred[Any] | None = None
    not_before: float = 0.0
    error: str = ""
    unanswered: int = 0
    """Calls in a row that timed out on a link from which nothing came meanwhile."""


class Peers:
    """Links to the other servers of the farm, by server id."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        open_link: OpenLink,
        peer_of: Callable[[Any], str | None],
        address_of: Callable[[str], Address | None],
        ended: Callable[[str], None] = lambda server_id: None,
        lines: Lines | None = None,
    ) -> None:
        """`ended` is told of each server that ended a link by itself; `lines` knows which line is said."""
        self._ended = ended
        self._lines = lines
        self._clock = clock
        self._open_link = open_link
        self._peer_of = peer_of
        self._address_of = address_of
        self._places: dict[str, _Place] = {}
        self._closed = False

    def open(self, address: Address, timeout: float = CONNECT_TIMEOUT) -> Deferred[PeerLink]:
        """A link of its own to whoever listens at `address`; nothing is known yet of who that is."""
        return self._open_link(address, _PeerLinkFactory(self._lines, self._peer_of), timeout)

    def identity(self, link: PeerLink) -> str | None:
        """The server of this farm that the certificate on the link proves, if it proves any."""
        return self._peer_of(link.certificate())

    def call(
        self, server_id: str, command: type[amp.Command], timeout: float = CALL_TIMEOUT, **arguments: Any
    ) -> Deferred[dict[str, Any]]:
        """Ask a server of the farm. Fails with the command's errors or `LinkFailed`."""
        asked: list[tuple[PeerLink, int]] = []

        def ask(link: PeerLink) -> Deferred[dict[str, Any]]:
            asked.append((link, link.reads))
            return call_on(link, command, arguments)

        def judge(failure: Failure) -> Failure:
            if asked and failure.check(LinkFailed):
                self._unanswered(server_id, *asked[0])
            return failure

        call = self.limit(self.link_to(server_id).addCallback(ask), timeout, f"{command.__name__} to {server_id}")
        return call.addErrback(judge)

    def _unanswered(self, server_id: str, link: PeerLink, reads: int) -> None:
        """A link that takes every call and answers none may lead nowhere any more: end it, and open another."""
        place = self._places[server_id]
        silent = link.alive and link is place.link and link.reads == reads
        place.unanswered = place.unanswered + 1 if silent else 0
        if place.unanswered >= UNANSWERED_MAX:
            place.unanswered = 0
            link.close()

    def limit(self, deferred: Deferred[Any], seconds: float, what: str) -> Deferred[Any]:
        """The same Deferred, failed with `LinkFailed` if it takes longer than that."""

        def explain(value: Any, _timeout: float) -> Any:
            raise LinkFailed(f"no answer within {seconds:g} s: {what}")

        return deferred.addTimeout(seconds, self._clock, onTimeoutCancel=explain)

    def send(self, server_id: str, payload: bytes) -> None:
        """Send a message of the consensus. Without a link it is what the next one begins with, or is lost.

        The masters that follow have no links to each other until they elect: their first question must not be lost.
        """
        place = self._places.get(server_id)
        if place is not None and place.link is not None and place.link.alive:
            place.link.send_message(payload)
        elif place is None or (place.attempt is None and self._clock.seconds() >= place.not_before):
            self.link_to(server_id).addCallbacks(lambda link: link.send_message(payload), lambda failure: None)

    def error_of(self, server_id: str) -> str:
        """Why the last attempt to reach this server failed, or an empty string."""
        place = self._places.get(server_id)
        return place.error if place is not None else ""

    def link_to(self, server_id: str) -> Deferred[PeerLink]:
        """The link to a server of the farm, opened if there is none."""
        place = self._places.setdefault(server_id, _Place())
        if place.link is not None and place.link.alive:
            return succeed(place.link)
        waiter: Deferred[PeerLink] = Deferred(lambda d: place.opening.remove(d) if d in place.opening else None)
        place.opening.append(waiter)
        if place.attempt is None:
            self._attempt(server_id, place)
        return waiter

    def _attempt(self, server_id: str, place: _Place) -> None:
        address = self._address_of(server_id)
        if self._closed or address is None:
            text = "closed" if self._closed else "its address is not known"
            self._failed(place, Failure(LinkFailed(f"server {server_id}: {text}")))
            return

        def check(link: PeerLink) -> PeerLink:
            found = self._peer_of(link.certificate())
            if found != server_id:
                link.close()
                raise LinkFailed(f"{address} is not server {server_id}, but {found or 'no server of this farm'}")
            return link

        def made(link: PeerLink) -> None:
            place.attempt, place.link, place.error = None, link, ""
            link.lost.addCallback(lambda _: self._ended(server_id) if link.ended_by_peer else None)
            waiting, place.opening = place.opening, []
            for waiter in waiting:
                waiter.callback(link)

        place.attempt = maybeDeferred(self.open, address).addCallback(check)
        place.attempt.addCallbacks(made, lambda failure: self._failed(place, failure))

    def _failed(self, place: _Place, failure: Failure) -> None:
        place.attempt = None
        assert failure.value is not None
        place.error = reason_of(failure.value)
        place.not_before = self._clock.seconds() + RETRY_DELAY
        waiting, place.opening = place.opening, []
        for waiter in waiting:
            waiter.errback(LinkFailed(place.error))

    def cut(self, server_id: str) -> None:
        """End the link to a server, if there is one."""
        place = self._places.get(server_id)
        if place is not None and place.link is not None:
            place.link.close()

    def judge_again(self) -> None:
        """End the links whose other side does not prove any more that it is the server it was opened to."""
        for server_id, place in self._places.items():
            if place.link is not None and place.link.alive and self.identity(place.link) != server_id:
                place.link.close()

    def close(self) -> None:
        """End all links; no new ones are opened."""
        self._closed = True
        for place in self._places.values():
            if place.attempt is not None:
                place.attempt.cancel()
            if place.link is not None:
                place.link.close()


def call_on(link: PeerLink, command: type[amp.Command], arguments: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
    """Ask over this link; fails with the command's errors or `LinkFailed`."""
    answer: Deferred[dict[str, Any]] = maybeDeferred(link.callRemote, command, **arguments)
    # AMP logs and drops the link when nobody takes an error; a call that timed out no longer listens.
    return answer.addErrback(_lost)


def _lost(failure: Failure) -> Failure:
    if failure.check(ConnectionClosed, amp.ProtocolSwitched):
        return Failure(LinkFailed("the connection was lost"))
    if failure.check(amp.AmpError, KeyError, ValueError):
        # The last two are what an answer is that lacks a value, or has one that cannot be read.
        return Failure(
            LinkFailed(f"it does not understand the call, or we not its answer: {failure.getErrorMessage()}")
        )
    return failure
