from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import catalog as catalog_module
from chunkfarm.catalog import (
    EPOCHS_MAX,
    NO_LEADER_SECONDS,
    STALE_AFTER,
    STALE_AGAIN_AFTER,
    TRIES_MAX,
    Catalog,
    Condition,
    check_shape,
)
from chunkfarm.chunks.download import DamagedFile
from chunkfarm.chunks.pieces import Digests
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.errors import (
    Busy,
    InvalidRequest,
    LimitExceeded,
    Mismatch,
    MissingChunks,
    NotFound,
    PreconditionFailed,
    ReadOnly,
)
from chunkfarm.model import (
    CHUNK_SIZE_MAX,
    EPOCH_KEY,
    INLINE_DIGESTS_MAX,
    KIB,
    FarmOptions,
    File,
    Receipt,
    digest_of,
    etag_of,
)
from chunkfarm.table.interface import VALUE_BYTES_MAX, Compare, Replaced, Unavailable
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, read_all, run_now
from tests.memory_table import MemoryTable

SIZE = 4 * KIB
NAME = "home/file"
NO_CONDITION = Condition()


class CatalogTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.make()

    def make(self, chunk_size: int = SIZE) -> None:
        """A catalog of server s1 in a farm of three."""
        self.clock = Clock()
        self.table = MemoryTable()
        self.links = MemoryLinks()
        self.servers = make_servers(3)
        self.store = make_store(self.mktemp())
        self.addCleanup(self.store.close)
        self.transfer = Transfer(
            self.store, lambda: self.servers, self.servers[0].id, self.links, lambda: 3, self.clock, run_now
        )
        options = FarmOptions(chunksize=chunk_size)
        self.epoch = 0
        self.catalog = Catalog(self.table, self.transfer, lambda: options, lambda: 1234, self.clock, lambda: self.epoch)

    def write(self, data: bytes, chunk_size: int = SIZE) -> list[bytes]:
        """Store the chunks of a file, and return their digests."""
        chunks = [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]
        return [self.successResultOf(self.transfer.write(chunk)).digest for chunk in chunks]

    def commit(
        self, data: bytes = b"data", condition: Condition = NO_CONDITION, name: str = NAME, **fields: Any
    ) -> Deferred[Receipt]:
        return self.catalog.commit(name, len(data), SIZE, self.write(data), condition=condition, **fields)

    def stored(self, data: bytes = b"data", name: str = NAME) -> File:
        return self.successResultOf(self.commit(data, name=name)).file

    def read(self, file: File, offset: int = 0, length: int | None = None) -> Deferred[bytes]:
        async def read() -> bytes:
            download = await self.catalog.download(file, offset, length)
            try:
                return await read_all(download)
            finally:
                download.close()

        return Deferred.fromCoroutine(read())


