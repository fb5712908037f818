"""The peer port: what one server answers to another, as AMP boxes over mutual TLS 1.3.

Without a certificate of this farm only `Probe` and `Join` are answered. Which server asks is what its
certificate proves, never what it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol, cast

from attrs import define
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IHandshakeListener, IReactorTime
from twisted.internet.protocol import Factory
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from chunkfarm.config_values import read_host, read_port
from chunkfarm.limits import Limits
from chunkfarm.links import commands
from chunkfarm.links.boxes import Boxes, Lines, answer_box, asked, line_in, named, question
from chunkfarm.model import KIB, Address, Principal
from chunkfarm.ports.places import Met, whose
from chunkfarm.trust.contexts import key_digest_of
from chunkfarm.trust.proof import EXPORTER_LABEL, EXPORTER_LENGTH
from chunkfarm.wire.tls import PeerEnded
from chunkfarm.wire.transport import end_when_silent

_REPORT = named(amp.COMMAND, commands.Report.commandName)
_REPORT_TEXT = named(b"report")
_REPORT_ANSWER = named(b"answer")
REPORT_KEPT_MAX = 2 * KIB
"""Bytes of a report that are kept to be compared with the next one: at rest it takes a tenth of that."""
OF_ANY_LINE = (commands.Probe.commandName, commands.Join.commandName)
"""Answered whatever line of the farm's history the other side belongs to: a question it learns from, and a server that
has no history yet."""


@define(frozen=True)
class Joiner:
    """What a server shows that wants to join."""

    version: int
    farm: str
    proof: bytes
    request: bytes
    row: str
    exporter: bytes
    host: str
    """The address its connection comes from."""
    invite: str = ""
    """Id of the code whose secret the proof is made with; empty: it is made with the join key."""


@define(frozen=True)
class Prober:
    """What a server tells of itself that asks who is here."""

    server: str
    stamp: int
    farm: str
    version: int = 1
    proof: bytes = b""
    exporter: bytes = b""
    host: str = ""
    """The address its connection comes from."""
    advertised: Address | None = None
    """Where it says that it listens."""
    certified: str | None = None
    """The server id that its certificate proves, if it is of this farm."""
    index: int | None = None
    """An index of the journal of which it wants to know the term."""


class PeerBackend(Protocol):
    """What a server does for its peers. Errors are those that `links.commands` declares."""

    def peer_of(self, certificate: Any) -> str | None: ...

    def barred(self, server_id: str) -> str:
        """Why that server is none of this farm although its certificate says so; empty if it is."""

    def probe(self, prober: Prober) -> dict[str, Any]: ...

    def join(self, joiner: Joiner) -> Deferred[dict[str, Any]]: ...

    def renew(self, server_id: str, request: bytes) -> Deferred[dict[str, Any]]: ...

    def report(self, server_id: str, report: str) -> str: ...

    def put_server(self, server_id: str, row: str, key: str = "") -> Deferred[str]:
        """Take a server's own row; `key` is the digest of the public key by which it has proved who it is."""

    def get_server(self, server_id: str) -> str: ...

    def transact(self, server_id: str, request: bytes) -> Deferred[bytes]: ...

    def read(self, server_id: str, request: bytes, stale: bool = False) -> Deferred[bytes]: ...

    def referenced(self, server_id: str, digests: bytes) -> Deferred[bytes]: ...

    def at_risk(self, server_id: str, holders: str, start: bytes) -> dict[str, bytes]: ...

    def lost_files(self, server_id: str) -> Deferred[str]: ...

    def get_table(self, server_id: str, request: bytes) -> Deferred[bytes]: ...

    def put_table(self, server_id: str, block: bytes) -> Deferred[int]: ...

    def consensus(self, server_id: str, payload: bytes) -> Deferred[None]: ...

    def authenticate(self, key: str, proof: bytes) -> Deferred[Principal | None]: ...

    def forget(self, server_id: str, target: str) -> Deferred[None]: ...

    def join_key(self, server_id: str) -> Deferred[bytes]: ...

    def seal_key(self, server_id: str, digest: str) -> bytes: ...


