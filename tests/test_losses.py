"""What would be lost with a server: all files are gone through, and all others asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.catalog import FileParts, Listing
from chunkfarm.chunks.checking import Checked
from chunkfarm.errors import Busy
from chunkfarm.losses import FRESH_SECONDS, Losses, LossSurvey
from chunkfarm.model import File, digest_of
from tests.builders import make_server, server_id

SIZE = 10


class FakeCatalog:
    """Files in pages of two. A file is so many chunks, and may have chunks of its manifest besides."""

    def __init__(self) -> None:
        self.files: dict[str, FileParts] = {}
        self.stale = 0
        self.lists = 0

    def add(self, name: str, *chunks: bytes, manifest: tuple[bytes, ...] = (), complete: bool = True) -> None:
        file = File(name=name, size=SIZE * len(chunks), chunk_size=SIZE)
        self.files[name] = FileParts(file, chunks if complete else (), manifest, complete)

    def list(self, prefix: str, after: str, limit: int) -> Deferred[Listing]:
        self.lists += 1
        names = [name for name in sorted(self.files) if name > after]
        return succeed(Listing(tuple(self.files[name].file for name in names[:2]), len(names) > 2, self.stale))

    def parts(self, file: File) -> Deferred[FileParts]:
        return succeed(self.files[file.name])


class FakeTransfer:
    """Who has which chunk."""

    def __init__(self) -> None:
        self.held: dict[bytes, tuple[str, ...]] = {}
        self.mute: frozenset[str] = frozenset()
        self.waits: Deferred[None] | None = None

    def check(self, digests: Sequence[bytes], read: bool) -> Deferred[dict[bytes, Checked]]:
        assert not read
        found = {digest: Checked(self.held.get(digest, ()), ()) for digest in digests}
        return succeed(found) if self.waits is None else self.waits.addCallback(lambda _: found)

    def silent(self) -> frozenset[str]:
        return self.mute


def chunk(number: int) -> bytes:
    return digest_of(b"%d" % number)


class LossSurveyTests(SynchronousTestCase):
    """Server s4 is down; s1 to s3 answer."""

    def make(self) -> LossSurvey:
        self.clock = Clock()
        self.catalog, self.transfer = FakeCatalog(), FakeTransfer()
        self.servers = (*(make_server(number) for number in (1, 2, 3)), make_server(4, state="down"))
        catalog: Any = self.catalog
        transfer: Any = self.transfer
        self.survey = LossSurvey(catalog, transfer, lambda: self.servers, lambda: 3, self.clock)
        return self.survey

    def hold(self, number: int, *servers: int) -> None:
        self.transfer.held[chunk(number)] = tuple(map(server_id, servers))

    def ask(self, seconds: float | None = None) -> Losses:
        return self.successResultOf(self.survey.ask(server_id(4), seconds))

    def test_what_is_lost_and_what_is_short(self) -> None:
        """Chunks and bytes, for each file once; the copies of the one that is asked about never count."""
        self.make()
        self.catalog.add("a/empty")
        self.catalog.add("a/lost", chunk(1), chunk(2), chunk(1))
        self.catalog.add("a/short", chunk(2), chunk(3))
        self.catalog.add("a/whole", chunk(2))
        self.hold(1, 4)
        self.hold(2, 1, 2, 3)
        self.hold(3, 1, 2, 4)
        found = self.ask()
        assert (found.done, found.files, found.chunks) == (True, 4, 5)
        assert (found.lost_files, found.lost_chunks, found.lost_bytes) == (1, 1, 2 * SIZE)
        assert (found.short_files, found.short_chunks, found.short_bytes) == (1, 1, SIZE)
        assert [(loss.name, loss.chunks, loss.bytes) for loss in found.named] == [("a/lost", 1, 2 * SIZE)]

    def test_fewer_servers_than_replicas(self) -> None:
        """No more copies are wanted than there are servers that stay."""
        self.make()
        self.servers = (make_server(1), make_server(2), make_server(4, state="down"))
        self.catalog.add("a/b", chunk(1))
        self.hold(1, 1, 2)
        assert self.ask().short_chunks == 0

    def test_manifests(self) -> None:
        """A chunk of a manifest that is lost takes its whole file with it."""
        self.make()
        self.catalog.add("a/b", chunk(1), chunk(2), manifest=(chunk(3),))
        self.catalog.add("a/c", chunk(1), chunk(2), manifest=(chunk(4),), complete=False)
        for number in (1, 2):
            self.hold(number, 1, 2, 3)
        self.hold(3, 1)
        found = self.ask()
        assert (found.short_chunks, found.short_bytes) == (1, 0)
        assert [(loss.name, loss.chunks, loss.bytes) for loss in found.named] == [("a/c", 1, 2 * SIZE)]

    def test_who_does_not_answer(self) -> None:
        """Others that are silent are named, for what they have is not counted."""
        self.make()
        self.catalog.add("a/b", chunk(1))
        self.transfer.mute = frozenset((server_id(3), server_id(4)))
        assert self.ask().silent == ("s3",)

    def test_a_long_way(self) -> None:
        """Whoever asks for some seconds is told what was found so far, and when asking again the rest."""
        self.make()
        self.catalog.add("a/b", chunk(1))
        self.transfer.waits = Deferred()
        asked = self.survey.ask(server_id(4), 10.0)
        self.assertNoResult(asked)
        self.clock.advance(10.0)
        assert self.successResultOf(asked) == Losses()
        again = self.survey.ask(server_id(4), 10.0)
        waits, self.transfer.waits = self.transfer.waits, None
        waits.callback(None)
        assert self.successResultOf(again).done
        assert self.catalog.lists == 1
        assert not self.clock.getDelayedCalls()

    def test_how_long_it_counts(self) -> None:
        """What was found counts for a minute, and no longer than until servers come or go."""
        self.make()
        self.catalog.add("a/b", chunk(1))
        self.ask()
        self.ask()
        assert self.catalog.lists == 1
        self.clock.advance(FRESH_SECONDS + 1)
        self.ask()
        assert self.catalog.lists == 2
        self.servers = tuple(evolve(one, state="down") if one.name == "s3" else one for one in self.servers)
        self.ask()
        assert self.catalog.lists == 3

    def test_no_majority(self) -> None:
        """An old list of files says nothing; the next who asks begins anew."""
        self.make()
        self.catalog.stale = 5
        self.failureResultOf(self.survey.ask(server_id(4)), Busy)
        self.catalog.stale = 0
        assert self.ask().done

    def test_stop(self) -> None:
        """A server that stops gives it up, and whoever waits is told."""
        self.make()
        self.catalog.add("a/b", chunk(1))
        self.transfer.waits = Deferred()
        asked = self.survey.ask(server_id(4), None)
        self.successResultOf(self.survey.stop())
        self.failureResultOf(asked, Busy)