class CommitTests(CatalogTestCase):
    def test_file(self) -> None:
        """A committed file is there as it was written."""
        data = pattern(2 * SIZE + 5)
        receipt = self.successResultOf(self.commit(data, content_type="text/plain"))
        assert receipt.copies == 3
        assert receipt.holders == tuple(server.id for server in self.servers)
        file = self.successResultOf(self.catalog.stat(NAME))
        assert file == receipt.file
        assert (file.size, file.chunk_size, file.levels, file.modified) == (len(data), SIZE, 0, 1234)
        assert (file.content_type, file.etag) == ("text/plain", etag_of(len(data), SIZE, file.digests))
        assert file.revision == self.table.revision
        assert self.successResultOf(self.read(file)) == data

    def test_empty(self) -> None:
        """An empty file has no chunks."""
        receipt = self.successResultOf(self.commit(b""))
        assert (receipt.copies, receipt.holders) == (0, ())
        assert self.successResultOf(self.read(receipt.file)) == b""

    def test_upload(self) -> None:
        """What an upload has stored is committed without asking the holders again."""
        upload = self.catalog.upload()
        upload.write(pattern(3 * SIZE))
        written = self.successResultOf(upload.finish())
        self.links.calls.clear()
        receipt = self.successResultOf(
            self.catalog.commit(NAME, written.size, written.chunk_size, written.digests, written=written)
        )
        assert self.links.calls == []
        assert (receipt.copies, receipt.holders) == (written.copies, written.holders)
        assert self.successResultOf(self.read(receipt.file)) == pattern(3 * SIZE)

    def test_upload_sizes(self) -> None:
        """An upload may choose its chunk size within the limits."""
        with self.assertRaises(LimitExceeded):
            self.catalog.upload(CHUNK_SIZE_MAX + 1)
        with self.assertRaises(InvalidRequest):
            self.catalog.upload(100)
        self.catalog.upload(CHUNK_SIZE_MAX)

    def test_wrong_shape(self) -> None:
        """A manifest that does not fit the size is refused, and nothing changes."""
        one = self.write(b"data")
        for size, chunk_size, digests, error in (
            (SIZE, SIZE, [], InvalidRequest),
            (0, SIZE, one, InvalidRequest),
            (SIZE + 1, SIZE, one, InvalidRequest),
            (SIZE, SIZE, one * 2, InvalidRequest),
            (-1, SIZE, [], InvalidRequest),
            (4, 100, one, InvalidRequest),
            (4, 0, one, InvalidRequest),
            (4, -5, one, InvalidRequest),
            (4, CHUNK_SIZE_MAX + 1, one, LimitExceeded),
            (2**60, SIZE, one, LimitExceeded),
        ):
            self.failureResultOf(self.catalog.commit(NAME, size, chunk_size, digests), error)
        assert self.table.revision == 0

    def test_wrong_names(self) -> None:
        """A name or a content type that cannot be is refused."""
        for name in ("", "file", "-/x", "a/../b", "a//b", "a/\n", "a/" + "x" * 1100):
            self.failureResultOf(self.commit(name=name), InvalidRequest)
            self.failureResultOf(self.catalog.stat(name), InvalidRequest)
            self.failureResultOf(self.catalog.remove(name), InvalidRequest)
        for content_type in ("x" * 256, "text/plain\r\nX: y", "téxt"):
            self.failureResultOf(self.commit(content_type=content_type), InvalidRequest)
        assert self.table.revision == 0

    def test_missing_chunks(self) -> None:
        """A commit that names chunks the farm does not hold is refused, and the first of them are named."""
        digests = [*self.write(pattern(SIZE)), *(digest_of(b"%d" % number) for number in range(7))]
        failure = self.failureResultOf(self.catalog.commit(NAME, 8 * SIZE, SIZE, digests), MissingChunks)
        assert digests[1].hex() in str(failure.value)
        assert digests[0].hex() not in str(failure.value)
        assert "and 2 more" in str(failure.value)
        assert self.table.revision == 0

    def test_wrong_size(self) -> None:
        """A commit whose size is not that of its chunks is refused: nobody could read the file."""
        short, full, other = self.write(pattern(2 * SIZE + 5))[::-1]
        for size, digests in (
            (4, [short]),
            (6, [short]),
            (SIZE, [short]),
            (SIZE + 5, [short, full]),
            (SIZE + 5, [short, short]),
            (2 * SIZE, [full, short]),
            (2 * SIZE - 1, [full, full]),
            (2 * SIZE - 1, [other, full]),
        ):
            self.failureResultOf(self.catalog.commit(NAME, size, SIZE, digests), Mismatch)
        assert self.table.revision == 0
        self.successResultOf(self.catalog.commit(NAME, 2 * SIZE + 5, SIZE, [full, full, short]))

    def test_too_few_copies(self) -> None:
        """A chunk of which too few copies are left is as good as missing; required copies are enough."""
        digests = self.write(b"data")
        self.links.on(self.servers[1]).clear()
        assert self.successResultOf(self.catalog.commit(NAME, 4, SIZE, digests)).copies == 2
        self.links.on(self.servers[2]).clear()
        self.failureResultOf(self.catalog.commit(NAME, 4, SIZE, digests), MissingChunks)

    def test_replaced(self) -> None:
        """An unconditional commit replaces what is there: the last writer wins."""
        first = self.stored(b"first")
        second = self.stored(b"second")
        assert second.etag != first.etag
        assert self.successResultOf(self.read(self.successResultOf(self.catalog.stat(NAME)))) == b"second"

    def test_no_majority(self) -> None:
        """Without a majority of the masters a commit is refused with the reason."""
        self.table.unavailable = True
        failure = self.failureResultOf(self.commit(), ReadOnly)
        assert "no majority" in str(failure.value)

    def test_fits_a_row(self) -> None:
        """The largest row that a file can have fits the table."""
        file = File(
            name="b/" + "n" * 1000,
            size=2**60,
            chunk_size=CHUNK_SIZE_MAX,
            digests=[bytes(32)] * INLINE_DIGESTS_MAX,
            levels=3,
            modified=2**50,
            content_type="x" * 255,
            etag="f" * 32,
        )
        assert len(file.to_value()) < VALUE_BYTES_MAX


