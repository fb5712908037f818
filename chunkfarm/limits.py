"""What a server takes from whoever connects to it: connections, bytes, time. Values alone.

Each limit is an option of `[limits]` in `config.ini` with the same name, for this machine, and its default stands here
with the reason for it. All hold at once for new connections when the file is read again, and most for open ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
from attrs import evolve, fields, frozen

from chunkfarm.config_values import format_duration, format_size, read_duration, read_size, read_whole_number
from chunkfarm.model import KIB, MIB

OWN_DESCRIPTORS = 512
"""What a server opens for itself: its three ports, SQLite, packs and chunk files that are read, links to other servers
(two for each, and up to eight for chunks), the log."""
LEAST_SHARE = 16
"""Connections that a port keeps, however few descriptors there are."""
PORTS = ("client_connections", "peer_connections", "files_connections")
"""The limits that take descriptors."""


def _limit(kind: str, default: float, low: float, high: float) -> Any:
    return attrs.field(default=default, metadata={"kind": kind, "low": low, "high": high})


def _count(default: int, low: int = 1, high: int = 1_000_000) -> Any:
    return _limit("count", default, low, high)


def _size(default: int, low: int, high: int) -> Any:
    return _limit("size", default, low, high)


def _time(default: float, low: float = 1.0, high: float = 86_400.0) -> Any:
    return _limit("time", default, low, high)


@frozen(kw_only=True)
class Limits:
    """Sizes are bytes, times seconds, rates bytes a second."""

    handshake_time: float = _time(10.0)
    """For a TLS handshake: a few round trips of a slow line, and no more memory for a silent peer."""

    client_connections: int = _count(4096)
    """A connection takes about 30 KiB with TLS, so these take some 120 MiB."""
    client_connections_address: int = _count(512)
    """From one address (of IPv6, one /64). One machine with many clients passes, and cannot shut out the others."""
    client_reserved: int = _count(256, 0)
    """Of all, places that only servers of this farm get, where such were met before: they follow the table here."""
    client_line: int = _size(16 * KIB, 16 * KIB, MIB)
    """The longest line: the longest name, percent-encoded, or 240 digests. What others may send cannot be made less."""
    client_line_time: float = _time(30.0)
    """From the first byte of a line to its end: programs send it at once, and people's terminals too."""
    client_idle: float = _time(600.0)
    """Without a word from somebody who has proved who it is: longer than any pause within a job."""
    client_stranger_idle: float = _time(60.0)
    """The same for all others: time to type a command by hand, and little for those who only hold connections."""
    client_stranger_time: float = _time(300.0)
    """In all, without having proved anything: whoever only asks how things are asks again on another connection."""
    client_pending: int = _count(64, 1, 4096)
    """Commands that are read and not yet answered: enough to keep a link of a long way busy."""
    client_payload: int = _size(24 * MIB, 4 * KIB, 1024 * MIB)
    """Payloads of one link in memory: three chunks of the usual size, one on its way in, one being hashed and written,
    one waiting for its copies. A single larger one passes alone."""
    client_payloads: int = _size(256 * MIB, MIB, 64 * 1024 * MIB)
    """Payloads in memory over all links: four of the largest chunks, 32 of the usual ones."""
    client_payload_rate: int = _size(1 * KIB, 1, MIB)
    """That a payload must arrive with on average, because it holds memory until it is whole."""
    client_payload_time: float = _time(60.0)
    """Before that average is looked at."""
    client_answer_rate: int = _size(1 * KIB, 1, MIB)
    """That answers must be taken with while some wait: what is not taken lies in memory."""
    client_answer_time: float = _time(60.0)
    """Over which that is looked at: a program may well pause for a while."""
    client_watch_backlog: int = _size(1 * MIB, 64 * KIB, 64 * MIB)
    """Of events that wait for a slow watcher; some thousand rows. It reads and watches again."""

    peer_connections: int = _count(4096)
    """The first has a link of each server; past this something is wrong."""
    peer_strangers: int = _count(1024)
    """That have shown no certificate of this farm yet: enough for a thousand servers that turn to a new first in the
    same second. With fewer they would put each other out before any was done. Past it the address that has most of
    them loses its oldest."""
    peer_strangers_address: int = _count(512)
    """The same from one address: its oldest goes."""
    peer_stranger_time: float = _time(60.0)
    """How long such a link may last: a join takes a second, and a founder may take a few."""
    peer_stranger_bytes: int = _size(64 * KIB, 16 * KIB, 2 * MIB)
    """Of an unfinished box of such a link: the largest that one may send, to join, has some four thousand."""
    peer_stranger_questions: int = _count(16, 4)
    """Of such a link, before it ends: a joiner asks two. Some take as long to answer as a hundred take to send, and
    thousands fit one read, so that a farm's reports would wait for a stranger's."""
    peer_stranger_answers: int = _size(256 * KIB, 16 * KIB, 16 * MIB)
    """Of answers that such a link may leave untaken: a thousand probes, where one or two make sense."""

    files_connections: int = _count(4096)
    """Tens of kilobytes of TLS each, so a few hundred megabytes at the worst."""
    files_connections_address: int = _count(1024)
    """From one address (of IPv6, one /64): it may be a gateway for many people, and must not take everybody's place."""
    files_reserved: int = _count(256, 0)
    """Of all, places that only servers of this farm get, where such were met before: chunks travel here."""
    files_head: int = _size(32 * KIB, 4 * KIB, MIB)
    """A whole head. Browsers with many cookies send 8 KiB; Tomcat and node.js end at 8 and 16 KiB, nginx at 32."""
    files_head_time: float = _time(20.0)
    """For a whole head, from its first byte on: a head is one packet, and dribbling it must not hold a connection."""
    files_idle: float = _time(60.0)
    """Between requests. Clients that pool connections keep them for 30 to 90 s; reopening one costs a handshake."""
    files_pipelined: int = _count(64, 1, 4096)
    """Requests of one connection begun in one turn, one after the other: other connections must have theirs."""
    files_body_rate: int = _size(1 * KIB, 1, MIB)
    """That a body must bring while it is read: a tenth of the slowest modem, and still an end."""
    files_body_time: float = _time(30.0)
    """Over which that is looked at: a client may well pause for some seconds."""
    files_answer_rate: int = _size(1 * KIB, 1, MIB)
    """That an answer must be taken with: who takes less holds memory, and for big files a chunk of it."""
    files_answer_time: float = _time(60.0)
    """Over which that is looked at: as long as nginx waits for a client that takes nothing."""
    files_bodies: int = _size(512 * MIB, 64 * MIB, 64 * 1024 * MIB)
    """Of files on their way in, in memory over all connections: 16 uploads of four chunks of the usual size. Past it
    one upload after the other goes on, and the rest are read no further meanwhile."""

    @property
    def descriptors(self) -> int:
        """How many open files these limits may come to, with the server's own."""
        return OWN_DESCRIPTORS + sum(int(getattr(self, name)) for name in PORTS)

    def within(self, descriptors: int) -> Limits:
        """The same with so many fewer connections that a process with so many descriptors never runs out of them.

        Whoever runs out of descriptors can open no chunk, and accept nobody, friend or stranger.
        """
        if self.descriptors <= descriptors:
            return self
        left = descriptors - min(OWN_DESCRIPTORS, descriptors // 2)
        wanted = {name: int(getattr(self, name)) for name in PORTS}
        least = {name: min(number, LEAST_SHARE) for name, number in wanted.items()}
        # What is left when each has its least, in proportion.
        spare, asked = max(0, left - sum(least.values())), sum(wanted.values()) - sum(least.values())
        fewer = {name: least[name] + (wanted[name] - least[name]) * spare // max(1, asked) for name in PORTS}
        # What was a part of all connections still is one.
        parts = {
            name: min(getattr(self, name), max(1, fewer[whole] // 4))
            for name, whole in (
                ("client_connections_address", "client_connections"),
                ("client_reserved", "client_connections"),
                ("peer_strangers", "peer_connections"),
                ("peer_strangers_address", "peer_connections"),
                ("files_connections_address", "files_connections"),
                ("files_reserved", "files_connections"),
            )
        }
        return evolve(self, **fewer, **parts)


def _reader(attribute: Any) -> Callable[[str], Any]:
    kind, low, high = (attribute.metadata[name] for name in ("kind", "low", "high"))
    if kind == "count":
        return partial(read_whole_number, lowest=low, highest=high)

    def reader(text: str) -> Any:
        value = read_size(text) if kind == "size" else read_duration(text)
        if not low <= value <= high:
            raise ValueError(f"expected {limit_text(kind, low)} to {limit_text(kind, high)}")
        return value

    return reader


def limit_text(kind: str, value: float) -> str:
    """A limit's value as it stands in the file."""
    if kind == "time":
        return format_duration(value)
    return format_size(int(value)) if kind == "size" else str(int(value))


LIMIT_READERS: Mapping[str, Callable[[str], Any]] = {attribute.name: _reader(attribute) for attribute in fields(Limits)}
"""How to read each option of `[limits]`."""


def check_limits(limits: Limits) -> tuple[str, str, str] | None:
    """The first two options that do not fit each other, and a sentence about them; None if all do."""
    for part, whole in (
        ("client_reserved", "client_connections"),
        ("files_reserved", "files_connections"),
        ("peer_strangers", "peer_connections"),
    ):
        if getattr(limits, part) >= getattr(limits, whole):
            least = getattr(limits, whole)
            return part, whole, f"{part} is {getattr(limits, part)}: expected less than {whole}, which is {least}"
    if limits.client_payload > limits.client_payloads:
        part, whole = format_size(limits.client_payload), format_size(limits.client_payloads)
        return (
            "client_payload",
            "client_payloads",
            f"client_payload is {part}: expected no more than client_payloads, {whole}",
        )
    return None
