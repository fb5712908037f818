"""What a command is, and what it sees of the connection that it came over. No transport here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from chunkfarm.chunks.pieces import PieceSource
from chunkfarm.errors import AuthenticationFailed, FarmError
from chunkfarm.model import Principal
from chunkfarm.ports.backend import Backend
from chunkfarm.scoped import Names, catalog_of
from chunkfarm.table.interface import Event
from chunkfarm.wire.lines import quote_sentence

ANYONE, PRIVATE, READ, WRITE, ADMIN = "anyone", "private", "read", "write", "admin"
"""Who may give a command: anybody at all; anybody over TLS or from this machine; a key with that role."""


@frozen(kw_only=True)
class Answer:
    """Lines, then perhaps counted bytes (which the last line announces), then perhaps something to do."""

    lines: tuple[str, ...]
    source: PieceSource | None = None
    length: int = 0
    then: Callable[[], None] | None = None
    """Called when everything is written."""


def ok(text: str = "") -> Answer:
    """`OK ...`."""
    return Answer(lines=(f"OK {text}".rstrip(),))


def refusal(error: FarmError, then: Callable[[], None] | None = None) -> Answer:
    """`ERR <code> <sentence>`."""
    return Answer(lines=(f"ERR {error.code} {quote_sentence(error.sentence)}",), then=then)


def block(word: str, rows: list[str], header: str = "") -> Answer:
    """`<word> <count> ...`, the rows, `END`."""
    return Answer(lines=(f"{word} {len(rows)} {header}".rstrip(), *rows, "END"))


def data(source: PieceSource, length: int, header: str = "") -> Answer:
    """`DATA <length>` and the bytes."""
    return Answer(lines=(f"DATA {length} {header}".rstrip(),), source=source, length=length)


class Watching(Protocol):
    """The running watch of a connection."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class WrittenEvents(Protocol):
    """Changes of the table as lines."""

    def lines(self, event: Event, more: bool) -> list[str]: ...


class Link(Protocol):
    """What commands may do to their connection."""

    def end(self) -> None:
        """Close it once everything is written."""

    def start_tls(self) -> None:
        """Encrypt from here on."""

    def emit(self, lines: list[str]) -> None:
        """Write lines that nobody asked for, between two answers."""

    def forget_emitted(self) -> None:
        """Drop such lines that still wait."""

    def pause(self, seconds: float) -> Deferred[None]:
        """Fires after that time."""

    def fail(self, error: FarmError) -> None:
        """Say why, and close."""

    @property
    def can_start_tls(self) -> bool:
        """Whether there is a certificate to show, and the link is not encrypted yet."""


@define
class Session:
    """One connection, as its commands see it."""

    backend: Backend
    link: Link
    written: WrittenEvents
    local: bool
    """From this very machine."""
    address: str = ""
    """Where it comes from."""
    encrypted: bool = False
    principal: Principal | None = None
    certificate: Callable[[], Any] = field(default=lambda: None)
    """The certificate that the other side showed."""
    failures: int = 0
    proof: bytes = field(default=b"", repr=False)
    """SHA-256 of the secret that was shown."""
    keys_revision: int = 0
    """Of the last change of any key when this one was found to be good."""
    watching: Watching | None = None

    @property
    def resuming(self) -> bool:
        """Whether the server has the table, and waits for the others of its farm."""
        return self.backend.state.phase == "waiting" and self.backend.holds_table

    @property
    def ready(self) -> bool:
        """Whether more than `state` of the backend may be touched."""
        return self.backend.state.phase in ("serving", "readonly")

    @property
    def catalog(self) -> Names:
        """The files that the principal may see."""
        return catalog_of(self.backend.catalog, self.principal)

    async def confirm(self) -> None:
        """Look at the key again if any key has changed since; raises `AuthenticationFailed` if it is no longer good."""
        if not self.proof or self.principal is None or self.keys_revision == self.backend.keys_revision:
            return
        revision = self.backend.keys_revision
        try:
            self.principal = await self.backend.confirm(self.principal.id, self.proof)
        except AuthenticationFailed:
            self.principal, self.proof = None, b""
            raise AuthenticationFailed("the key of this link is no longer good") from None
        self.keys_revision = revision

    def end_watch(self) -> None:
        """End the watch that is running, if one is, without another word of it."""
        watching, self.watching = self.watching, None
        if watching is not None:
            watching.stop()
            self.link.forget_emitted()

    def identify(self) -> Principal | None:
        """Who asks: the key that AUTH proved, else the server whose certificate was shown."""
        if self.principal is None and self.encrypted and self.ready:
            server_id = self.backend.peer_of(self.certificate())
            if server_id is not None:
                self.principal = Principal(server_id, "server")
        return self.principal


Run = Callable[[Session, "Request"], Awaitable[Answer]]


@frozen(kw_only=True)
class Command:
    """A command: how it is written, who may give it, and what it does."""

    name: str
    usage: str
    """What follows the name."""
    summary: str
    run: Run
    access: str = READ
    least: int = 0
    most: int = 0
    """Words after the name."""
    payload_at: int | None = None
    """Which of the words is the length of the payload; None: there is none."""
    payload_max: int = 0
    overlaps: bool = False
    """Whether it may run beside its neighbours that may too: it changes nothing that their answers depend on."""
    changes_session: bool = False
    """Whether what follows it cannot be understood before it is done."""
    when_waiting: bool = False
    """Whether it is answered before the server serves."""
    when_resuming: bool = False
    """Whether it is so on a server that has the table and waits for the others."""
    by_certificate: bool = False
    """Whether a farm certificate is enough."""
    by_master: bool = False
    """Whether that of a master is."""
    once_begun: bool = False
    """Whether it runs to its end although the link is lost: it changes something."""

    audited: bool = False
    """Whether it is written down who gave it."""

    @property
    def needs_first(self) -> bool:
        """Whether it can do nothing while nobody leads the farm."""
        return self.once_begun and not self.when_resuming


@frozen
class Request:
    """A command as it was given: its words, decoded, and its payload."""

    words: tuple[str, ...]
    payload: bytearray | None = None

    def word(self, position: int, default: str = "") -> str:
        """The word there; `-` and nothing are the default."""
        if position >= len(self.words) or self.words[position] == "-":
            return default
        return self.words[position]