class EpochTests(CatalogTestCase):
    """A commit relies on what holders said, and is refused when that is too long ago."""

    def setUp(self) -> None:
        super().setUp()
        self.advance()
        self.learn()

    def advance(self) -> None:
        """The first moves the epoch on."""
        self.table.put(EPOCH_KEY, b"{}")

    def learn(self) -> None:
        """This server hears of it."""
        self.epoch = self.table.rows[EPOCH_KEY].revision

    def advance_before(self, transactions: int) -> None:
        """Let the epoch move on just before each of the next transactions."""
        left = [self.advance] * transactions
        self.table.before_transact = lambda operations: left.pop()() if left else None

    def asked(self) -> int:
        """How often another server was asked to hold chunks."""
        return len([what for what, _ in self.links.calls if what == "hold"])

    def commit_upload(self, data: bytes) -> Deferred[Receipt]:
        upload = self.catalog.upload()
        upload.write(data)
        written = self.successResultOf(upload.finish())
        self.meanwhile()
        return self.catalog.commit(NAME, written.size, written.chunk_size, written.digests, written=written)

    def meanwhile(self) -> None:
        """Between an upload and its commit."""

    def test_known(self) -> None:
        """In the epoch that this server knows a commit takes one question to each holder, and one transaction."""
        self.successResultOf(self.commit())
        assert (self.asked(), len(self.table.transactions)) == (2, 1)
        assert Compare(EPOCH_KEY, "==", self.epoch) in self.table.transactions[0][0]

    def test_no_epoch(self) -> None:
        """Before the first epoch of a farm files are committed as well."""
        del self.table.rows[EPOCH_KEY]
        self.epoch = 0
        self.successResultOf(self.commit())
        assert (self.asked(), len(self.table.transactions)) == (2, 1)

    def test_not_heard_of(self) -> None:
        """A server that knows an old epoch, or none, asks the holders once more and commits."""
        for known in (self.epoch, 0):
            self.advance()
            self.epoch = known
            self.links.calls.clear()
            self.successResultOf(self.commit())
            assert self.asked() == 4
            assert self.stored().size == 4

    def test_moved_on(self) -> None:
        """When the epoch moves on while the holders are asked they are asked anew, whatever the commit's condition."""
        for condition in (NO_CONDITION, Condition(if_none_match=("x",)), Condition(if_match=("*",))):
            self.advance_before(1)
            self.links.calls.clear()
            receipt = self.successResultOf(self.commit(condition=condition))
            assert self.asked() == 4
            assert (receipt.copies, receipt.file) == (3, self.successResultOf(self.catalog.stat(NAME)))
            self.learn()

    def test_given_up_meanwhile(self) -> None:
        """A chunk that its holders gave up since they said yes is missing, and nothing is committed."""

        def give_up(operations: object) -> None:
            self.advance()
            self.links.on(self.servers[1]).clear()
            self.links.on(self.servers[2]).clear()

        self.table.before_transact = give_up
        self.failureResultOf(self.commit(), MissingChunks)
        self.failureResultOf(self.catalog.stat(NAME), NotFound)

    def test_always_too_slow(self) -> None:
        """A commit that never finishes within one epoch is given up, and may be tried again."""
        self.advance_before(EPOCHS_MAX)
        self.failureResultOf(self.commit(), Busy)
        assert self.asked() == 2 * EPOCHS_MAX
        self.learn()
        self.successResultOf(self.commit())

    def test_both_conditions(self) -> None:
        """A file that must not exist, and that somebody else makes as the epoch moves on, is told to exist."""
        rival = File(name=NAME, size=0, chunk_size=SIZE, etag="rival")

        def both(operations: object) -> None:
            if rival.key not in self.table.rows:
                self.advance()
                self.table.put(rival.key, rival.to_value())

        self.table.before_transact = both
        self.failureResultOf(self.commit(condition=Condition(if_none_match=("*",))), PreconditionFailed)
        assert self.successResultOf(self.catalog.stat(NAME)).etag == "rival"

    def test_upload(self) -> None:
        """An upload that was begun in this epoch asks nobody, and one from an earlier one is checked like a COMMIT."""
        self.successResultOf(self.commit_upload(b"short"))
        assert self.asked() == 0

        def moves_on() -> None:
            self.advance()
            self.learn()

        self.meanwhile = moves_on  # type: ignore[method-assign]
        assert self.successResultOf(self.commit_upload(b"longer")).copies == 3
        assert self.asked() == 2
        self.meanwhile = self.advance  # type: ignore[method-assign]
        self.successResultOf(self.commit_upload(b"unheard of"))
        assert self.asked() == 4

    def test_upload_given_up(self) -> None:
        """An upload whose chunks were given up before its end fails, and names them."""

        def give_up() -> None:
            self.advance()
            for server in self.servers:
                self.links.on(server).clear()

        self.meanwhile = give_up  # type: ignore[method-assign]
        failure = self.failureResultOf(self.commit_upload(b"data"), MissingChunks)
        assert digest_of(b"data").hex() in str(failure.value)

    def test_long_manifest(self) -> None:
        """The chunks that hold a long manifest are stored anew with the commit that is tried anew."""
        data = pattern((INLINE_DIGESTS_MAX + 1) * SIZE)
        digests = self.write(data)

        def give_up(operations: object) -> None:
            self.table.before_transact = lambda operations: None
            self.advance()
            for server in self.servers:
                for digest in set(self.links.on(server)) - set(digests):
                    del self.links.on(server)[digest]

        self.table.before_transact = give_up
        file = self.successResultOf(self.catalog.commit(NAME, len(data), SIZE, digests)).file
        assert file.levels == 1 and all(digest in self.links.on(self.servers[1]) for digest in file.digests)

    def test_no_majority(self) -> None:
        """A commit that cannot learn the epoch says why."""

        def cut_off(operations: object) -> None:
            self.advance()
            self.table.unavailable = True

        self.table.before_transact = cut_off
        self.failureResultOf(self.commit(), ReadOnly)


