"""What the figures of a benchmark mean, and what bounds a farm that does as well as its machines can. Pure.

Rates are bytes a second, times are seconds. The formulas stand here and in docs/operations.md, in the same words.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

MIB = 1024 * 1024
RATE = "MiB/s"
MILLISECONDS = "ms"
PER_SECOND = "/s"

DISK_WRITE = "disk write"
DISK_SYNC = "disk sync"
DISK_READ = "disk read"
SHA256 = "hash SHA-256"
CRC32C = "hash CRC32C"
TCP = "tcp loopback"
TLS = "tls loopback"
ROUND_TRIP = "round trip"
LINK = "link"


@frozen
class Ceiling:
    """What something cannot be faster than: which figure says so, and how fast that is, in the unit of the thing."""

    name: str
    limit: float


@frozen
class Figure:
    """One row: a value in a unit, what it means, and what bounds it if it is the farm's."""

    name: str
    value: float
    unit: str
    meaning: str
    bounds: tuple[Ceiling, ...] = field(default=())

    @property
    def nearest(self) -> Ceiling | None:
        """The lowest ceiling above it."""
        return min(self.bounds, key=lambda one: one.limit, default=None)

    @property
    def percent(self) -> float | None:
        """How much of its nearest ceiling it is; more than 100 says that a ceiling was measured in a bad moment."""
        nearest = self.nearest
        return 100 * self.value / nearest.limit if nearest is not None and nearest.limit > 0 else None

    def shown(self) -> str:
        """The value with its unit."""
        return f"{readable(self.value)} {self.unit}" if self.unit != PER_SECOND else f"{readable(self.value)}/s"

    def as_value(self) -> dict[str, Any]:
        """For JSON."""
        value: dict[str, Any] = {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "meaning": self.meaning,
        }
        if (nearest := self.nearest) is not None:
            value |= {
                "percent": round(self.percent or 0.0, 1),
                "nearest": nearest.name,
                "ceilings": {one.name: round(one.limit, 3) for one in self.bounds},
            }
        return value


def readable(value: float) -> str:
    """Three digits that count, for people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def median(values: Sequence[float]) -> float:
    """The middle one; 0.0 of none."""
    return statistics.median(values) if values else 0.0


@frozen
class Shape:
    """What of a farm decides how often each byte is written, hashed and sent. `links` are rates by server name."""

    copies: int
    """Of each chunk, as many as there can be now."""
    hosts: int
    """Machines that the servers run on."""
    cores: int
    """Processors of this machine."""
    links: Mapping[str, float] = field(factory=dict)
    round_trip: float = 0.0
    """Milliseconds, of the server that people talk to."""

    @property
    def copies_on_a_disk(self) -> int:
        """How many copies of a chunk come to one machine, and so to one disk."""
        return -(-self.copies // self.hosts)

    @property
    def link(self) -> float:
        """To the slowest server."""
        return min(self.links.values(), default=0.0)


def of_large_put(measured: Mapping[str, float], shape: Shape) -> tuple[Ceiling, ...]:
    """Bytes of files a second.

    disk    sequential writing / copies on one disk
    hash    SHA-256; on one machine, where the writer, the server it talks to and all other holders hash the same bytes,
            SHA-256 * processors / (1 + copies) if that is less
    tls     TLS / copies: the server that people talk to decrypts each byte once and encrypts it for the other holders
    link    the rate to the slowest server / (copies - 1): the others' copies leave by one link; on several machines
    """
    bounds = [Ceiling(DISK_WRITE, _of(measured, DISK_WRITE) / shape.copies_on_a_disk)]
    share = min(1.0, shape.cores / (1 + shape.copies)) if shape.hosts == 1 else 1.0
    bounds.append(Ceiling(SHA256, _of(measured, SHA256) * share))
    bounds.append(Ceiling(TLS, _of(measured, TLS) / shape.copies))
    if shape.hosts > 1:
        bounds.append(Ceiling(LINK, shape.link / max(1, shape.copies - 1)))
    return _known(bounds)


def of_large_get(measured: Mapping[str, float], shape: Shape) -> tuple[Ceiling, ...]:
    """Bytes of files a second, of files that were just stored, so that no disk has to be read.

    hash    SHA-256, with which who reads compares
    tls     TLS, once
    link    the rate to the slowest server; on several machines
    """
    bounds = [Ceiling(SHA256, _of(measured, SHA256)), Ceiling(TLS, _of(measured, TLS))]
    if shape.hosts > 1:
        bounds.append(Ceiling(LINK, shape.link))
    return _known(bounds)


def of_small_put(measured: Mapping[str, float], shape: Shape, people: int) -> tuple[Ceiling, ...]:
    """Files a second that several people store at a time.

    disk sync    people / (2 * (sync + round trip)): the chunk is synchronized and acknowledged, then the name
    """
    seconds = 2 * (_of(measured, DISK_SYNC) + shape.round_trip) / 1000
    return _known([Ceiling(f"{DISK_SYNC} + {ROUND_TRIP}", people / seconds if seconds else 0.0)])


def of_small_get(shape: Shape, people: int) -> tuple[Ceiling, ...]:
    """Files a second that several people read at a time.

    round trip    people / (2 * round trip): what the file is, then its bytes
    """
    seconds = 2 * shape.round_trip / 1000
    return _known([Ceiling(ROUND_TRIP, people / seconds if seconds else 0.0)])


def _of(measured: Mapping[str, float], name: str) -> float:
    return measured.get(name, 0.0)


def _known(bounds: Sequence[Ceiling]) -> tuple[Ceiling, ...]:
    """Those that were measured."""
    return tuple(one for one in bounds if one.limit > 0)
