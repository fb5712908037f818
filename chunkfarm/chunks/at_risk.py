"""Which chunks of this disk have one or two copies, and on which servers: sums that are always up to date. Pure.

With two replicas that is every chunk. So of each only 16 bytes are remembered, in arrays: the first eight bytes of its
digest, its length, and the number of the set of servers that have it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable

from chunkfarm.risk import COPIES_MAX, TOLD_MAX, Risk, ranked

KEY_BYTES = 8
"""Of a digest: two of a million chunks are the same in them with a chance of one in forty million, and that would make
a number wrong by one."""
PAGE_LOOKED = 8_000
"""Chunks looked at for one page: within a millisecond, and what is found fits one answer between servers."""
_KEY_BITS = 8 * KEY_BYTES
_KEY_MAX = (1 << _KEY_BITS) - 1
_LENGTH_BITS = 32
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_PREFIXES = 256


class AtRisk:
    """The chunks for which this server answers, of those that have at most `COPIES_MAX` copies."""

    def __init__(self) -> None:
        self._keys = [array("Q") for _ in range(_PREFIXES)]
        """In order, for each first byte."""
        self._values = [array("Q") for _ in range(_PREFIXES)]
        """To each key the number of its set, and its length."""
        self._numbers: dict[tuple[str, ...], int] = {}
        self._totals: dict[int, tuple[int, int]] = {}
        """Chunks and bytes by the number of their set."""
        self._told: Risk | None = Risk()

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def note(self, digest: bytes, length: int, holders: Collection[str]) -> None:
        """These servers have the chunk, and no others. A length is below 4 GiB."""
        if not 0 < len(holders) <= COPIES_MAX:
            self.forget(digest)
            return
        value = self._number(tuple(sorted(holders))) << _LENGTH_BITS | length
        keys, values, key = self._keys[digest[0]], self._values[digest[0]], _key(digest)
        place = bisect_left(keys, key)
        if place < len(keys) and keys[place] == key:
            if values[place] == value:
                return
            self._count(values[place], -1)
            values[place] = value
        else:
            keys.insert(place, key)
            values.insert(place, value)
        self._count(value, 1)

    def forget(self, digest: bytes) -> None:
        """It has more copies, or another server answers for it; harmless for one that is not noted."""
        keys, values, key = self._keys[digest[0]], self._values[digest[0]], _key(digest)
        place = bisect_left(keys, key)
        if place < len(keys) and keys[place] == key:
            self._count(values[place], -1)
            del keys[place], values[place]

    def keep(self, prefix: int, digests: Iterable[bytes]) -> None:
        """Of the chunks that begin with this byte these are here; all others are gone."""
        if not self._keys[prefix]:
            return
        here = set(map(_key, digests))
        kept_keys, kept_values = array("Q"), array("Q")
        for key, value in zip(self._keys[prefix], self._values[prefix], strict=True):
            if key in here:
                kept_keys.append(key)
                kept_values.append(value)
            else:
                self._count(value, -1)
        self._keys[prefix], self._values[prefix] = kept_keys, kept_values

    def risk(self, looked: bool) -> Risk:
        """What it comes to; `looked` says whether all chunks of this disk were looked at."""
        unknown = 0 if looked else 1
        if self._told is None or self._told.unknown != unknown:
            totals = {holders: self._totals[number] for holders, number in self._numbers.items()}
            self._told = ranked(
                {holders: total for holders, total in totals.items() if total[0]}, TOLD_MAX, Risk(unknown=unknown)
            )
        return self._told

    def page(self, holders: Collection[str], start: int) -> tuple[list[int], int | None]:
        """Keys of chunks of which these servers have all copies, from `start` on; and where to go on, or None.

        In order; `PAGE_LOOKED` chunks are looked at, so that a page may hold few keys of many.
        """
        number = self._numbers.get(tuple(sorted(holders)))
        found: list[int] = []
        looked = 0
        for prefix in range(start >> _KEY_BITS - 8, _PREFIXES) if number is not None else ():
            keys, values = self._keys[prefix], self._values[prefix]
            begin = bisect_left(keys, start)
            end = min(len(keys), begin + PAGE_LOOKED - looked)
            pairs = zip(keys[begin:end], values[begin:end], strict=True)
            found += [key for key, value in pairs if value >> _LENGTH_BITS == number]
            looked += end - begin
            if looked == PAGE_LOOKED:
                return found, keys[end - 1] + 1 if keys[end - 1] < _KEY_MAX else None
        return found, None

    def _number(self, holders: tuple[str, ...]) -> int:
        number = self._numbers.get(holders)
        if number is None:
            self._tidy()
            number = next(number for number in range(len(self._totals) + 1) if number not in self._totals)
            self._numbers[holders] = number
            self._totals[number] = 0, 0
        return number

    def _tidy(self) -> None:
        """Forget the sets that no chunk has any more."""
        for holders, number in list(self._numbers.items()):
            if not self._totals[number][0]:
                del self._numbers[holders], self._totals[number]

    def _count(self, value: int, sign: int) -> None:
        number, length = value >> _LENGTH_BITS, value & _LENGTH_MASK
        chunks, size = self._totals[number]
        self._totals[number] = chunks + sign, size + sign * length
        self._told = None


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:KEY_BYTES], "big")