class ConditionTests(CatalogTestCase):
    def test_if_none_match(self) -> None:
        """A file that must not exist yet is created once."""
        new = Condition(if_none_match=("*",))
        self.successResultOf(self.commit(b"first", new))
        failure = self.failureResultOf(self.commit(b"second", new), PreconditionFailed)
        assert "exists already" in str(failure.value)
        assert self.successResultOf(self.read(self.successResultOf(self.catalog.stat(NAME)))) == b"first"

    def test_if_none_match_etag(self) -> None:
        """A file may be replaced unless it is the one named."""
        etag = self.stored().etag
        self.failureResultOf(self.commit(b"new", Condition(if_none_match=("x", etag))), PreconditionFailed)
        self.successResultOf(self.commit(b"new", Condition(if_none_match=("x",))))

    def test_if_match(self) -> None:
        """A file is replaced only if it is still the one that was read."""
        etag = self.stored().etag
        self.failureResultOf(self.commit(b"new", Condition(if_match=("x",))), PreconditionFailed)
        self.successResultOf(self.commit(b"new", Condition(if_match=("x", etag))))
        self.failureResultOf(self.commit(b"newer", Condition(if_match=(etag,))), PreconditionFailed)
        self.successResultOf(self.commit(b"newer", Condition(if_match=("*",))))
        self.failureResultOf(self.commit(b"x", Condition(if_match=("*",)), name="a/new"), PreconditionFailed)

    def test_refused_early(self) -> None:
        """A condition that does not hold is told before anybody is asked about chunks."""
        self.stored()
        self.links.calls.clear()
        missing = [digest_of(b"none")]
        self.failureResultOf(
            self.catalog.commit(NAME, 4, SIZE, missing, condition=Condition(if_none_match=("*",))), PreconditionFailed
        )
        assert self.links.calls == []

    def race(self, rival: File | None, times: int = 1) -> None:
        """Let somebody else write (or remove) the file just before the next transactions."""
        left = [rival] * times

        def before(operations: object) -> None:
            if left and (file := left.pop()) is not None:
                self.table.put(file.key, file.to_value())

        self.table.before_transact = before

    def test_lost_race(self) -> None:
        """Of two that create the same file one is told that it exists."""
        rival = File(name=NAME, size=0, chunk_size=SIZE, etag="rival")
        self.race(rival)
        self.failureResultOf(self.commit(b"data", Condition(if_none_match=("*",))), PreconditionFailed)
        assert self.successResultOf(self.catalog.stat(NAME)).etag == "rival"

    def test_race_that_does_not_matter(self) -> None:
        """A change that leaves the condition true is no reason to fail."""
        file = self.stored()
        self.race(file)
        self.successResultOf(self.commit(b"new", Condition(if_match=(file.etag,))))

    def test_endless_race(self) -> None:
        """Who loses every race is told to try again."""
        file = self.stored()
        self.race(file, TRIES_MAX)
        self.failureResultOf(self.commit(b"new", Condition(if_match=(file.etag,))), Busy)
        self.race(file, TRIES_MAX)
        self.failureResultOf(self.catalog.remove(NAME, [file.etag]), Busy)


