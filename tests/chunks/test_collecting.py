"""How chunks that no file uses go, and that no other chunk does."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import collecting
from chunkfarm.chunks.collecting import AGAIN_SECONDS, DELETED_A_SECOND, Collector, Round, poll_seconds, round_seconds
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.errors import FarmError
from tests.chunks import collecting_farm
from tests.chunks.collecting_farm import PREFIXES, CollectingFarm, chunk

GRACE = 100.0
ROUND = round_seconds(GRACE)
LONG = 1.25 * GRACE + 3 * ROUND
"""After so long what is unused is condemned."""
DELAYS = (0.01, 0.1, 0.5, 2.0)


class CollectingTestCase(SynchronousTestCase):
    """Nothing takes time here but what a test lets pass."""

    def make(self, **options: Any) -> CollectingFarm:
        self.patch(collecting, "PREFIXES", PREFIXES)
        farm = CollectingFarm(Path(self.mktemp()).absolute(), **({"grace": GRACE} | options))
        self.addCleanup(farm.close)
        return farm

    def started(self, **options: Any) -> CollectingFarm:
        farm = self.make(**options)
        farm.collector.start()
        return farm


class CollectorTests(CollectingTestCase):
    def test_unused(self) -> None:
        """A chunk that no file uses any more is deleted after the grace and an epoch; one that is used stays."""
        farm = self.started()
        unused, used = farm.put(1, 2)
        farm.masters.files = {"a": frozenset([unused]), "b": frozenset([used])}
        farm.pass_time(10 * LONG)
        assert farm.has(unused)
        del farm.masters.files["a"]
        farm.pass_time(GRACE)
        assert farm.has(unused)
        assert farm.collector.progress.condemned == 0
        farm.pass_time(LONG - GRACE)
        assert farm.has(unused)
        assert farm.collector.progress.condemned == 1
        assert "waits" in farm.collector.progress.paused
        farm.masters.epoch += 1
        farm.pass_time(poll_seconds(GRACE))
        assert not farm.has(unused)
        assert farm.has(used)
        told = farm.collector.progress
        assert (told.chunks, told.bytes, told.condemned, told.paused) == (1, len(chunk(1)), 0, "")

    def test_used_again(self) -> None:
        """One that a file uses again, before the masters are asked for the last time, stays and is promised again."""
        farm = self.started()
        (digest,) = farm.put(1)
        farm.pass_time(LONG)
        assert farm.collector.progress.condemned == 1
        farm.masters.files["a"] = frozenset([digest])
        farm.masters.epoch += 1
        farm.pass_time(10 * LONG)
        assert farm.has(digest)
        assert self.successResultOf(farm.store.hold([digest])) == [len(chunk(1))]

    def test_one_master_is_wrong(self) -> None:
        """What was said to be unused stays if another master says that it is used when it is about to be deleted."""
        farm = self.started()
        wanted, unwanted = farm.put(1, 2)
        farm.collector._last_word = lambda asked: succeed([int(digest == wanted) for digest in asked])
        for _ in range(3):
            farm.pass_time(LONG)
            farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert farm.has(wanted) and not farm.has(unwanted)

    def test_put_again(self) -> None:
        """One that is stored again while it is condemned stays for another grace."""
        farm = self.started()
        (digest,) = farm.put(1)
        farm.pass_time(LONG)
        farm.put(1)
        farm.masters.epoch += 1
        farm.pass_time(GRACE - 2)
        assert farm.has(digest)
        farm.pass_time(LONG)
        farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert not farm.has(digest)

    def test_used_ones_are_not_condemned(self) -> None:
        """Whoever asks for a chunk that is used is never told no, however old it is."""
        farm = self.started()
        (digest,) = farm.put(1)
        farm.masters.files["a"] = frozenset([digest])
        for _ in range(50):
            farm.pass_time(LONG / 10)
            assert farm.store.condemned == 0

    def test_many(self) -> None:
        """More than fits one question or one batch goes too, and not faster than it may."""
        self.patch(collecting, "USES_MOST", 7)
        self.patch(collecting, "DELETE_BATCH", 3)
        self.patch(collecting, "CONDEMNED_MAX", 20)
        self.patch(collecting, "DELETED_A_SECOND", 2)
        farm = self.started()
        digests = farm.put(*range(40))
        farm.pass_time(LONG)
        assert 20 <= farm.store.condemned < 40
        farm.masters.epoch += 1
        farm.pass_time(poll_seconds(GRACE))
        assert farm.collector.progress.chunks < 10
        for _ in range(3):
            farm.pass_time(LONG)
            farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert not any(map(farm.has, digests))
        assert max(farm.masters.asked) == 7

    def test_chunks_that_cannot_be_looked_at(self) -> None:
        """If the disk fails at some chunks again and again the others go all the same."""
        farm = self.started()
        digests = farm.put(*range(10))
        bad, good = min(digests), max(digests)
        assert bad[0] != good[0]
        scan = farm.store.scan
        farm.store.scan = lambda prefix: (  # type: ignore[method-assign]
            fail(OSError(errno.EIO, "Input/output error")) if prefix == bad[0] else scan(prefix)
        )
        for _ in range(3):
            farm.pass_time(LONG)
            farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert self.flushLoggedErrors(OSError)
        assert farm.has(bad) and not farm.has(good)

    def test_half_a_million(self) -> None:
        """Half a million chunks are gone in a quarter of an hour from when they may go."""
        assert 500_000 / DELETED_A_SECOND < 900

    def test_nobody_answers(self) -> None:
        """While the masters cannot tell, nothing is deleted, and it says why; it goes on where it was."""
        farm = self.started()
        (digest,) = farm.put(1)
        farm.masters.error = FarmError("the manifest of b/film cannot be read")
        farm.pass_time(2 * LONG)
        assert farm.collector.progress.paused == "the manifest of b/film cannot be read"
        assert farm.store.condemned == 0
        farm.masters.error = None
        farm.pass_time(AGAIN_SECONDS + LONG)
        assert farm.store.condemned == 1
        farm.masters.error = FarmError("nobody leads the farm")
        farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert farm.has(digest)
        assert farm.collector.progress.paused == "nobody leads the farm"
        farm.masters.error = None
        farm.pass_time(AGAIN_SECONDS + poll_seconds(GRACE))
        assert not farm.has(digest)
        assert farm.collector.progress.paused == ""

    def test_hindered(self) -> None:
        """It stands still while it must, and says why."""
        farm = self.started()
        farm.hindered = "this server is readonly"
        farm.put(1)
        farm.pass_time(2 * LONG)
        assert farm.masters.asked == []
        assert farm.collector.progress.paused == "this server is readonly"
        farm.hindered = ""
        farm.pass_time(LONG)
        assert farm.store.condemned == 1

    def test_users_first(self) -> None:
        """While files are read and written it waits before each batch, and says so; but not for ever."""
        farm = self.started()
        (digest,) = farm.put(1)
        farm.busy = True
        farm.pass_time(5)
        assert farm.collector.progress.paused == "files are being read and written"
        farm.pass_time(2 * LONG)
        farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert not farm.has(digest)

    def test_a_fault(self) -> None:
        """What goes wrong is logged, and tried again: the loop does not end."""
        farm = self.started()
        (digest,) = farm.put(1)
        real = farm.store.scan
        self.patch(farm.store, "scan", lambda prefix: 1 / 0)
        farm.pass_time(LONG)
        assert self.flushLoggedErrors(ZeroDivisionError)
        self.patch(farm.store, "scan", real)
        farm.pass_time(AGAIN_SECONDS + LONG)
        farm.masters.epoch += 1
        farm.pass_time(LONG)
        assert not farm.has(digest)

    def test_a_shorter_grace(self) -> None:
        """A grace that is made shorter is noticed at once, not when the rest is over that the longer one gave."""
        farm = self.started(grace=86_400.0)
        (digest,) = farm.put(1)
        farm.pass_time(20)
        farm.grace = 4.0
        farm.collector.table_changed()
        farm.pass_time(10)
        farm.masters.epoch += 1
        farm.pass_time(2)
        assert not farm.has(digest)

    def test_the_clock_is_saved(self) -> None:
        """A server that is never up for a whole round collects all the same, in the end."""
        farm = self.make(grace=86_400.0)
        (digest,) = farm.put(1)
        for _ in range(4):
            farm.collector.start()
            farm.pass_time(40_000)
            farm.collector.stop()
            farm.store._promises.pins.open()
        farm.collector.start()
        farm.pass_time(20_000)
        farm.masters.epoch += 1
        farm.pass_time(100)
        assert not farm.has(digest)


class AttackTests(CollectingTestCase):
    """Histories that broke an earlier plan: who was told that a chunk is here must not lose it."""

    def test_hand_over_against_collection(self) -> None:
        """A client that is told yes and sends nothing has its file, though the last other that used it is removed."""
        farm = self.make(delays=(0.5,))
        (digest,) = farm.put(1)
        farm.pass_time(10)
        farm.masters.files["old"] = frozenset([digest])
        farm.grace = 0.0
        farm.collector.start()
        farm.pass_time(60)
        for moment in range(12):
            farm.masters.files["old"] = frozenset([digest])
            farm.pass_time(5)
            farm.write(f"new {moment}", [1])
            farm.pass_time(moment / 2)
            farm.remove("old")
            for _ in range(4):
                farm.masters.epoch += 1
                farm._pass_and_look(8.0)
            del farm.masters.files[f"new {moment}"]
        assert farm.committed == 12
        assert farm.refused > 0

    def test_unlinked_between_check_and_row(self) -> None:
        """A row whose check is older than the condemnation is refused, and the chunk is sent again."""
        farm = self.started(grace=2.0)
        (digest,) = farm.put(1)
        told = farm.masters.epoch
        assert self.successResultOf(farm.store.hold([digest])) == [len(chunk(1))]
        farm.pass_time(20)
        assert farm.store.condemned == 1
        farm.masters.epoch += 1
        self.assertRaises(collecting_farm.EpochMoved, farm.masters.commit, "late", [digest], told)
        farm.pass_time(5)
        assert not farm.has(digest)
        assert self.successResultOf(farm.store.hold([digest])) == [0]

    def test_committed_just_before(self) -> None:
        """A row that was committed in the last moment of its epoch is seen by the question that counts."""
        farm = self.started(grace=2.0)
        (digest,) = farm.put(1)
        farm.pass_time(20)
        assert farm.store.condemned == 1
        farm.masters.commit("in time", [digest], farm.masters.epoch)
        farm.masters.epoch += 1
        farm.pass_time(20)
        assert farm.has(digest)

    def test_just_joined(self) -> None:
        """A server that owns nothing yet, or nothing any more, deletes nothing that is used."""
        farm = self.started()
        digests = farm.put(*range(10))
        farm.masters.files["a"] = frozenset(digests)
        farm.masters.epoch += 1
        farm.pass_time(10 * LONG)
        assert all(map(farm.has, digests))


class _AnswersYes(ChunkStore):
    """Who asks is told yes, condemned or not."""

    def hold(self, digests: Sequence[bytes]) -> Deferred[Sequence[int]]:
        return self.has(digests)


class _DeletesWhatWasPutAgain(ChunkStore):
    """A PUT of what is here lifts nothing."""

    def _release(self, marked: set[bytes], digests: Sequence[bytes]) -> Sequence[int]:
        with self._lock:
            self._promises.condemned.update(digests)
        return super()._release(marked, digests)


class _AsksBeforeItCondemns(Collector):
    """The epoch is read before the chunks are condemned."""

    before = 0

    async def _look(self) -> None:
        if self._round.prefix == 0:
            self.before = await self._epoch()
        await super()._look()
        if not self._round.looks and self._round.condemned:
            self._round.saw(self.before)


class _DoesNotWait(Collector):
    """It does not wait for the next epoch."""

    async def _go_on(self) -> float:
        if not self._round.looks and self._round.condemned:
            self._round._has_passed = True
        return await super()._go_on()


class _AsksOnce(Collector):
    """What was unused when it was condemned is unused."""

    async def _used(self, digests: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        return ([], list(digests)) if self._round.may_judge else await super()._used(digests)


MUTANTS: dict[str, tuple[dict[str, Any], int]] = {
    "answers-yes": ({"make_store": _AnswersYes}, 1),
    "deletes-what-was-put-again": ({"make_store": _DeletesWhatWasPutAgain}, 1),
    "asks-before-it-condemns": ({"make_collector": _AsksBeforeItCondemns}, 9),
    "does-not-wait": ({"make_collector": _DoesNotWait}, 1),
    "asks-once": ({"make_collector": _AsksOnce}, 12),
}
"""Each leaves out one of the steps; with a seed that catches it."""
SEEDS = range(1, 13)


class HistoryTests(SynchronousTestCase):
    """Random histories of people who write and remove, with pins that protect nobody."""

    def history(self, seed: int, **options: Any) -> CollectingFarm:
        self.patch(collecting, "PREFIXES", PREFIXES)
        with TemporaryDirectory() as directory:
            farm = CollectingFarm(Path(directory), seed, delays=DELAYS, **options)
            try:
                farm.run()
            except AssertionError as error:
                raise AssertionError("\n".join([*farm.story[-30:], f"seed {seed}: {error}"])) from error
            finally:
                farm.close()
        return farm

    def test_nothing_is_lost(self) -> None:
        """Every file that is in the table has its chunks on the disk, all the time; and chunks are collected."""
        farms = [self.history(seed) for seed in SEEDS]
        assert sum(farm.collector.progress.chunks for farm in farms) > len(farms)
        assert sum(farm.committed for farm in farms) > 5 * len(farms)
        assert sum(farm.refused for farm in farms) > len(farms)

    def test_every_step_is_needed(self) -> None:
        """A holder that leaves out one of the steps loses a chunk of a file."""
        for name, (options, seed) in MUTANTS.items():
            with self.assertRaises(AssertionError, msg=name):
                self.history(seed, **options)


class RoundTests(SynchronousTestCase):
    """When what is condemned may be judged: the rule alone."""

    @given(st.lists(st.one_of(st.integers(0, 5), st.just("look")), max_size=30))
    @settings(max_examples=100, deadline=None)
    def test_judged_after_a_later_epoch(self, story: list[Any]) -> None:
        """Only if an epoch was read after the last was condemned, and a later one after that."""
        self.patch(collecting, "PREFIXES", 6)
        one = Round()
        epoch, read = 0, None
        for what in story:
            if what == "look":
                if one.looks:
                    one.looked([b"x"])
                    read = None
            elif not one.looks:
                epoch += int(what)
                one.saw(epoch)
                read = epoch if read is None else read
                assert one.may_judge == (epoch > read)
        assert not one.may_judge or one.prefix == 6
