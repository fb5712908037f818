"""The client port: servers, files and chunks."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.transfer import ChunkReceipt
from chunkfarm.errors import MissingChunks, ReadOnly
from chunkfarm.limits import Limits
from chunkfarm.model import Address, digest_of, etag_of
from chunkfarm.state import Wait
from chunkfarm.table.interface import Unavailable
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, SERVER_ID

DATA = bytes(range(256)) * 40
HOLDERS = f"copies=2 holders={SERVER_ID},{OTHER_ID}"


def put(data: bytes, digest: bytes | None = None) -> bytes:
    """A PUT with its payload."""
    return b"PUT %s %d\r\n%b" % ((digest or digest_of(data)).hex().encode(), len(data), data)


class SlowTransfer:
    """A transfer whose writes are a test's to answer."""

    def __init__(self, write: Callable[[bytearray, bytes], Deferred[ChunkReceipt]]) -> None:
        self.write = write


class ServerTests(SynchronousTestCase):
    def test_servers(self) -> None:
        """SERVERS is the whole table, SERVER one row of it by id or name."""
        link = ClientLink().auth("reader")
        lines = link.say("SERVERS").split("\r\n")
        assert lines[0] == "TABLE 2 revision=7"
        assert lines[1].startswith(f"SERVER id={SERVER_ID} name=alpha joined=2026-11-22T10:00:00.123Z seniority=1 ")
        assert " role=first " in lines[1]
        assert lines[3:] == ["END", ""]
        assert link.say("SERVER beta") == f"OK {lines[2]}\r\n" == link.say(f"SERVER {OTHER_ID}")
        assert link.say("SERVER gamma").startswith("ERR notfound ")

    def test_who(self) -> None:
        """WHO says who leads, who follows, and why."""
        lines = ClientLink().auth("reader").say("WHO").split("\r\n")
        assert lines[0] == "WHO 2"
        assert lines[1] == (
            f'rank=1 role=first leads=yes id={SERVER_ID} name=alpha state=up because="the most senior live master"'
        )
        assert lines[2].startswith(f"rank=2 role=master leads=no id={OTHER_ID} name=beta ")

    def test_status(self) -> None:
        """STATUS gives names and values."""
        assert ClientLink().auth("reader").say("STATUS") == (
            "STATUS 2\r\ntable%20copies=2\r\nunder-replicated%20chunks=0\r\nEND\r\n"
        )

    def test_set(self) -> None:
        """SET changes a server's fields or the farm's options, and shows the result."""
        link = ClientLink().auth("admin")
        assert " zone=rack%201 " in link.say("SET beta zone=rack%201")
        assert link.say("SET farm name=home").startswith("OK FARM chunksize=4096 name=home ")
        assert link.say("SET beta zone=a zone=b").startswith("ERR syntax ")
        assert link.say("SET gamma zone=a").startswith("ERR notfound ")