class CreatedTests(CatalogTestCase):
    def created(self, condition: Condition = NO_CONDITION) -> bool:
        return self.successResultOf(self.commit(condition=condition)).created

    def race(self, rival: Callable[[], object]) -> None:
        """Let somebody else do something just before each transaction."""

        def before(operations: object) -> None:
            rival()

        self.table.before_transact = before

    def test_created(self) -> None:
        """A receipt tells a new file from one that was replaced."""
        assert self.created()
        assert not self.created()
        self.successResultOf(self.catalog.remove(NAME))
        assert self.created(Condition(if_none_match=("*",)))
        assert not self.created(Condition(if_match=("*",)))

    def test_one_transaction(self) -> None:
        """Neither a new file nor one that this server knows of costs a second transaction."""
        self.created()
        self.created()
        assert len(self.table.transactions) == 2

    def test_others_were_quicker(self) -> None:
        """What this server's rows do not show yet is told right all the same."""
        rival = File(name=NAME, size=0, chunk_size=SIZE, etag="rival")
        self.race(lambda: self.table.put(rival.key, rival.to_value()))
        assert not self.created()
        assert len(self.table.transactions) == 1

    def test_gone_meanwhile(self) -> None:
        """A file that was removed a moment ago is new."""
        file = self.stored()
        self.race(lambda: self.table.rows.pop(file.key, None))
        assert self.created()

    def test_no_rows_here(self) -> None:
        """A server that holds no rows finds out as well."""
        self.stored()
        with mock.patch.object(self.table, "read", lambda *_, **__: fail(Unavailable("this server holds no rows"))):
            assert not self.created()

    def test_not_known(self) -> None:
        """A file whose write was asked for twice, so that nobody knows what it replaced, counts as replaced."""
        replaced = succeed(Replaced(7, None))
        with mock.patch.object(self.table, "replace", lambda *_: replaced):
            assert not self.created()