@define(frozen=True)
class _Reported:
    """A report as it came, without its tag, and as it was read."""

    box: bytes
    line: str | None
    report: str


@implementer(IHandshakeListener)
class PeerPort(Boxes):
    """One accepted connection."""

    _reported: _Reported | None = None
    """The last report: at rest the next one differs from it in nothing but the tag."""

    def __init__(self, factory: PeerPortFactory, backend: PeerBackend, clock: IReactorTime) -> None:
        super().__init__(factory.lines)
        self._owner = factory
        self._backend = backend
        self._clock = clock
        self._peer: str | None = None
        self._deadline: IDelayedCall | None = None
        self._host = ""
        self._questions = 0
        """Asked as a stranger."""

    @property
    def peer(self) -> str | None:
        """The server that has said who it is, if one has."""
        return self._peer

    def judge_again(self) -> None:
        """End this link if its certificate does not prove any more what it did."""
        certificate = cast(Any, self.transport).getPeerCertificate()
        if self._peer is not None and self._backend.peer_of(certificate) != self._peer:
            self.abort()

    def connectionMade(self) -> None:
        super().connectionMade()
        end_when_silent(self.transport)
        self._host = str(getattr(cast(Any, self.transport).getPeer(), "host", ""))
        limits = self._owner.limits
        self.box_bytes_max = limits.peer_stranger_bytes
        self._deadline = self._clock.callLater(limits.peer_stranger_time, self._too_late)
        self._owner.take(self)
        # Where nobody shakes hands, as in a simulation, it is known from the beginning who this is.
        self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        """The certificate is here: a server of this farm is no stranger from now on."""
        if self in self._owner.strangers:
            server_id = self._certified()
            if server_id is not None and not self._backend.barred(server_id):
                self._is_known()

    def _certified(self) -> str | None:
        return self._backend.peer_of(cast(Any, self.transport).getPeerCertificate())

    def _is_known(self) -> None:
        self._owner.known(self)
        self.box_bytes_max = None
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    @property
    def host(self) -> str:
        """Where it comes from."""
        return self._host

    def _too_late(self) -> None:
        self._owner.limited("stranger_time")
        self.abort()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, unless they come from a stranger who only asks and never listens."""
        if self._peer is None and self._takes_too_little():
            self._owner.limited("stranger_answers")
            self.abort()
            return
        super().dataReceived(data)

    def ampBoxReceived(self, box: amp.AmpBox) -> None:
        """Take a box, unless it is one too many of a stranger."""
        if self in self._owner.strangers:
            self._questions += 1
            if self._questions > self._owner.limits.peer_stranger_questions:
                self._owner.limited("stranger_questions")
                self.abort()
                return
        super().ampBoxReceived(box)

    def box_too_long(self) -> None:
        """Count a stranger whose box does not end."""
        self._owner.limited("stranger_bytes")

    def _takes_too_little(self) -> bool:
        untaken = int(getattr(self.transport, "queued", 0))
        return untaken > self._owner.limits.peer_stranger_answers and self in self._owner.strangers

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._owner.forget(self)
        if self._peer is not None and reason.check(PeerEnded):
            self._owner.ended(self._peer)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)

    def _sender(self) -> str:
        """The server id that this link's certificate proves; raises `BadRequest` for a stranger.

        Asked at every command, since a server that is founding or joining learns its CA while links are open.
        """
        if self._peer is None:
            self._peer = self._certified()
            if self._peer is None:
                raise commands.BadRequest("this needs a certificate of this farm")
        if refused := self._backend.barred(self._peer):
            raise commands.BadRequest(refused)
        if self in self._owner.strangers:
            self._is_known()
        return self._peer

    def locateResponder(self, name: bytes) -> Callable[..., Any] | None:
        """What answers a command of that name: with one of its errors, whatever goes wrong.

        An error that is not declared would end the link, and with it all that is under way on it.
        """
        responder = super().locateResponder(name)
        if responder is None:
            return None

        def answer(box: amp.AmpBox) -> Deferred[Any]:
            if not self._is_of_our_line(box) and name not in OF_ANY_LINE:
                if amp.ASK not in box:
                    # Such a message may be lost at any time, and to answer it with an error would end the link.
                    return succeed(amp.AmpBox())
                return fail(_refusal(commands.NotNow, "this server belongs to another line of the farm's history"))
            try:
                answering: Deferred[Any] = responder(box)
            except Exception as error:
                # The arguments were read, and nothing else has begun.
                return fail(_refusal(commands.BadRequest, f"the arguments make no sense: {type(error).__name__}"))
            return answering.addErrback(self._failed, name)

        return answer

    def _is_of_our_line(self, box: amp.AmpBox) -> bool:
        """Whether the sender of this box belongs to this server's line, or says nothing of lines."""
        line = line_in(box)
        if line is None:
            return True
        peer = self._peer or self._certified()
        # A stranger is told what it needs by the command itself, and so is one that was forgotten.
        return peer is None or bool(self._backend.barred(peer)) or self._lines.met(peer, line)

    def message_received(self, payload: bytes, line: bytes | None) -> None:
        """A message of the consensus: the same as the command `Consensus` without an answer."""
        if self._peer is None:
            super().message_received(payload, line)
            return
        if self._backend.barred(self._peer):
            return
        if line is not None and not self._lines.met(self._peer, line.decode("ascii", "replace")):
            return
        try:
            taken = self._backend.consensus(self._peer, payload)
        except Exception:
            taken = fail()
        taken.addErrback(self._not_taken)

    def _take_question(self, data: bytes, at: int) -> int:
        """Answer a report without a detour: the first of a thousand servers does little else."""
        if self._peer is None or self._backend.barred(self._peer):
            return 0
        tag = asked(data, at)
        if tag is None:
            return 0
        told = self._reported
        if told is None or not data.startswith(told.box, tag[1]):
            told = _reported(data, tag[1])
            if told is None:
                return 0
            self._reported = told if len(told.box) <= REPORT_KEPT_MAX else None
        if told.line is not None and not self._lines.met(self._peer, told.line):
            return 0
        try:
            answer = self._backend.report(self._peer, told.report)
        except Exception:
            # AMP asks again, and knows how to say what is wrong.
            return 0
        box = answer_box(data[slice(*tag)], _REPORT_ANSWER, answer.encode(), self._lines.said)
        cast(Any, self.transport).write(box)
        return tag[1] + len(told.box)

    def _not_taken(self, failure: Failure) -> None:
        if failure.check(commands.BadRequest, commands.NotNow):
            # The peer's fault: nothing of this kind is sent without waiting for an answer.
            failure = Failure(_refusal(commands.BadRequest, failure.getErrorMessage()))
        self.unhandledError(failure)

    def _failed(self, failure: Failure, name: bytes) -> Failure:
        if failure.check(amp.RemoteAmpError):
            return failure
        if not failure.check(CancelledError):
            self._log.failure("while answering {command} of a peer", failure, command=name.decode("ascii", "replace"))
        return Failure(_refusal(commands.NotNow, "this server has a fault; its log says more"))

    @commands.Probe.responder
    def probe(
        self,
        server: str,
        stamp: int,
        farm: str,
        version: int | None,
        proof: bytes | None,
        host: str | None,
        peer: int | None,
        index: int | None,
    ) -> dict[str, str]:
        transport = cast(Any, self.transport)
        certified = self._backend.peer_of(transport.getPeerCertificate())
        if certified is not None and self._backend.barred(certified):
            certified = None
        prober = Prober(
            server,
            stamp,
            farm,
            1 if version is None else version,
            proof or b"",
            self._exporter() if proof else b"",
            transport.getPeer().host,
            _address(host, peer),
            certified,
            index,
        )
        return {"answer": json.dumps(self._backend.probe(prober))}

    def _exporter(self) -> bytes:
        exporter: bytes = (
            cast(Any, self.transport).getHandle().export_keying_material(EXPORTER_LABEL, EXPORTER_LENGTH, b"")
        )
        return exporter

    @commands.Join.responder
    def join(
        self, version: int, farm: str, proof: bytes, request: bytes, row: str, invite: str | None = None
    ) -> Deferred[dict[str, Any]]:
        host = cast(Any, self.transport).getPeer().host
        return self._backend.join(Joiner(version, farm, proof, request, row, self._exporter(), host, invite or ""))

    @commands.Renew.responder
    def renew(self, request: bytes) -> Deferred[dict[str, Any]]:
        return self._backend.renew(self._sender(), request)

    @commands.Report.responder
    def report(self, report: str) -> dict[str, str]:
        return {"answer": self._backend.report(self._sender(), report)}

    @commands.PutServer.responder
    def put_server(self, row: str) -> Deferred[dict[str, str]]:
        sender = self._sender()
        certificate = cast(Any, self.transport).getPeerCertificate()
        key = key_digest_of(certificate) if certificate is not None else ""
        return self._backend.put_server(sender, row, key).addCallback(lambda text: {"row": text})

    @commands.GetServer.responder
    def get_server(self, server: str) -> dict[str, str]:
        self._sender()
        return {"row": self._backend.get_server(server)}

    @commands.GetTable.responder
    def get_table(self, request: bytes) -> Deferred[dict[str, bytes]]:
        return self._backend.get_table(self._sender(), request).addCallback(lambda page: {"page": page})

    @commands.PutTable.responder
    def put_table(self, block: bytes) -> Deferred[dict[str, int]]:
        return self._backend.put_table(self._sender(), block).addCallback(lambda changed: {"changed": changed})

    @commands.Transact.responder
    def transact(self, request: bytes) -> Deferred[dict[str, bytes]]:
        return self._backend.transact(self._sender(), request).addCallback(lambda answer: {"answer": answer})

    @commands.Read.responder
    def read(self, request: bytes, stale: bool = False) -> Deferred[dict[str, bytes]]:
        return self._backend.read(self._sender(), request, stale).addCallback(lambda page: {"page": page})

    @commands.Referenced.responder
    def referenced(self, digests: bytes) -> Deferred[dict[str, bytes]]:
        return self._backend.referenced(self._sender(), digests).addCallback(lambda counts: {"counts": counts})

    @commands.AtRisk.responder
    def at_risk(self, holders: str, start: bytes) -> dict[str, bytes]:
        return self._backend.at_risk(self._sender(), holders, start)

    @commands.LostFiles.responder
    def lost_files(self) -> Deferred[dict[str, str]]:
        return self._backend.lost_files(self._sender()).addCallback(lambda answer: {"answer": answer})

    @commands.Consensus.responder
    def consensus(self, payload: bytes) -> Deferred[dict[str, Any]]:
        return self._backend.consensus(self._sender(), payload).addCallback(lambda _: {})

    @commands.Authenticate.responder
    def authenticate(self, key: str, proof: bytes) -> Deferred[dict[str, str]]:
        self._sender()
        return self._backend.authenticate(key, proof).addCallback(_told_of_key)

    @commands.Forget.responder
    def forget(self, server: str) -> Deferred[dict[str, Any]]:
        return self._backend.forget(self._sender(), server).addCallback(lambda _: {})

    @commands.JoinKey.responder
    def join_key(self) -> Deferred[dict[str, bytes]]:
        return self._backend.join_key(self._sender()).addCallback(lambda key: {"key": key})

    @commands.SealKey.responder
    def seal_key(self, digest: str) -> dict[str, bytes]:
        return {"key": self._backend.seal_key(self._sender(), digest)}