class FileTests(SynchronousTestCase):
    def test_list(self) -> None:
        """LIST goes through the files in order, in pages if asked."""
        link = ClientLink().auth("reader")
        for name in ("b/2", "a/1", "a/x y", "a/2"):
            link.backend.catalog.add(name, b"x")
        lines = link.say("LIST").split("\r\n")
        assert lines[0] == "FILES 4 revision=7"
        assert [line.split(" ")[1] for line in lines[1:5]] == ["name=a/1", "name=a/2", "name=a/x%20y", "name=b/2"]
        lines = link.say("LIST a/ - 2").split("\r\n")
        assert lines[0] == "FILES 2 revision=7 more"
        assert link.say("LIST a/ a/2").split("\r\n")[1].startswith("FILE name=a/x%20y ")
        assert link.say("LIST - a/x%20y").split("\r\n")[1].startswith("FILE name=b/2 ")

    def test_list_limit(self) -> None:
        """A LIST has at least one and at most a thousand rows."""
        link = ClientLink().auth("reader")
        for limit in ("0", "1001"):
            assert link.say(f"LIST - - {limit}").startswith("ERR limit ")
        assert link.say("LIST - - x").startswith("ERR syntax ")

    def test_stat(self) -> None:
        """STAT says all that is known of a file, and names may hold spaces."""
        link = ClientLink().auth("reader")
        file = link.backend.catalog.add("a/x y", DATA, "text/plain; charset=utf-8")
        assert link.say("STAT a/x%20y") == (
            f"OK FILE name=a/x%20y size=10240 modified=2026-11-22T10:00:00.123Z etag={file.etag} "
            f'type="text/plain; charset=utf-8" chunksize=4096 chunks=3 revision=1\r\n'
        )
        assert link.say("STAT a/y").startswith("ERR notfound ")
        assert link.say("STAT nobucket").startswith("ERR syntax ")
        assert link.say("STAT a/../b").startswith("ERR syntax ")

    def test_stale(self) -> None:
        """An answer that may be out of date says so."""
        link = ClientLink().auth("reader")
        link.backend.catalog.add("a/b", DATA)
        link.backend.catalog.stale = 5
        assert link.say("STAT a/b").endswith(" stale=5\r\n")
        assert link.say("LIST").startswith("FILES 1 revision=7 stale=5\r\n")
        assert link.say("FETCH a/b 0 1").startswith("DATA 1 stale=5\r\n")

    def test_remove(self) -> None:
        """REMOVE removes, once."""
        link = ClientLink().auth("writer")
        link.backend.catalog.add("a/b", DATA)
        assert link.say("REMOVE a/b", "REMOVE a/b").split(" ")[0] == "OK\r\nERR"
        assert link.backend.catalog.files == {}

    def test_no_majority(self) -> None:
        """Without a majority writes are answered readonly."""
        link = ClientLink().auth("writer")
        link.backend.catalog.error = Unavailable("x")
        assert link.say("REMOVE a/b").startswith("ERR readonly ")
        link.backend.catalog.error = ReadOnly("no majority")
        assert link.say("REMOVE a/b") == "ERR readonly no majority\r\n"

    def test_no_majority_and_the_cure(self) -> None:
        """A read-only server says with each refusal whom it misses, and what can be done."""
        link = ClientLink().auth("writer")
        wait = Wait(Address("10.0.0.3", 4101), "refused", 0, 1)
        link.backend.state.change("readonly", waits=(wait,), cures=("start it again",))
        # A change is not even begun.
        assert link.say("REMOVE a/b").startswith("ERR readonly no change can be made now; it waits for 10.0.0.3:4101")
        for error in (Unavailable("x"), ReadOnly("no majority")):
            link.backend.catalog.error = error
            told = link.say("STAT a/b")
            assert told.startswith("ERR readonly no majority")
            assert told.endswith("; it waits for 10.0.0.3:4101 (refused). Cure: start it again\r\n")

    def test_fetch(self) -> None:
        """FETCH gives the bytes of a file, or a range."""
        link = ClientLink().auth("reader")
        link.backend.catalog.add("a/b", b"0123456789")
        link.backend.catalog.add("a/empty", b"")
        assert link.say("FETCH a/b") == "DATA 10\r\n0123456789"
        assert link.say("FETCH a/b 7", "PING") == "DATA 3\r\n789OK\r\n"
        assert link.say("FETCH a/b 2 3") == "DATA 3\r\n234"
        assert link.say("FETCH a/b 10") == "DATA 0\r\n"
        assert link.say("FETCH a/empty") == "DATA 0\r\n"
        assert all(source.closed for source in link.backend.catalog.sources)

    def test_fetch_bad_ranges(self) -> None:
        """A range outside of the file is an error that says how long the file is."""
        link = ClientLink().auth("reader")
        link.backend.catalog.add("a/b", b"0123456789")
        for words in ("11", "0 11", "9 2", "11 0"):
            assert link.say(f"FETCH a/b {words}").startswith("ERR syntax the file has 10 bytes"), words
        for words in ("-1", "x", "1 x", "0x1", "1" * 19, "\u0661"):
            assert link.say(f"FETCH a/b {words}").startswith("ERR syntax "), words

    def test_fetch_back_pressure(self) -> None:
        """Bytes that the client does not take are not read."""
        link = ClientLink().auth("reader")
        link.backend.catalog.piece = 1000
        link.backend.catalog.add("a/b", DATA)
        link.protocol.pauseProducing()
        link.say("FETCH a/b")
        link.protocol.resumeProducing()
        # From here on every write fills the transport.
        write = link.transport.write

        def write_and_fill(data: bytes) -> None:
            write(data)
            link.protocol.pauseProducing()

        link.heard()
        link.transport.write = write_and_fill  # type: ignore[method-assign]
        assert link.say("FETCH a/b") == "DATA 10240\r\n" + DATA[:1000].decode("latin-1").encode("latin-1").decode(
            "utf-8", "surrogateescape"
        )
        link.protocol.resumeProducing()
        assert len(link.transport.value()) == 1000

    def test_fetch_breaks(self) -> None:
        """If bytes fail after they were announced, the link ends, and the client sees too few."""
        link = ClientLink().auth("reader")
        link.backend.catalog.add("a/b", DATA)
        link.backend.catalog.fails_at = 100
        assert len(link.send(b"FETCH a/b\nPING\n").encode("utf-8", "surrogateescape")) == len("DATA 10240\r\n") + 100
        assert link.transport.disconnected or link.transport.disconnecting

    def test_fetch_fails_early(self) -> None:
        """If they fail before, the answer is an error and the link goes on."""
        link = ClientLink().auth("reader")
        link.backend.catalog.add("a/b", DATA)
        link.backend.catalog.fails_at = 0
        assert link.say("FETCH a/b", "PING").startswith("ERR notfound ")
        assert not link.closed

    def test_lost_while_fetching(self) -> None:
        """When the link is lost in the middle of the bytes, the source is closed."""
        link = ClientLink().auth("reader")
        link.backend.catalog.piece = 1000
        link.backend.catalog.add("a/b", DATA)
        write = link.transport.write
        link.transport.write = lambda data: (write(data), link.protocol.pauseProducing())  # type: ignore
        link.say("FETCH a/b")
        link.lose()
        assert [source.closed for source in link.backend.catalog.sources] == [True]


