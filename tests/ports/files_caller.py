"""A client of the file port in memory, for tests: sends bytes as they are, reads answers with nothing of ours."""

from __future__ import annotations

import base64
import json
from typing import Any

from attrs import define
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from chunkfarm.limits import Limits
from chunkfarm.ports.files import FileFactory
from chunkfarm.ports.files.connection import FileProtocol
from tests.ports.fakes import NOW, MemoryBackend

CERTIFICATE = "the certificate of beta"


@define
class Answered:
    """An answer: status, headers with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Link(StringTransport):
    """A transport that knows the client's certificate and tells a producer to pause when asked to by a test."""

    certificate: str | None = None
    aborted = False
    queued = 0
    delivered = 0

    def getPeerCertificate(self) -> str | None:
        return self.certificate

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Caller:
    """One connection to the file port of a server in memory."""

    def __init__(
        self,
        backend: MemoryBackend | None = None,
        factory: FileFactory | None = None,
        limits: Limits | None = None,
        host: str = "10.0.0.9",
    ) -> None:
        self.clock: Any = Clock() if factory is None else factory.clock
        self.backend = backend or MemoryBackend()
        self.factory = factory or FileFactory(self.backend, self.clock, lambda: NOW, limits)  # type: ignore[arg-type]
        protocol = self.factory.buildProtocol(IPv4Address("TCP", host, 5000))
        assert protocol is not None
        self.protocol: FileProtocol = protocol
        self.link = Link(peerAddress=IPv4Address("TCP", host, 5000))
        protocol.makeConnection(self.link)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.protocol.dataReceived(piece)

    def ask(
        self, method: str, target: str, *lines: str, body: bytes = b"", key: str | None = "admin", raw: bool = False
    ) -> list[Answered]:
        """Send one request with a Content-Length (unless `raw`) and give the answers that came."""
        self.send(request(method, target, *lines, body=body, key=key, raw=raw))
        return self.answers(head_only=method == "HEAD")

    def one(self, method: str, target: str, *lines: str, **options: Any) -> Answered:
        """The same, when exactly one answer is expected."""
        answers = self.ask(method, target, *lines, **options)
        assert len(answers) == 1, answers
        return answers[0]

    def answers(self, head_only: bool = False) -> list[Answered]:
        """The whole answers that have come since this was last called; a part of one is an error."""
        data = self.link.value()
        self.link.clear()
        found = []
        while data:
            head, end, data = data.partition(b"\r\n\r\n")
            assert end, head
            first, *lines = head.decode("latin-1").split("\r\n")
            version, status, _ = first.split(" ", 2)
            assert version == "HTTP/1.1"
            headers = {}
            for line in lines:
                name, colon, value = line.partition(": ")
                assert colon and name.lower() not in headers, line
                headers[name.lower()] = value
            bare = int(status) in (100, 204, 304)
            assert ("content-length" in headers) != bare
            length = 0 if bare or head_only else int(headers["content-length"])
            assert len(data) >= length, "a part of a body"
            found.append(Answered(int(status), headers, data[:length]))
            data = data[length:]
        return found

    @property
    def open(self) -> bool:
        return not (self.link.disconnecting or self.link.aborted)

    @property
    def reading(self) -> bool:
        return self.link.producerState == "producing"

    def hang_up(self) -> None:
        if self.link.producer is not None:
            self.link.producer.stopProducing()
        self.protocol.connectionLost(Failure(ConnectionLost()))


def basic(key: str, secret: str = "secret") -> str:
    return "Authorization: Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()


def request(
    method: str, target: str, *lines: str, body: bytes = b"", key: str | None = "admin", raw: bool = False
) -> bytes:
    """The bytes of a request."""
    every = [f"{method} {target} HTTP/1.1", "Host: farm"]
    if key is not None:
        every.append(basic(key))
    if not raw and (body or method in ("PUT", "POST")):
        every.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*every, *lines, "", ""]).encode("latin-1") + body
