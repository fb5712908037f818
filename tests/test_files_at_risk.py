"""How many files can be lost: counted by the first, from what servers say of their chunks and from the index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import files_at_risk
from chunkfarm.chunks.at_risk import AtRisk
from chunkfarm.errors import Waiting
from chunkfarm.files_at_risk import (
    FRESH_SECONDS,
    KEY,
    KEYS_MAX,
    OLD_SECONDS,
    WAIT_SECONDS,
    FilesAtRisk,
    RiskLink,
    Told,
    told_by,
)
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed
from chunkfarm.model import digest_of
from chunkfarm.risk import Exposed, FilesOf, LostFiles, summed
from tests.builders import server_id

A, B, C = (server_id(number) for number in (1, 2, 3))
ALPHA, BOTH = (A,), (A, B)


class World:
    """The servers that answer for chunks at risk, and the files that use those; each chunk is a number."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.servers: dict[str, AtRisk] = {}
        self.uses: dict[bytes, set[int]] = {}
        self.hindrance = ""
        self.dead: set[str] = set()
        self.slow: Deferred[None] | None = None
        self.asked = 0
        self.counting = FilesAtRisk(self.told, self.ask, self, self.clock)

    def note(self, server: str, chunk: int, holders: Sequence[str], *files: int) -> None:
        digest = digest_of(bytes([chunk]))
        self.servers.setdefault(server, AtRisk()).note(digest, 10, holders)
        self.uses[digest] = set(files)

    def told(self) -> tuple[Told, ...]:
        said = {id: at_risk.risk(looked=True) for id, at_risk in self.servers.items()}
        return told_by(summed(said.values()).sets, said)

    def ask(self, server: str, holders: tuple[str, ...], start: int) -> Deferred[Any]:
        self.asked += 1
        if server in self.dead:
            return fail(LinkFailed("it does not answer"))
        page = self.servers[server].page(holders, start)
        return succeed(page) if self.slow is None else self.slow.addCallback(lambda _: page)

    def files_with(self, keys: Sequence[bytes]) -> Deferred[tuple[frozenset[int], bool]]:
        found = [files for digest, files in self.uses.items() if digest[:8] in keys]
        return succeed((frozenset().union(*found), False))

    def names_of(self, files: Sequence[int]) -> Deferred[list[str]]:
        return succeed([f"lab/{file}" for file in files])


class CountTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()

    def known(self) -> LostFiles | None:
        return self.successResultOf(self.world.counting.known())

    def test_nothing(self) -> None:
        """While nothing can be lost nobody is asked."""
        assert self.known() == LostFiles() and not self.world.asked

    def test_files(self) -> None:
        """A file of many chunks is one file; of what two servers tell of a pair, both count; names are told of some."""
        for chunk in range(5):
            self.world.note(A, chunk, ALPHA, 1)
        self.world.note(A, 10, BOTH, 1, 2)
        self.world.note(B, 11, BOTH, 2, 3, 4, 5)
        self.world.note(B, 12, BOTH)
        assert self.known() == LostFiles(
            sets=(
                FilesOf(ALPHA, 1, False, ("lab/1",)),
                FilesOf(BOTH, 5, False, ("lab/1", "lab/2", "lab/3")),
            ),
            one=1,
            two=5,
        )

    def test_who_does_not_answer(self) -> None:
        """What a server does not say makes it `at least`; of whom nobody says anything nothing is told."""
        self.world.note(A, 1, BOTH, 1)
        self.world.note(B, 2, BOTH, 2)
        self.world.note(C, 3, [C], 3)
        self.world.dead = {B, C}
        found = self.known()
        assert found is not None
        assert found.sets == (FilesOf(BOTH, 1, True, ("lab/1",)),)
        assert (found.one, found.one_at_least, found.two, found.two_at_least) == (0, True, 1, True)

    def test_the_index_is_not_whole(self) -> None:
        """As long as not all files are known to the index there may be more."""
        self.world.note(A, 1, ALPHA, 1)
        self.world.hindrance = "the index is being made"
        found = self.known()
        assert found is not None and found.sets[0].at_least and found.one_at_least

    def test_too_many(self) -> None:
        """Of very many chunks some are looked up, and it says so."""
        self.patch(files_at_risk, "KEYS_MAX", 50)
        for chunk in range(200):
            self.world.note(A, chunk, ALPHA, chunk)
        found = self.known()
        assert found is not None and (found.one, found.one_at_least) == (50, True) and KEYS_MAX > 50

    def test_seldom(self) -> None:
        """What was counted is told again; anew when chunks are others, or after a minute, for files are removed."""
        self.world.note(A, 1, ALPHA, 1)
        self.known()
        for _ in range(10):
            self.known()
        assert self.world.asked == 1
        self.world.note(A, 2, ALPHA, 2)
        first = self.known()
        assert self.world.asked == 1 and first is not None and first.one == 1
        self.world.clock.advance(FRESH_SECONDS)
        second = self.known()
        assert self.world.asked == 2 and second is not None and second.one == 2
        self.world.clock.advance(OLD_SECONDS)
        self.known()
        assert self.world.asked == 3

    def test_nobody_waits_for_long(self) -> None:
        """Whoever asks is told after two seconds what is known; a count that took long is not repeated at once."""
        self.world.note(A, 1, ALPHA, 1)
        self.world.slow = Deferred()
        first, second = self.world.counting.known(), self.world.counting.known()
        self.world.clock.advance(WAIT_SECONDS)
        assert self.successResultOf(first) is None and self.successResultOf(second) is None
        third = self.world.counting.known()
        self.world.slow.callback(None)
        found = self.successResultOf(third)
        assert found is not None and found.one == 1
        self.world.note(A, 2, ALPHA, 2)
        self.world.clock.advance(WAIT_SECONDS * 10)
        assert self.known() == found and self.world.asked == 1

    def test_stop(self) -> None:
        """It ends in the middle, and whoever waits is answered."""
        self.world.note(A, 1, ALPHA, 1)
        self.world.slow = Deferred()
        waiting = self.world.counting.known()
        self.successResultOf(self.world.counting.stop())
        assert self.successResultOf(waiting) is None and not self.world.clock.getDelayedCalls()


class LinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.at_risk = AtRisk()
        self.first = B
        self.answer: Any = None
        self.asked: list[tuple[str, object]] = []
        self.here = RiskLink(A, self, self.at_risk.page, lambda: self.first)

    def call(self, server_id: str, command: Any, timeout: float = 0.0, **arguments: Any) -> Deferred[dict[str, Any]]:
        self.asked.append((server_id, command))
        if self.answer is not None:
            return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)
        return succeed(self.here.answer(**arguments))

    def test_all_pages(self) -> None:
        """Another server says the same as this one, in as many pages as it takes."""
        digests = sorted(digest_of(number.to_bytes(2, "big")) for number in range(20_000))
        for number, digest in enumerate(digests):
            self.at_risk.note(digest, 10, ALPHA if number % 3 else BOTH)
        for server in (A, B):
            keys: list[int] = []
            start: int | None = 0
            while start is not None:
                page, start = self.successResultOf(self.here.ask(server, ALPHA, start))
                keys += page
            assert keys == [KEY.unpack(digest[:8])[0] for number, digest in enumerate(digests) if number % 3]
        assert len(self.asked) == 3
        assert self.at_risk.page([C], 0) == ([], None)

    def test_the_last_key(self) -> None:
        """A page ends at the last key of all without an overflow."""
        self.at_risk.note(b"\xff" * 32, 10, ALPHA)
        assert self.at_risk.page(ALPHA, 0) == ([2**64 - 1], None)

    def test_questions_that_make_no_sense(self) -> None:
        """They are refused, and so are such answers."""
        for holders, start in (("x", bytes(8)), (A, b""), ("", bytes(8))):
            self.assertRaises(ValueError, self.here.answer, holders, start)
        for keys, following in ((bytes(7), b""), (b"", bytes(7))):
            self.answer = {"keys": keys, "next": following}
            self.failureResultOf(self.here.ask(B, ALPHA, 0), LinkFailed)

    def test_the_first_is_asked(self) -> None:
        """What it has counted is what every server tells; nothing if it is of a version that does not, or away."""
        told = {"one": 2, "one_at_least": True, "two": 0, "two_at_least": False, "more": 1}
        sets = [{"holders": [A], "files": 2, "at_least": True, "names": ["a/b"]}]
        self.answer = {"answer": json.dumps({**told, "sets": sets})}
        found = self.successResultOf(self.here.lost_files())
        assert found == LostFiles(sets=(FilesOf(ALPHA, 2, True, ("a/b",)),), one=2, one_at_least=True)
        for bad in (LinkFailed("gone"), commands.NotNow("not yet"), Waiting("x"), {"answer": "[]"}, {"answer": "{"}):
            self.answer = bad
            assert self.successResultOf(self.here.lost_files()) is None
        self.first = ""
        asked = len(self.asked)
        assert self.successResultOf(self.here.lost_files()) is None and len(self.asked) == asked


class ToldTests(SynchronousTestCase):
    def test_who_tells(self) -> None:
        """Each set comes with those who can be asked; of the last words of a dead server nobody can be."""
        one, two = Exposed(ALPHA, 1, 1), Exposed(BOTH, 2, 2)
        said = {A: summed([]), B: evolve(summed([]), sets=(two,)), C: evolve(summed([]), sets=(two,))}
        assert told_by([one, two], said) == (Told(one, ()), Told(two, (B, C)))