class ChunkTests(SynchronousTestCase):
    def test_put(self) -> None:
        """PUT stores a chunk; doing it again changes nothing."""
        link = ClientLink().auth("writer")
        answer = f"OK {digest_of(DATA).hex()} {HOLDERS}\r\n"
        assert link.send(put(DATA) + put(DATA)) == answer * 2
        assert link.backend.store.chunks == {digest_of(DATA): DATA}

    def test_put_wrong_digest(self) -> None:
        """Bytes that are not what was announced are refused and not stored; the link stays in step."""
        link = ClientLink().auth("writer")
        payload = b"PING\r\nQUIT\r\n"
        answer = link.send(put(payload, b"\0" * 32) + b"PING\r\n")
        assert answer.startswith("ERR mismatch ")
        assert answer.endswith("\r\nOK\r\n")
        assert answer.count("OK") == 1
        assert link.backend.store.chunks == {}

    def test_put_bad_name(self) -> None:
        """A digest that is none is an error; the payload is still taken in."""
        link = ClientLink().auth("writer")
        for name in (b"xyz", b"00" * 31, b"00" * 33, b"%00" * 32):
            answer = link.send(b"PUT %s 5\nPING\nPING\n" % name)
            assert answer.startswith("ERR syntax ")
            assert answer.count("OK") == 1

    def test_put_nothing(self) -> None:
        """A chunk has at least one byte."""
        assert ClientLink().auth("writer").send(put(b"")).startswith("ERR syntax ")

    def test_put_not_allowed(self) -> None:
        """What a reader PUTs is taken in and dropped, not run and not kept."""
        link = ClientLink().auth("reader")
        answer = link.send(put(b"PING\nPING\n" * 1000) + b"PING\n")
        assert answer.startswith("ERR denied ")
        assert answer.count("OK") == 1
        assert link.factory._payload_bytes == 0

    def test_put_bad_length(self) -> None:
        """A length that is no number, or beyond the limit, ends the link: what follows must not be run."""
        for length, code in ((b"x", "syntax"), (b"-1", "syntax"), (b"67108865", "limit"), (b"1 1", "syntax")):
            link = ClientLink().auth("writer")
            answer = link.send(b"PUT %s %s\nPING\nPING\n" % (b"00" * 32, length))
            assert answer.startswith(f"ERR {code} ")
            assert "OK" not in answer
            assert link.closed

    def test_put_memory(self) -> None:
        """Payloads are taken in beside each other up to a limit, and in the order of their coming."""
        link = ClientLink().auth("writer")
        written: list[tuple[bytes, Deferred[ChunkReceipt]]] = []

        def write(data: bytearray, digest: bytes) -> Deferred[ChunkReceipt]:
            written.append((bytes(data), Deferred()))
            return written[-1][1]

        link.backend.transfer = SlowTransfer(write)  # type: ignore
        size = 9 * 1024 * 1024
        link.send(b"".join(put(bytes([number]) * size) for number in range(3)))
        assert [data[:1] for data, _ in written] == [b"\0", b"\1"]
        assert link.transport.producerState == "paused"
        assert link.factory._payload_bytes == 2 * size
        # The answers keep their order although the second is done first.
        written[1][1].callback(ChunkReceipt(b"\1" * 32, ()))
        assert link.heard() == ""
        assert len(written) == 3
        assert link.transport.producerState == "producing"
        written[0][1].callback(ChunkReceipt(b"\0" * 32, ()))
        written[2][1].callback(ChunkReceipt(b"\2" * 32, ()))
        assert [line[3:5] for line in link.heard().split("\r\n")] == ["00", "01", "02", ""]
        assert link.factory._payload_bytes == 0

    def test_put_memory_of_all(self) -> None:
        """All links together hold a bounded number of bytes; who must wait goes on when others are done."""
        link = ClientLink(limits=Limits(client_payloads=100)).auth("writer")
        assert link.factory.reserve(60, link.protocol)
        assert link.send(put(b"x" * 60)) == ""
        assert link.transport.producerState == "paused"
        link.factory.release(60)
        link.clock.advance(0)
        assert link.heard().startswith("OK ")
        assert link.transport.producerState == "producing"

    def test_put_lost(self) -> None:
        """A chunk whose link is lost is still stored; its memory is given back after that."""
        link = ClientLink().auth("writer")
        waits: Deferred[ChunkReceipt] = Deferred()
        link.backend.transfer = SlowTransfer(lambda data, digest: waits)  # type: ignore
        link.send(put(b"abc"))
        link.lose()
        assert link.factory._payload_bytes == 3
        waits.callback(ChunkReceipt(b"\0" * 32, ()))
        assert link.factory._payload_bytes == 0

    def test_put_lost_and_given_up(self) -> None:
        """So is that of one which something inside gives up on when its link is gone, or about to go."""
        for over in (ClientLink.lose, lambda link: link.protocol.end()):
            link = ClientLink().auth("writer")
            waits: Deferred[ChunkReceipt] = Deferred()
            link.backend.transfer = SlowTransfer(lambda data, digest, waits=waits: waits)  # type: ignore
            link.send(put(b"abc"))
            over(link)
            waits.errback(CancelledError())
            assert link.factory._payload_bytes == 0

    def test_put_broken_off(self) -> None:
        """A payload that never becomes whole is forgotten with its link."""
        link = ClientLink().auth("writer")
        link.send(put(b"abc" * 100)[:-1])
        link.lose()
        assert link.factory._payload_bytes == 0
        assert link.backend.store.chunks == {}

    def test_have(self) -> None:
        """HAVE says of each chunk how many copies there are, and where."""
        link = ClientLink().auth("writer")
        link.send(put(b"abc"))
        there = digest_of(b"abc").hex()
        assert link.say(f"HAVE {there} {'00' * 32}") == (
            f"HAVE 2\r\nCHUNK digest={there} {HOLDERS}\r\nCHUNK digest={'00' * 32} copies=0 holders=\r\nEND\r\n"
        )
        assert link.backend.store.kept == [digest_of(b"abc"), bytes(32)], "an upload may go on with what HAVE finds"
        assert link.say("HAVE", "HAVE abc").count("ERR syntax") == 2

    def test_get(self) -> None:
        """GET gives a chunk's bytes, or a range."""
        link = ClientLink().auth("writer")
        link.send(put(b"0123456789"))
        name = digest_of(b"0123456789").hex()
        assert link.say(f"GET {name}") == "DATA 10\r\n0123456789"
        assert link.say(f"GET {name} 4") == "DATA 6\r\n456789"
        assert link.say(f"GET {name.upper()} 4 2") == "DATA 2\r\n45"
        assert link.say(f"GET {'00' * 32}").startswith("ERR notfound ")


