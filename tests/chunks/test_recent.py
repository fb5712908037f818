"""Small chunks that are read without a thread."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.index import Index
from chunkfarm.chunks.packs import Packs, Place
from chunkfarm.chunks.recent import OPEN_MOST, Recent
from chunkfarm.model import digest_of


class RecentTests(SynchronousTestCase):
    """What `read_now` gives, and when it leaves the chunk to a thread."""

    def setUp(self) -> None:
        """Packs with one chunk."""
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.packs = self.opened()
        self.data = os.urandom(1000)
        (found,) = self.packs.append([(None, self.data, False)])
        assert isinstance(found, bytes)
        self.digest = found
        (self.pack,) = self.directory.glob("packs/*.pack")

    def opened(self) -> Packs:
        index = Index(str(self.directory / "index.sqlite"))
        packs = Packs(str(self.directory / "packs"), index, lambda needed: None)
        packs.open()
        self.addCleanup(index.close)
        self.addCleanup(packs.close)
        return packs

    def open_packs(self) -> int:
        """Descriptors of the pack that this process has."""
        return sum(path.resolve() == self.pack.resolve() for path in Path("/proc/self/fd").iterdir())

    def now(self, packs: Packs | None = None) -> bytes | None:
        """The bytes that are at hand."""
        found = (packs or self.packs).read_now(self.digest)
        return None if found is None else bytes(found.read(0, found.length))

    def test_what_was_put_is_at_hand(self) -> None:
        """A chunk that was just stored is read without waiting."""
        assert self.now() == self.data

    def test_what_was_read_is_at_hand(self) -> None:
        """After a start the first reader waits, the next one does not."""
        again = self.opened()
        assert self.now(again) is None
        assert again.read(self.digest) is not None
        assert self.now(again) == self.data

    def test_unknown(self) -> None:
        """Of a chunk that was never seen nothing is at hand."""
        assert self.packs.read_now(digest_of(b"another")) is None

    def test_damage_is_left_to_a_thread(self) -> None:
        """Bytes that have changed on the disk are not served."""
        with self.pack.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([self.data[-1] ^ 1]))
        assert self.now() is None

    def test_a_short_pack(self) -> None:
        """A pack that was cut is not served from."""
        os.truncate(self.pack, 500)
        assert self.now() is None

    def test_a_removed_pack(self) -> None:
        """A pack that somebody has removed is not served from, though it is open."""
        self.pack.unlink()
        assert self.now() is None

    def test_deleted(self) -> None:
        """A deleted chunk is not served."""
        self.packs.delete([self.digest])
        assert self.now() is None

    def test_closed(self) -> None:
        """Nothing is at hand any more, and nothing open."""
        assert self.open_packs() > 0
        self.packs.close()
        assert self.now() is None
        assert self.open_packs() == 0

    def test_few_packs_are_open(self) -> None:
        """However many packs there are, few are open, and those used last."""
        recent = Recent()
        self.addCleanup(recent.clear)
        before = self.open_packs()
        for number in range(OPEN_MOST + 5):
            place = Place(number, 0, 500)
            recent.note(b"%032d" % number, place, str(self.pack))
        assert self.open_packs() == before + OPEN_MOST
        assert recent.read(b"%032d" % 0) is None
        assert recent.read(b"%032d" % OPEN_MOST) is not None
