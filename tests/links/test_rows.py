from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import InvalidRequest
from chunkfarm.links.rows import (
    EventReader,
    event_lines,
    file_row,
    more_follows,
    parse_event,
    parse_row,
    server_row,
)
from chunkfarm.model import File, Server
from chunkfarm.table.interface import VALUE_BYTES_MAX, Batch, Event
from chunkfarm.wire.lines import LINE_BYTES_MAX, text_of

SERVER = Server(
    id="5e" * 16,
    name="alpha",
    host="10.0.0.1",
    client=4100,
    peer=4101,
    files=4102,
    joined=1795341600123,
    seniority=4,
    zone="rack 1",
    version="0.1",
)
FILE = File(name="home/a b.txt", size=10, chunk_size=4096, digests=(b"\1" * 32,), modified=1795341600123, etag="e1")


def through(batch: Batch) -> Batch:
    """A batch written as lines and read again."""
    reader = EventReader(0)
    complete = False
    for event, more in more_follows(batch.events):
        for line in event_lines(event, more=more):
            assert len(line.encode()) <= LINE_BYTES_MAX
            complete = reader.add(text_of(line.encode()))
    assert complete
    return reader.take()


class RowTests(SynchronousTestCase):
    def test_server(self) -> None:
        """A server's row has its fields in the order that is promised."""
        assert server_row(SERVER, "first") == (
            f"SERVER id={'5e' * 16} name=alpha joined=2026-11-22T10:00:00.123Z seniority=4 host=10.0.0.1 client=4100 "
            "peer=4101 files=4102 state=up role=first weight=1 zone=rack%201 free=0 used=0 version=0.1"
        )

    def test_file(self) -> None:
        """A name with a space is percent-encoded in a file's row."""
        kind, fields = parse_row(file_row(FILE))
        assert kind == "FILE"
        assert "name=home/a%20b.txt " in file_row(FILE)
        assert fields["name"] == "home/a b.txt"
        assert fields["chunks"] == "1"


class EventTests(SynchronousTestCase):
    def test_readable(self) -> None:
        """A change of a server shows the server's row, and of a file the file's."""
        (line,) = event_lines(Event(9, "PUT", SERVER.key, SERVER.to_value()), "first")
        assert line.startswith(f"EVENT 9 PUT {server_row(SERVER, 'first')} value={{")
        (line,) = event_lines(Event(9, "DEL", SERVER.key, b""))
        assert line == f"EVENT 9 DEL SERVER id={SERVER.id}"
        (line,) = event_lines(Event(9, "DEL", FILE.key, b""))
        assert line == "EVENT 9 DEL FILE name=home/a%20b.txt"

    def test_known_rows_survive(self) -> None:
        """What a follower gets is, byte for byte, what stands in the table."""
        batch = Batch(
            9,
            (
                Event(8, "PUT", SERVER.key, SERVER.to_value()),
                Event(9, "PUT", FILE.key, FILE.to_value()),
                Event(9, "PUT", b"farm/options", b'{"name": "a value= in it"}'),
                Event(9, "DEL", b"servers/" + b"0" * 32, b""),
            ),
        )
        assert through(batch) == batch

    def test_strange_rows_survive(self) -> None:
        """A row that is not what its key promises is passed on as it stands."""
        batch = Batch(
            3,
            (
                Event(3, "PUT", b"servers/x", b"\xff\x00 not json"),
                Event(3, "PUT", b'files/\xff "', b"[]"),
                Event(3, "DEL", b"files/\xff", b""),
            ),
        )
        assert through(batch) == batch

    @given(
        st.binary(min_size=1, max_size=40),
        st.binary(max_size=VALUE_BYTES_MAX),
        st.sampled_from([b"servers/", b"files/", b"farm/"]),
    )
    def test_any_bytes_survive(self, key: bytes, value: bytes, prefix: bytes) -> None:
        """Any key and any value, however large, survive as lines under the limit."""
        batch = Batch(5, (Event(5, "PUT", prefix + key, value), Event(5, "DEL", prefix + key, b"")))
        assert through(batch) == batch

    def test_largest_value(self) -> None:
        """A value of the table's limit is told in parts."""
        batch = Batch(5, (Event(5, "PUT", b"farm/" + b"%" * 1100, b"\x00" * VALUE_BYTES_MAX),))
        assert through(batch) == batch
        assert len(event_lines(batch.events[0])) > 1

    def test_transactions_stay_whole(self) -> None:
        """A transaction is not given out before its last change has come, and a NONE moves the revision on."""
        reader = EventReader(4)
        assert not reader.add("EVENT 5 DEL FILE name=a/b more=1")
        assert reader.add("EVENT 5 DEL FILE name=a/c")
        assert reader.take() == Batch(5, (Event(5, "DEL", b"files/a/b", b""), Event(5, "DEL", b"files/a/c", b"")))
        assert reader.add("EVENT 8 NONE")
        assert reader.take() == Batch(8, ())

    def test_nonsense(self) -> None:
        """Lines that are no events are refused."""
        for line in (
            "EVENT",
            "EVENT x PUT",
            "EVENT 1 PUT",
            "EVENT 1 FOO ROW key=a",
            "OK 1 2",
            "EVENT 1 NONE ROW key=a",
        ):
            self.assertRaises(InvalidRequest, parse_event, line)