class RemoveTests(CatalogTestCase):
    def test_removed(self) -> None:
        """A removed file is gone; a second removal says so."""
        self.stored()
        self.successResultOf(self.catalog.remove(NAME))
        self.failureResultOf(self.catalog.stat(NAME), NotFound)
        self.failureResultOf(self.catalog.remove(NAME), NotFound)
        self.failureResultOf(self.catalog.remove(NAME, ["x"]), NotFound)

    def test_if_match(self) -> None:
        """A file is removed only if it is the one that was meant."""
        etag = self.stored().etag
        self.failureResultOf(self.catalog.remove(NAME, ["x"]), PreconditionFailed)
        self.successResultOf(self.catalog.remove(NAME, ["x", etag]))
        self.stored()
        self.successResultOf(self.catalog.remove(NAME, ["*"]))

    def test_replaced_meanwhile(self) -> None:
        """A file that was replaced a moment ago is not removed in the place of the old one."""
        file = self.stored()
        rival = evolve(file, etag="rival")

        def before(operations: object) -> None:
            self.table.put(rival.key, rival.to_value())

        self.table.before_transact = before
        self.failureResultOf(self.catalog.remove(NAME, [file.etag]), PreconditionFailed)
        assert self.successResultOf(self.catalog.stat(NAME)).etag == "rival"

    def test_no_majority(self) -> None:
        """Without a majority nothing is removed."""
        self.stored()
        self.table.unavailable = True
        self.failureResultOf(self.catalog.remove(NAME), ReadOnly)
        self.failureResultOf(self.catalog.remove(NAME, ["x"]), ReadOnly)


class ListTests(CatalogTestCase):
    def names(self, *arguments: Any) -> tuple[list[str], bool]:
        listing = self.successResultOf(self.catalog.list(*arguments))
        return [file.name for file in listing.files], listing.more

    def add(self, names: Sequence[str]) -> None:
        for name in names:
            file = File(name=name, size=0, chunk_size=SIZE)
            self.table.put(file.key, file.to_value())

    def test_order(self) -> None:
        """Files are listed in the order of their names' bytes, and only those with the prefix."""
        self.add(["b/z", "a/b", "a/ä", "a/z", "a/b/c", "aa/x"])
        self.table.put(b"files0", b"not a file")
        assert self.names() == (["a/b", "a/b/c", "a/z", "a/ä", "aa/x", "b/z"], False)
        assert self.names("a/") == (["a/b", "a/b/c", "a/z", "a/ä"], False)
        assert self.names("a/b") == (["a/b", "a/b/c"], False)
        assert self.names("c") == ([], False)

    def test_paged(self) -> None:
        """A listing goes on after the last name of the one before."""
        self.add([f"a/{number:02}" for number in range(25)])
        found: list[str] = []
        more = True
        while more:
            names, more = self.names("a/", found[-1] if found else "", 10)
            found += names
        assert found == [f"a/{number:02}" for number in range(25)]
        assert self.names("a/", "a/23", 1) == (["a/24"], False)
        assert self.names("a/", "", 0) == ([], False)
        assert self.names("a/", "", -1) == ([], False)

    def test_many(self) -> None:
        """More files than the table gives at a time are one listing all the same."""
        self.add([f"a/{number:03}" for number in range(30)])
        self.patch(catalog_module, "_PAGE", 7)
        assert len(self.names("a/", "", 100)[0]) == 30
        names, more = self.names("a/", "", 20)
        assert (len(names), more) == (20, True)

    def test_not_text(self) -> None:
        """A prefix that is no text is refused."""
        self.failureResultOf(self.catalog.list("a/\ud800"), InvalidRequest)


