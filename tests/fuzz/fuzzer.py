"""A fuzzer that is led by coverage: it keeps inputs that reach something new, and changes those again.

Everything is drawn from one seed, so that a run is the same every time. A target is the code under test with its
promises (`promises`); whatever it raises is a finding.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Protocol

from attrs import define, frozen

from tests.fuzz.arcs import Arcs
from tests.fuzz.mutations import Mutations
from tests.fuzz.promises import Broken

LONGEST = 24 * 1024
"""Bytes of an input: more than one line, one head, or a third of a box, and little enough to be quick."""
SHORTENING_TRIES = 300
"""How often it is tried to leave something out of an input that breaks a promise."""
NEWEST = 40
"""Inputs found last, which are changed as often as all the others together."""
GROWTH_INPUTS = 150
"""Inputs in each round of the look at memory."""
GROWTH_MAX = 2.0
"""Blocks of memory that may stay for each input of a round: none should, and caches are still filling."""


class Target(Protocol):
    """What is fuzzed."""

    @property
    def name(self) -> str:
        """As it is called on the command line."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Beginnings of the names of those modules whose ways are counted."""

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """Honest inputs to begin with."""

    @property
    def tokens(self) -> tuple[bytes, ...]:
        """Words that mean something to the code."""

    @property
    def separator(self) -> bytes:
        """What stands between pieces that can be moved about."""

    def run(self, data: bytes) -> None:
        """Try one input, from the same state as every other; raises `Broken`, or whatever gets out."""

    def live(self, data: bytes) -> None:
        """Try one on the server that has seen the earlier ones: for the look at what stays in memory."""

    def end(self) -> None:
        """Put an end to the servers of `live`."""

    def changed(self, data: bytes, mutations: Mutations) -> bytes | None:
        """A change that keeps to the form of the input, so that it gets further; None: there is none."""


@frozen
class Finding:
    """An input that breaks a promise."""

    data: bytes
    why: str
    inputs: int
    """How many inputs had been tried by then."""


@define
class _Kept:
    data: bytes


class Fuzzer:
    """One run over one target."""

    def __init__(self, target: Target, seed: int = 1) -> None:
        self.target = target
        self.inputs = 0
        self.known: set[int] = set()
        """All that was reached."""
        self.corpus: list[bytes] = []
        self._random = Random(seed)
        self._mutations = Mutations(self._random, target.tokens, target.separator, LONGEST)
        self._arcs = Arcs(target.modules)
        self._waiting = list(target.seeds)

    def run(
        self, inputs: int | None = None, seconds: float | None = None, shown: Callable[[Fuzzer], None] = lambda _: None
    ) -> Finding | None:
        """Try so many inputs, or for so long; the first finding, made short, ends it. `shown` is called after each."""
        end = time.monotonic() + seconds if seconds is not None else None
        with little_to_collect():
            while (inputs is None or self.inputs < inputs) and (end is None or time.monotonic() < end):
                data = self._next()
                why = self._tried(data)
                if why:
                    return Finding(self._shortened(data), why, self.inputs)
                shown(self)
        return None

    def _next(self) -> bytes:
        if self._waiting:
            return self._waiting.pop(0)
        data, other = self._chosen(), self._chosen()
        if self._random.random() < 0.5:
            changed = self.target.changed(data, self._mutations)
            if changed is not None:
                return changed[:LONGEST]
        return self._mutations.of(data, other)

    def _chosen(self) -> bytes:
        if not self.corpus:
            return b""
        return self._random.choice(self.corpus[-NEWEST:] if self._random.random() < 0.5 else self.corpus)

    def _tried(self, data: bytes) -> str:
        """Try an input, and keep it if it is new; why it is a finding, or an empty string."""
        self.inputs += 1
        try:
            with self._arcs:
                self.target.run(data)
        except Exception as error:
            return told(error)
        taken = self._arcs.taken()
        if not taken <= self.known:
            self.known |= taken
            self.corpus.append(data)
        return ""

    def _shortened(self, data: bytes) -> bytes:
        """The finding without all that it does not need."""
        tries, size = 0, len(data) // 2
        while size and tries < SHORTENING_TRIES:
            at, before = 0, len(data)
            while at < len(data) and tries < SHORTENING_TRIES:
                tries += 1
                shorter = data[:at] + data[at + size :]
                if self._breaks(shorter):
                    data = shorter
                else:
                    at += size
            if len(data) == before or size > len(data):
                size //= 2
        return data

    def _breaks(self, data: bytes) -> bool:
        try:
            with self._arcs:
                self.target.run(data)
        except Exception:
            return True
        return False

    def look_for_growth(self) -> None:
        """Nothing stays in memory of inputs that are over: `Broken` if something does.

        On one living server, with inputs that it has never seen. The first rounds fill what is kept once.
        """
        stays: list[float] = []
        with little_to_collect():
            for _ in range(4):
                gc.collect()
                before = sys.getallocatedblocks()
                for _ in range(GROWTH_INPUTS):
                    self.target.live(self._next())
                gc.collect()
                stays.append((sys.getallocatedblocks() - before) / GROWTH_INPUTS)
            self.target.end()
        if min(stays[1:]) > GROWTH_MAX:
            rounds = ", ".join(f"{blocks:.1f}" for blocks in stays)
            raise Broken(f"each input leaves something in memory: {rounds} blocks an input in rounds of new ones")


@contextmanager
def little_to_collect() -> Iterator[None]:
    """What is there already need not be looked through after every input."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def told(error: BaseException) -> str:
    """What a finding says."""
    if isinstance(error, Broken):
        return str(error)
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" at {where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else ""
    return f"{type(error).__name__} got out{place}: {error}"