def _told_of_key(principal: Principal | None) -> dict[str, str]:
    if principal is None:
        return {"role": ""}
    return {"role": principal.role, **({"prefix": principal.prefix} if principal.prefix else {})}


def _refusal(kind: type[Exception], sentence: str) -> amp.RemoteAmpError:
    """An error as AMP sends it, with the code that every command here declares for it."""
    return amp.RemoteAmpError(commands.Report.errors[kind], sentence)


def _reported(data: bytes, at: int) -> _Reported | None:
    """The report whose tag ends at `at`; None if it is another question, not all there, or no text."""
    found = question(data, at, _REPORT, _REPORT_TEXT)
    if found is None:
        return None
    line, report, end = found
    try:
        return _Reported(data[at:end], None if line is None else line.decode("ascii", "replace"), report.decode())
    except UnicodeDecodeError:
        return None


def _address(host: str | None, port: int | None) -> Address | None:
    """Where a prober says that it listens; None if it does not, or makes no sense."""
    if host is None or port is None:
        return None
    try:
        return Address(read_host(host), read_port(str(port)))
    except ValueError:
        return None


class PeerPortFactory(Factory):
    """Makes the connections of the peer port, and can end them all."""

    noisy = False

    def __init__(
        self,
        backend: PeerBackend,
        clock: IReactorTime,
        ended: Callable[[str], None] = lambda server_id: None,
        lines: Lines | None = None,
        limits: Limits | None = None,
        met: Met | None = None,
        limited: Callable[[str], None] = lambda limit: None,
    ) -> None:
        """`ended` is told of each server of this farm that ended a connection by itself.

        `limits` may be replaced at any time; `met` is told where servers of this farm are; `limited` of each limit
        (its name, without `peer_`) that ends a link.
        """
        self.limits = limits or Limits()
        self.limited = limited
        self._met = met or Met()
        self._by_address: dict[str, dict[PeerPort, None]] = {}
        """The strangers of each address, the oldest first."""
        self.lines = lines
        self._backend = backend
        self._clock = clock
        self.ended = ended
        self.connections: dict[PeerPort, None] = {}
        """The oldest first."""
        self.strangers: dict[PeerPort, None] = {}
        """Those that have shown no certificate of this farm yet, the oldest first."""

    def buildProtocol(self, addr: IAddress | None) -> PeerPort:
        return PeerPort(self, self._backend, self._clock)

    def take(self, connection: PeerPort) -> None:
        """Another connection is there, of which nothing is known. If there are too many strangers one of them goes.

        It goes from where most of them come, or whoever opens them without end would put out the servers among them.
        """
        self.connections[connection] = None
        self.strangers[connection] = None
        of_one = self._by_address.setdefault(whose(connection.host), {})
        of_one[connection] = None
        if len(of_one) > self.limits.peer_strangers_address:
            self._put_out(of_one, "strangers_address")
        elif len(self.strangers) > self.limits.peer_strangers:
            self._put_out(max(self._by_address.values(), key=len), "strangers")
        if len(self.connections) > self.limits.peer_connections and self.strangers:
            self._put_out(max(self._by_address.values(), key=len), "connections")

    def _put_out(self, strangers: dict[PeerPort, None], limit: str) -> None:
        oldest = next(iter(strangers))
        self.limited(limit)
        self.forget(oldest)
        oldest.abort()

    def known(self, connection: PeerPort) -> None:
        """It has shown the certificate of a server of this farm."""
        self._met.note(connection.host)
        self._no_stranger(connection)

    def forget(self, connection: PeerPort) -> None:
        """It is gone, or about to go."""
        self.connections.pop(connection, None)
        self._no_stranger(connection)

    def _no_stranger(self, connection: PeerPort) -> None:
        if connection in self.strangers:
            del self.strangers[connection]
            of_one = self._by_address[whose(connection.host)]
            del of_one[connection]
            if not of_one:
                del self._by_address[whose(connection.host)]

    def cut(self, server_id: str) -> None:
        """End the links of one server."""
        for connection in list(self.connections):
            if connection.peer == server_id:
                connection.abort()

    def judge_again(self) -> None:
        """End the links whose certificates prove nothing any more."""
        for connection in list(self.connections):
            connection.judge_again()

    def close_all(self) -> None:
        """End every link."""
        for connection in list(self.connections):
            connection.abort()