class StaleTests(CatalogTestCase):
    def test_no_majority(self) -> None:
        """Without a majority files are found and listed as this server last knew them, and that is said."""
        file = self.stored()
        assert self.successResultOf(self.catalog.find(NAME)).stale == 0
        self.table.unavailable = True
        found = self.successResultOf(self.catalog.find(NAME))
        assert (found.file, found.stale) == (file, self.table.revision)
        listing = self.successResultOf(self.catalog.list())
        assert (listing.files, listing.stale) == ((file,), self.table.revision)
        self.failureResultOf(self.catalog.stat(NAME), ReadOnly)

    def test_stored_since(self) -> None:
        """A file that an old state does not have may be there by now: who asks is sent elsewhere, and not told no."""
        self.stored(name="a/other")
        self.table.unavailable = True
        refused = self.failureResultOf(self.catalog.find(NAME), Busy).value
        assert f"at revision {self.table.revision}" in str(refused)

    def test_no_answer(self) -> None:
        """When the leader is silent a reader waits for two seconds and no longer."""
        self.stored()
        self.table.silent = True
        result = self.catalog.find(NAME)
        self.clock.advance(STALE_AFTER - 0.1)
        self.assertNoResult(result)
        self.clock.advance(0.1)
        assert self.successResultOf(result).stale == self.table.revision

    def test_no_answer_a_moment_ago(self) -> None:
        """Who goes through many files while the leader is silent does not wait two seconds for each of them."""
        self.stored()
        self.table.silent = True
        for ask in (self.catalog.check, self.catalog.explain):
            first = ask(NAME)
            self.clock.advance(STALE_AFTER)
            assert self.successResultOf(first).stale
            for _ in range(19):
                again = ask(NAME)
                self.assertNoResult(again)
                self.clock.advance(STALE_AGAIN_AFTER)
                assert self.successResultOf(again).stale
            # Readers have all the time, and so has who asks later.
            result = self.catalog.find(NAME)
            self.clock.advance(STALE_AFTER - 0.1)
            self.assertNoResult(result)
            self.clock.advance(0.1)
            assert self.successResultOf(result).stale
            self.clock.advance(NO_LEADER_SECONDS)
            later = ask(NAME)
            self.clock.advance(STALE_AGAIN_AFTER)
            self.assertNoResult(later)
            self.clock.advance(STALE_AFTER + NO_LEADER_SECONDS)
        self.table.silent = False
        assert not self.successResultOf(self.catalog.check(NAME)).stale

    def test_stale_pages(self) -> None:
        """A long listing waits only once."""
        self.patch(catalog_module, "_PAGE", 1)
        for name in ("a/1", "a/2", "a/3"):
            self.stored(name=name)
        self.table.silent = True
        result = self.catalog.list()
        self.clock.advance(STALE_AFTER)
        assert len(self.successResultOf(result).files) == 3

    def test_no_table(self) -> None:
        """A server that holds no table cannot help then."""
        self.table.unavailable = True
        read = self.table.read

        def refuse(*arguments: Any, stale: bool = False) -> Any:
            if stale or arguments[-1] is True:
                return fail(Unavailable("this server holds no rows"))
            return read(*arguments)

        with mock.patch.object(self.table, "read", refuse):
            self.failureResultOf(self.catalog.find(NAME), ReadOnly)

    def test_gone_away(self) -> None:
        """A reader that goes away is not answered from an old state."""
        self.table.silent = True
        result = self.catalog.find(NAME)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        assert self.clock.getDelayedCalls() == []