class CommitTests(SynchronousTestCase):
    def commit(self, link: ClientLink, name: str, data: bytes, chunk_size: int = 4096) -> str:
        """Store the chunks of a file and commit it, all in one read."""
        chunks = [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]
        digests = b"".join(digest_of(chunk) for chunk in chunks)
        line = f"COMMIT {name} {len(data)} {chunk_size} {len(digests)}\r\n".encode()
        answers = link.send(b"".join(put(chunk) for chunk in chunks) + line + digests)
        assert answers.count("\r\n") == len(chunks) + 1
        return answers.split("\r\n")[len(chunks)]

    def test_commit(self) -> None:
        """Chunks become a file, and the receipt says where they are."""
        link = ClientLink().auth("writer")
        digests = [digest_of(DATA[:4096]), digest_of(DATA[4096:8192]), digest_of(DATA[8192:])]
        assert self.commit(link, "home/a%20b.txt", DATA) == (
            f"OK name=home/a%20b.txt size=10240 chunks=3 {HOLDERS} etag={etag_of(10240, 4096, digests)} revision=1"
        )
        assert link.backend.catalog.content("home/a b.txt") == DATA
        assert link.backend.catalog.files["home/a b.txt"].content_type == "text/plain; charset=utf-8"

    def test_empty(self) -> None:
        """An empty file has no chunks."""
        link = ClientLink().auth("writer")
        assert self.commit(link, "home/empty", b"").startswith("OK name=home/empty size=0 chunks=0 ")

    def test_waits_for_puts(self) -> None:
        """A COMMIT that came along with its PUTs begins when they are done."""
        link = ClientLink().auth("writer")
        waits: Deferred[ChunkReceipt] = Deferred()
        link.backend.transfer = SlowTransfer(lambda data, digest: waits)  # type: ignore
        link.send(put(b"abc") + b"COMMIT home/x 3 4096 32\n" + digest_of(b"abc"))
        assert link.backend.catalog.calls == []
        link.backend.store.chunks[digest_of(b"abc")] = b"abc"
        waits.callback(ChunkReceipt(digest_of(b"abc"), ()))
        assert link.heard().count("OK ") == 2

    def test_refused(self) -> None:
        """What does not fit is refused with a sentence, and there is no file."""
        link = ClientLink().auth("writer")
        for words, payload, code in (
            ("home/x 3 4096 32", b"\0" * 32, "missing"),
            ("home/x 5000 4096 32", b"\0" * 32, "mismatch"),
            ("home/x 0 4096 32", b"\0" * 32, "mismatch"),
            ("home/x 3 4096 31", b"\0" * 31, "mismatch"),
            ("home/x 3 100 32", b"\0" * 32, "syntax"),
            ("home/x 3 999999999 32", b"\0" * 32, "limit"),
            ("home/x y 4096 32", b"\0" * 32, "syntax"),
            ("x 3 4096 32", b"\0" * 32, "syntax"),
        ):
            link.backend.catalog.error = MissingChunks("no") if code == "missing" else None
            answer = link.send(f"COMMIT {words}\n".encode() + payload + b"PING\n")
            assert answer.startswith(f"ERR {code} "), words
            assert answer.endswith("\r\nOK\r\n")
        assert link.backend.catalog.files == {}
