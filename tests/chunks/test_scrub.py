"""Reading every chunk of a disk, gently, and going on where it stood."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import scrub
from chunkfarm.chunks.scrub import FAILED_SECONDS, ROUND_SECONDS, START_SECONDS, Position, Scrub
from tests.chunks.builders import make_store, pattern, run_now

SIZE = 100_000


class ScrubTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Path(self.mktemp()).absolute()
        self.damaged: list[bytes] = []
        self.store = make_store(
            self.directory / "chunks", on_damaged=lambda digest, reason: self.damaged.append(digest)
        )
        self.addCleanup(self.store.close)
        self.busy = False
        self.wall = 1_000_000
        self.digests = sorted(self.successResultOf(self.store.put(None, pattern(SIZE, seed))) for seed in range(10))

    def start(self) -> Scrub:
        scrub = Scrub(
            self.store,
            self.directory / "scrub.json",
            self.clock,
            lambda: self.wall + int(self.clock.seconds() * 1000),
            run_now,
            lambda: 10 * SIZE,
            lambda: self.busy,
        )
        scrub.start()
        self.addCleanup(scrub.stop)
        return scrub

    def flip(self, digest: bytes) -> None:
        path = self.directory / "chunks" / digest.hex()[:2] / f"{digest.hex()}.chunk"
        data = bytearray(path.read_bytes())
        data[SIZE // 2] ^= 1
        path.write_bytes(data)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def test_damage_is_found(self) -> None:
        """A bit that flipped is found although nobody reads the file."""
        self.flip(self.digests[6])
        scrub = self.start()
        self.pass_time(START_SECONDS + 5)
        assert self.damaged == [self.digests[6]] and scrub.percent == 100

    def test_gently(self) -> None:
        """It takes its time: about a second for a MiB, on a store as small as this."""
        scrub = self.start()
        self.pass_time(START_SECONDS + 0.4)
        assert 0 < scrub.percent < 100

    def test_once_in_two_weeks(self) -> None:
        """When all was read it rests until the next round is due."""
        self.start()
        self.pass_time(START_SECONDS + 5)
        self.flip(self.digests[0])
        self.clock.pump([3600.0] * 24)
        assert not self.damaged
        self.clock.pump([60.0] * (ROUND_SECONDS // 60))
        self.pass_time(10)
        assert self.damaged == [self.digests[0]]

    def test_goes_on_after_a_start(self) -> None:
        """A process that is started anew goes on where the last one stood."""
        first = self.start()
        self.pass_time(START_SECONDS + 0.4)
        self.successResultOf(first.stop())
        self.flip(self.digests[0])
        self.flip(self.digests[9])
        self.start()
        self.pass_time(START_SECONDS + 5)
        assert self.damaged == [self.digests[9]]

    def test_when_it_was(self) -> None:
        """When each chunk was read last is known afterwards, a restart in the middle or not."""
        before = self.successResultOf(self.store.verified(self.digests))
        first = self.start()
        self.wall = max(before)
        self.pass_time(START_SECONDS + 0.4)
        self.successResultOf(first.stop())
        half = self.successResultOf(self.store.verified(self.digests))
        assert half[0] >= self.wall + START_SECONDS * 1000 and half[-1] == before[-1]
        self.start()
        self.pass_time(START_SECONDS + 5)
        whole = self.successResultOf(self.store.verified(self.digests))
        assert half[0] == whole[0] < whole[-1] and list(whole) == sorted(whole)

    def test_a_chunk_that_cannot_be_read(self) -> None:
        """A chunk at which the disk fails for another reason than damage is passed over; nobody says it was read."""
        before = self.successResultOf(self.store.verified(self.digests))
        self.wall = max(before)
        self.flip(self.digests[6])
        bad, check = self.digests[4], self.store.check
        refused: list[bytes] = []

        def refusing(digest: bytes, note: bool = True) -> Deferred[int]:
            if digest == bad:
                refused.append(digest)
                return fail(OSError(errno.EACCES, "Permission denied"))
            return check(digest, note)

        self.store.check = refusing  # type: ignore[method-assign]
        scrub = self.start()
        self.pass_time(START_SECONDS + 3 * FAILED_SECONDS)
        # It may have been for a moment only, so it is tried again once.
        assert len(refused) == 2 and len(self.flushLoggedErrors(OSError)) == 2
        assert self.damaged == [self.digests[6]] and scrub.percent == 100
        after = self.successResultOf(self.store.verified(self.digests))
        assert after[4] == before[4] and after[3] > before[3] and after[5] > before[5]

    def test_a_directory_that_cannot_be_read(self) -> None:
        """The chunks of a directory that cannot be listed are passed over, and the others read."""
        before = self.successResultOf(self.store.verified(self.digests))
        self.wall = max(before)
        scan = self.store.scan
        self.store.scan = lambda prefix: (  # type: ignore[method-assign]
            fail(OSError(errno.EIO, "Input/output error")) if prefix == self.digests[4][0] else scan(prefix)
        )
        scrub = self.start()
        self.pass_time(START_SECONDS + 3 * FAILED_SECONDS)
        assert len(self.flushLoggedErrors(OSError)) == 2 and scrub.percent == 100
        after = self.successResultOf(self.store.verified(self.digests))
        assert after[4] == before[4] and after[3] > before[3] and after[5] > before[5]

    def test_where_it_stands_cannot_be_noted(self) -> None:
        """A full disk, or a note that cannot be read, costs the note and no verifying."""
        self.flip(self.digests[6])
        note = self.directory / "scrub.json"
        note.write_bytes(b"{}")
        read = Path.read_bytes

        def reading(path: Path) -> bytes:
            if path == note:
                raise OSError(errno.EIO, "Input/output error")
            return read(path)

        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch.object(Path, "read_bytes", reading), mock.patch.object(scrub, "write_atomically") as writing:
            writing.side_effect = full
            running = self.start()
            self.pass_time(START_SECONDS + 20)
        assert self.damaged == [self.digests[6]] and running.percent == 100
        assert writing.call_count == 2

    def test_makes_room(self) -> None:
        """While users read and write a lot it waits five seconds before each chunk."""
        self.busy = True
        scrub = self.start()
        self.pass_time(START_SECONDS + 4)
        assert scrub.percent == 0
        self.pass_time(60)
        assert scrub.percent == 100

    @given(st.binary(max_size=60))
    def test_a_file_that_makes_no_sense(self, text: bytes) -> None:
        """Whatever is in the file, it is a place to begin."""
        assert 0 <= Position.from_json(text).percent <= 100

    def test_position(self) -> None:
        """What is written is read back."""
        position = Position(17, bytes(range(32)), False, 23)
        assert Position.from_json(position.to_json()) == position