class ManifestTests(CatalogTestCase):
    @given(
        count=st.sampled_from([0, 1, 127, 128, 129, 128 * 128 - 1, 128 * 128, 128 * 128 + 1]),
    )
    @settings(max_examples=20, deadline=None)
    def test_levels(self, count: int) -> None:
        """A manifest of any length comes back as it was: 128 digests in the row, more as chunks in levels."""
        self.make(chunk_size=SIZE)
        digests = Digests(b"".join(digest_of(b"%d" % number) for number in range(count)))
        with mock.patch.object(self.catalog, "_check_copies", self.nothing_is_missing):
            receipt = self.successResultOf(self.catalog.commit(NAME, count * SIZE, SIZE, digests))
        file = receipt.file
        assert file.levels == (0 if count <= 128 else 1 if count <= 128 * 128 else 2)
        assert len(file.digests) <= INLINE_DIGESTS_MAX
        assert receipt.copies == 2, "the chunks of the manifest have three copies, its own have two"
        manifest = self.successResultOf(self.catalog.manifest(self.successResultOf(self.catalog.stat(NAME))))
        assert manifest.digests == digests
        assert (manifest.size, manifest.chunk_size) == (count * SIZE, SIZE)

    async def nothing_is_missing(self, digests: Sequence[bytes], size: int, chunk_size: int) -> tuple[int, set[str]]:
        return 2, set()

    def test_long_file(self) -> None:
        """A file with a long manifest is read like any other."""
        data = pattern(130 * SIZE + 17)
        file = self.stored(data)
        assert file.levels == 1
        assert self.successResultOf(self.read(file)) == data
        assert self.successResultOf(self.read(file, 129 * SIZE - 5, SIZE)) == data[129 * SIZE - 5 : 130 * SIZE - 5]

    def test_lost_manifest(self) -> None:
        """A manifest that is lost or does not fit is a damaged file, not a missing one."""
        file = self.stored(pattern(130 * SIZE))
        for digests in ((digest_of(b"gone"),), (file.digests[0], file.digests[0])):
            self.failureResultOf(self.catalog.manifest(evolve(file, digests=digests)), DamagedFile)

    def test_endless_manifest(self) -> None:
        """A manifest longer than any file's does not fill the memory."""
        self.patch(catalog_module, "MANIFEST_DIGESTS_MAX", 200)
        file = self.stored(pattern(130 * SIZE))
        failure = self.failureResultOf(self.catalog.manifest(evolve(file, digests=file.digests * 2)), DamagedFile)
        assert "longer" in str(failure.value)


class DownloadTests(CatalogTestCase):
    def test_ranges(self) -> None:
        """A range of a file is read, a range it does not have is refused."""
        file = self.stored(pattern(3 * SIZE))
        assert self.successResultOf(self.read(file, SIZE - 1, 2)) == pattern(3 * SIZE)[SIZE - 1 : SIZE + 1]
        self.failureResultOf(self.read(file, 3 * SIZE, 1), InvalidRequest)

    def test_lost(self) -> None:
        """A file whose first chunk is lost fails before any byte is given."""
        file = evolve(self.stored(), digests=(digest_of(b"gone"),))
        failure = self.failureResultOf(self.catalog.download(file), DamagedFile)
        assert "chunk 0 is lost" in str(failure.value)


class ShapeTests(SynchronousTestCase):
    @given(st.integers(0, 2**40), st.integers(4 * KIB, CHUNK_SIZE_MAX))
    def test_fits(self, size: int, chunk_size: int) -> None:
        """Exactly one number of digests fits a size."""
        count = -(-size // chunk_size)
        if count > 1024 * 1024:
            with self.assertRaises(LimitExceeded):
                check_shape(size, chunk_size, count)
            return
        check_shape(size, chunk_size, count)
        for wrong in (count - 1, count + 1):
            with self.assertRaises(InvalidRequest):
                check_shape(size, chunk_size, wrong)
