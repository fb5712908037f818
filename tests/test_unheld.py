"""Chunks of files that no server that answers has: who is asked, when it is looked, and what is told."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement
from chunkfarm.errors import Waiting
from chunkfarm.links.interface import HAVE_DIGESTS_MAX
from chunkfarm.model import Server, digest_of
from chunkfarm.references import CannotTell
from chunkfarm.unheld import (
    AGAIN_SECONDS,
    ANEW_MAX,
    HOUR_SECONDS,
    LOOK_SECONDS,
    REST_FACTOR,
    SOON_SECONDS,
    Turns,
    Unheld,
    counted,
    found_so_far,
    owners_alive,
    pairs,
    questions,
    standing,
)
from chunkfarm.unheld_search import RETRY_SECONDS, UnheldSearch
from tests.builders import make_server, server_id
from tests.chunks.builders import run_now

SECOND_OF_ALL = 1_764_000_000_000
"""The wall clock at the start, in ms."""


def chunk(number: int) -> bytes:
    return digest_of(b"%d" % number)


class World:
    """Four servers, two copies, and the chunks that files use."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.servers = tuple(make_server(number) for number in range(1, 5))
        self.used: set[bytes] = set()
        self.held: dict[str, set[bytes]] = {server.id: set() for server in self.servers}
        self.mute: set[str] = set()
        self.leads = True
        self.missed: dict[str, int] = {}
        self.before: Unheld | None = None
        self.hindrance = ""
        self.problem: Exception | None = None
        self.waits: Deferred[None] | None = None
        self.seconds = 0.0
        """Until an answer comes."""
        self.asked: list[tuple[str, int]] = []
        self.search = UnheldSearch(
            self,
            self.ask,
            lambda: self.servers,
            lambda: 2,
            lambda: self.leads,
            lambda: self.missed,
            lambda: self.before,
            self.clock,
            lambda: SECOND_OF_ALL + round(self.clock.seconds() * 1000),
            run_now,
        )

    def store(self, digest: bytes, *numbers: int) -> bytes:
        """A chunk of a file, on these servers or where it belongs."""
        self.used.add(digest)
        ids = list(map(server_id, numbers)) or [one.id for one in placement.owners(digest, self.servers, 2)]
        for id in ids:
            self.held[id].add(digest)
        return digest

    def change(self, number: int, **changes: object) -> None:
        """Another row of a server."""
        self.servers = tuple(
            evolve(server, **changes) if server.id == server_id(number) else server  # type: ignore[arg-type]
            for server in self.servers
        )
        self.search.table_changed()

    def run(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(2 * seconds))

    # What the search is given.

    def ask(self, server: Server, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        self.asked.append((server.name, len(digests)))
        if server.id in self.mute:
            return fail(Waiting("not now"))
        answer = [10 * (digest in self.held[server.id]) for digest in digests]
        if self.seconds:
            return deferLater(self.clock, self.seconds, lambda: answer)
        return succeed(answer) if self.waits is None else self.waits.addCallback(lambda _: answer)

    def used_after(self, after: bytes, limit: int) -> Deferred[list[bytes]]:
        if self.problem is not None:
            return fail(self.problem)
        return succeed(sorted(digest for digest in self.used if digest > after)[:limit])

    def still_used(self, digests: Sequence[bytes]) -> Deferred[list[bytes]]:
        return succeed([digest for digest in digests if digest in self.used])

    def names(self, digest: bytes, limit: int) -> Deferred[list[str]]:
        return succeed(["lab/a"])


class SearchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.world.search.start()
        self.addCleanup(self.world.search.stop)

    def run_for(self, seconds: float) -> Unheld | None:
        self.world.run(seconds)
        return self.world.search.told

    def soon(self) -> Unheld | None:
        """What is told some seconds after a change."""
        return self.run_for(SOON_SECONDS + 2 * LOOK_SECONDS)

    def test_once_each(self) -> None:
        """A chunk that nobody has is counted once, with the time; those that somebody has are not."""
        for number in range(20):
            self.world.store(chunk(number))
        for number in (30, 31, 32):
            self.world.used.add(chunk(number))
        found = self.soon()
        assert found is not None and (found.chunks, found.at_least) == (3, False)
        assert found.since == found.looked > SECOND_OF_ALL
        assert self.run_for(AGAIN_SECONDS + 5) == evolve(found, looked=self.world.search.told.looked)  # type: ignore
        assert found.looked != self.world.search.told.looked  # type: ignore[union-attr]

    def test_nothing_is_lost(self) -> None:
        """Where all owners have their chunks each chunk is asked about once, and then not for an hour."""
        for number in range(50):
            self.world.store(chunk(number))
        assert self.soon() == Unheld(chunks=0, looked=self.world.search.told.looked)  # type: ignore[union-attr]
        assert sum(count for _, count in self.world.asked) == 50
        self.run_for(HOUR_SECONDS - 60)
        assert sum(count for _, count in self.world.asked) == 50
        self.run_for(120)
        assert sum(count for _, count in self.world.asked) == 100

    def test_anybody_will_do(self) -> None:
        """A chunk that is where it does not belong, also on a server that stores nothing any more, is not lost."""
        digest = chunk(1)
        *_, last = placement.order(digest, self.world.servers)
        number = next(number for number in range(1, 5) if server_id(number) == last.id)
        self.world.store(digest, number)
        self.world.change(number, weight=0)
        found = self.soon()
        assert found is not None and found.chunks == 0

    def test_the_holder_dies_and_comes_back(self) -> None:
        """What only a server has that is down is lost within seconds, and found within seconds when it is back."""
        for number in range(5):
            self.world.store(chunk(number), 3)
        found = self.soon()
        assert found is not None and found.chunks == 0
        self.world.change(3, state="down")
        found = self.soon()
        assert found is not None and (found.chunks, found.since > 0) == (5, True)
        self.world.change(3, state="up", incarnation="again")
        found = self.soon()
        assert found is not None and (found.chunks, found.since) == (0, 0)

    def test_who_does_not_answer(self) -> None:
        """A server that is up and says nothing, asked twice, counts as one that has nothing; it is asked again soon."""
        self.world.store(chunk(1), 2)
        self.world.mute = {server_id(2)}
        assert self.soon() is None
        found = self.run_for(RETRY_SECONDS)
        assert found is not None and found.chunks == 1
        self.world.mute = set()
        found = self.run_for(2 * REST_FACTOR * RETRY_SECONDS)
        assert found is not None and found.chunks == 0

    def test_who_did_not_answer_once(self) -> None:
        """A single answer that does not come makes nothing lost."""
        self.world.store(chunk(1), 2)
        self.world.mute = {server_id(2)}
        self.soon()
        self.world.mute = set()
        found = self.run_for(RETRY_SECONDS)
        assert found is not None and found.chunks == 0

    def test_a_silent_server_delays_little(self) -> None:
        """Whoever never answers is not asked in each step of a look, and what others have is found all the same."""
        for number in range(4 * HAVE_DIGESTS_MAX):
            self.world.store(chunk(number))
        self.world.mute = {server_id(1)}
        self.run_for(60)
        found = self.world.search.told
        assert found is not None and found.looked and found.chunks == 0
        assert len([name for name, _ in self.world.asked if name == "s1"]) <= 3

    def test_in_many_steps(self) -> None:
        """Of many chunks those that are lost are told before the end, as so many at least."""
        for number in range(2 * HAVE_DIGESTS_MAX + 10):
            self.world.used.add(chunk(number))
        self.world.store(max(self.world.used))
        self.world.seconds = 0.5
        told = [self.run_for(0.5) for _ in range(60)]
        seen = [(one.chunks, one.at_least, bool(one.looked)) for one in dict.fromkeys(told) if one is not None]
        at_last = (2 * HAVE_DIGESTS_MAX + 9, False, True)
        assert seen == [(HAVE_DIGESTS_MAX, True, False), (2 * HAVE_DIGESTS_MAX, True, False), at_last]

    def test_only_the_first(self) -> None:
        """Who does not lead asks nobody and tells nothing; a look under way when it lost the lead is given up."""
        self.world.leads = False
        self.world.used.add(chunk(1))
        assert self.soon() is None and not self.world.asked
        self.world.leads = True
        self.world.run(SOON_SECONDS)
        waits: Deferred[None] = Deferred()
        self.world.waits = waits
        self.world.run(2 * LOOK_SECONDS)
        assert self.world.asked
        self.world.leads, self.world.waits = False, None
        waits.callback(None)
        assert self.run_for(5) is None
        asked = len(self.world.asked)
        assert self.soon() is None and len(self.world.asked) == asked

    def test_a_new_first_knows_since_when(self) -> None:
        """What the first before it has told says since when chunks are lost."""
        self.world.used.add(chunk(1))
        self.world.before = Unheld(chunks=7, since=5, looked=9)
        found = self.soon()
        assert found is not None and (found.chunks, found.since) == (1, 5)

    def test_a_change_in_the_middle(self) -> None:
        """A look during which a server dies tells nothing; another one begins."""
        self.world.store(chunk(1), 1)
        waits: Deferred[None] = Deferred()
        self.world.waits = waits
        self.soon()
        self.world.change(1, state="down")
        self.world.waits = None
        waits.callback(None)
        found = self.soon()
        assert found is not None and found.chunks == 1

    def test_removed_meanwhile(self) -> None:
        """A chunk whose file was removed while it was asked about is not lost."""
        self.world.used.add(chunk(1))
        waits: Deferred[None] = Deferred()
        self.world.waits = waits
        self.soon()
        self.world.used.clear()
        self.world.waits = None
        waits.callback(None)
        found = self.run_for(5)
        assert found is not None and found.chunks == 0

    def test_a_caretaker_that_finds_nothing(self) -> None:
        """When a server says that it misses what nobody has, it is looked within a minute: the only copy has rotted."""
        digest = self.world.store(chunk(1), 1)
        self.soon()
        self.world.held[server_id(1)].remove(digest)
        self.world.missed = {server_id(1): 1}
        found = self.run_for(AGAIN_SECONDS)
        assert found is not None and found.chunks == 1

    def test_the_index_is_not_there(self) -> None:
        """As long as nobody knows which chunks are used nothing is told, and it is tried again."""
        self.world.used.add(chunk(1))
        self.world.problem = CannotTell("it is being made")
        assert self.soon() is None
        self.world.problem = None
        found = self.run_for(2 * RETRY_SECONDS)
        assert found is not None and found.chunks == 1

    def test_manifests_that_cannot_be_read(self) -> None:
        """Where not all chunks of files are known there may be more."""
        self.world.used.add(chunk(1))
        self.world.hindrance = "the manifest of lab/a cannot be read"
        found = self.soon()
        assert found is not None and (found.chunks, found.at_least) == (1, True)

    def test_stop(self) -> None:
        """It ends in the middle, and leaves no timer."""
        self.world.used.add(chunk(1))
        self.world.waits = Deferred()
        self.soon()
        self.successResultOf(self.world.search.stop())
        assert not self.world.clock.getDelayedCalls()


class TurnsTests(SynchronousTestCase):
    def test_servers_that_change_all_the_time(self) -> None:
        """After some looks that were given up one comes to its end, and the next begins later than that took."""
        turns = Turns()
        began, now = 0, 0.0
        for change in range(100):
            now += SOON_SECONDS
            turns.note(change, {}, now - SOON_SECONDS)
            began += turns.begins(now)
        assert began == ANEW_MAX + 1
        turns.over(now, again=False)
        assert turns.rest(now) == LOOK_SECONDS and not turns.begins(now + SOON_SECONDS)
        assert turns.begins(2 * now)

    def test_again(self) -> None:
        """While something is lost it is looked more often, but for a small part of the time."""
        turns = Turns()
        turns.note(1, {}, 0.0)
        assert turns.begins(SOON_SECONDS)
        turns.over(SOON_SECONDS + 10, again=True)
        due = SOON_SECONDS + 10 + REST_FACTOR * 10
        assert not turns.begins(due - 1) and turns.begins(due)
        turns.over(due + 1000, again=True)
        assert not turns.begins(due + 1000 + HOUR_SECONDS - 1) and turns.begins(due + 1000 + HOUR_SECONDS)

    def test_what_servers_miss(self) -> None:
        """When servers miss others than before it is looked soon, but for a small part of the time."""
        turns = Turns()
        turns.note(1, {}, 0.0)
        assert turns.begins(SOON_SECONDS)
        turns.note(1, {server_id(1): 1}, SOON_SECONDS + 1)
        assert not turns.begins(SOON_SECONDS + 9)
        now = SOON_SECONDS + 10
        turns.over(now, again=False)
        later = now + REST_FACTOR * 10
        turns.note(1, {server_id(1): 2}, now + 1)
        assert not turns.begins(later - 1) and turns.begins(later)
        turns.over(later, again=False)
        turns.note(1, {}, later + 1000)
        assert not turns.begins(later + 1000) and turns.begins(later + 1000 + SOON_SECONDS)

    def test_what_counts_as_a_change(self) -> None:
        """Who is up, which process it is, and who is given up; not how full disks are."""
        one, two = make_server(1), make_server(2)
        before = standing((one, two))
        assert standing((evolve(one, free=9, note="x"), two)) == before
        for changed in (evolve(one, state="down"), evolve(one, incarnation="x"), evolve(one, given_up=True)):
            assert standing((changed, two)) != before
        assert standing((one,)) != before


class RuleTests(SynchronousTestCase):
    def test_whom_to_ask(self) -> None:
        """The owners that live, the most entitled first, and each chunk of one at a time."""
        servers = tuple(make_server(number) for number in range(1, 5))
        digests = [chunk(number) for number in range(40)]
        servers = (evolve(servers[0], state="down"), *servers[1:])
        line = owners_alive(digests, servers, 2)
        for digest in digests:
            owners = [server.id for server in placement.owners(digest, servers, 2)]
            assert list(line[digest]) == [id for id in owners if id != server_id(1)]
        first = questions(line, digests, 0)
        assert sorted(digest for asked in first.values() for digest in asked) == sorted(digests)
        assert sum(map(len, questions(line, digests, 1).values())) == sum(len(ids) == 2 for ids in line.values())

    def test_what_is_told_on_the_way(self) -> None:
        """A look under way makes the number larger only; its end makes it what it is."""
        assert found_so_far(None, 0, 5) is None
        found = found_so_far(None, 3, 5)
        assert found == Unheld(chunks=3, at_least=True, since=5)
        assert found_so_far(found, 2, 6) is found
        assert counted(found, 2, False, 7) == Unheld(chunks=2, since=5, looked=7)
        assert counted(found, 0, False, 7) == Unheld(chunks=0, looked=7)

    def test_status(self) -> None:
        """STATUS says how many, since when, and when it was looked; nothing of the number as long as nobody knows."""
        assert pairs(None) == [("lost-looked", "not yet")]
        assert dict(pairs(Unheld(chunks=0, looked=1000))) == {"lost": "0", "lost-looked": "1970-01-01T00:00:01.000Z"}
        assert dict(pairs(Unheld(chunks=3, at_least=True, since=2000))) == {
            "lost": "3",
            "lost-at-least": "yes",
            "lost-since": "1970-01-01T00:00:02.000Z",
            "lost-looked": "not yet",
        }
