"""Everything that travels between tables comes out as it went in, and garbage is only ever a CodecError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import InvalidRequest, LimitExceeded
from chunkfarm.table import codec
from chunkfarm.table.codec import (
    Answer,
    AnswerKind,
    AnswerRecord,
    OpenSession,
    ReadRequest,
    SessionRecord,
    SnapshotPage,
    Transaction,
    check_transaction,
)
from chunkfarm.table.framing import NUMBER_MAX, CodecError
from chunkfarm.table.interface import Compare, Delete, Page, Put, Row
from chunkfarm.table.raft_log import encode_configuration as encode_entry_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message, MessageKind, SnapshotMeta

numbers = st.integers(0, NUMBER_MAX)
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
keys = st.binary(max_size=40)
values = st.binary(max_size=60)
rows = st.builds(Row, keys, values, numbers)
configurations = st.builds(Configuration, st.frozensets(ids, max_size=4), st.frozensets(ids, max_size=3))
metas = st.builds(SnapshotMeta, numbers, numbers, configurations)
entries = st.builds(
    Entry, numbers, numbers, st.sampled_from([EntryKind.EMPTY, EntryKind.DATA]), st.binary(max_size=80)
) | st.builds(
    lambda term, index, configuration: Entry(
        term, index, EntryKind.CONFIGURATION, encode_entry_configuration(configuration)
    ),
    numbers,
    numbers,
    configurations,
)
messages = st.builds(
    Message,
    kind=st.sampled_from(MessageKind),
    sender=ids,
    to=ids,
    term=numbers,
    log_index=numbers,
    log_term=numbers,
    entries=st.lists(entries, max_size=4).map(tuple),
    commit=numbers,
    reject=st.booleans(),
    hint_index=numbers,
    hint_term=numbers,
    context=numbers,
    answer=numbers,
    life=numbers,
    withheld=st.booleans(),
    transfer=st.booleans(),
    snapshot=st.none() | metas,
)
compares = st.builds(Compare, keys, st.sampled_from(codec.RELATIONS), numbers)
operations = st.builds(Put, keys, values) | st.builds(Delete, keys)
requests = st.builds(OpenSession, ids) | st.builds(
    Transaction,
    ids,
    numbers,
    numbers,
    numbers,
    st.lists(compares, max_size=4).map(tuple),
    st.lists(operations, max_size=4).map(tuple),
)
answers = st.builds(Answer, st.sampled_from(AnswerKind), numbers, st.lists(rows, max_size=4).map(tuple))
reads = st.builds(ReadRequest, keys, keys, numbers)
pages = st.builds(Page, numbers, st.lists(rows, max_size=5).map(tuple), st.booleans())
snapshot_records = (
    rows | st.builds(SessionRecord, ids, numbers, numbers, numbers) | st.builds(AnswerRecord, ids, numbers, numbers)
)
snapshot_pages = st.builds(
    SnapshotPage,
    stream=numbers,
    sequence=numbers,
    term=numbers,
    meta=metas,
    records=st.binary(max_size=80),
    last=st.booleans(),
    count=numbers,
    digest=st.binary(max_size=32),
)

DECODERS: tuple[Callable[[bytes], Any], ...] = (
    codec.decode_consensus,
    codec.decode_request,
    codec.decode_answer,
    codec.decode_read,
    codec.decode_page,
    codec.decode_records,
    codec.decode_configuration,
)


class CodecTests(SynchronousTestCase):
    """Round trips, and what is not one."""

    @given(messages)
    def test_messages(self, message: Message) -> None:
        """A message of the core arrives as it was sent."""
        assert codec.decode_consensus(codec.encode_message(message)) == message

    @given(snapshot_pages)
    def test_snapshot_pages(self, page: SnapshotPage) -> None:
        """So does a page of a snapshot, and it is told from a message by its first byte."""
        payload = codec.encode_snapshot_page(page)
        assert codec.is_snapshot_page(payload)
        assert codec.decode_consensus(payload) == page

    @given(requests)
    def test_requests(self, request: OpenSession | Transaction) -> None:
        """So does a transaction."""
        assert codec.decode_request(codec.encode_request(request)) == request

    @given(answers, pages, reads, configurations)
    def test_the_rest(self, answer: Answer, page: Page, read: ReadRequest, configuration: Configuration) -> None:
        """So do answers, reads, pages and configurations."""
        assert codec.decode_answer(codec.encode_answer(answer)) == answer
        assert codec.decode_page(codec.encode_page(page)) == page
        assert codec.decode_read(codec.encode_read(read)) == read
        assert codec.decode_configuration(codec.encode_configuration(configuration)) == configuration

    @given(st.lists(snapshot_records, max_size=5))
    def test_records(self, records: list[codec.SnapshotRecord]) -> None:
        """Records of a snapshot stand one behind the other."""
        assert codec.decode_records(b"".join(map(codec.encode_record, records))) == records

    @given(rows)
    def test_row_size(self, row: Row) -> None:
        """A page is cut by what its rows really take."""
        empty, one = Page(1, (), False), Page(1, (row,), False)
        assert len(codec.encode_page(one)) - len(codec.encode_page(empty)) == codec.row_bytes(row)

    @given(st.binary(max_size=120))
    @example(b"\x14" + b"\xff" * 30)
    def test_garbage(self, data: bytes) -> None:
        """Garbage is a CodecError, whatever it is taken for."""
        for decode in DECODERS:
            with contextlib.suppress(CodecError):
                decode(data)

    @given(st.one_of(messages.map(codec.encode_message), requests.map(codec.encode_request)), st.data())
    def test_damage(self, payload: bytes, data: st.DataObject) -> None:
        """A payload that is cut short is refused, and one with a changed byte never raises anything else."""
        cut = data.draw(st.integers(0, len(payload) - 1))
        for decode in DECODERS[:2]:
            with self.assertRaises(CodecError):
                decode(payload[:cut])
        at = data.draw(st.integers(0, len(payload) - 1))
        changed = payload[:at] + bytes((data.draw(st.integers(0, 255)),)) + payload[at + 1 :]
        for decode in DECODERS[:2]:
            with contextlib.suppress(CodecError):
                decode(changed)

    def test_a_huge_count(self) -> None:
        """A count that cannot be true is refused before memory is asked for."""
        with self.assertRaises(CodecError):
            codec.decode_page(b"\x14" + bytes(9) + b"\xff\xff\xff\xff")

    def test_a_configuration_entry_that_is_none(self) -> None:
        """An entry that claims to be a configuration must be one: the core reads it as it appends it."""
        for data in (b"", b"{}", b"[" * 40_000, b'{"voters":[1],"learners":[]}'):
            entry = Entry(1, 1, EntryKind.CONFIGURATION, data)
            message = Message(kind=MessageKind.APPEND, sender="a", to="b", term=1, entries=(entry,))
            with self.assertRaises(CodecError):
                codec.decode_consensus(codec.encode_message(message))

    def test_the_largest_transaction_fits(self) -> None:
        """What the limits allow is an entry that the core takes, and a payload that AMP takes."""
        from chunkfarm.table.leadership import ENTRY_BYTES_MAX

        operations = tuple(Put(b"%02d" % n + bytes(574), bytes(192)) for n in range(64))
        compares = tuple(Compare(b"", "==", NUMBER_MAX) for _ in range(64))
        encoded = codec.encode_request(Transaction("c" * 32, 1, 1, 0, compares, operations))
        assert len(encoded) <= codec.REQUEST_BYTES_MAX <= ENTRY_BYTES_MAX
        check_transaction((), operations)


class CheckTransactionTests(SynchronousTestCase):
    """What cannot be a transaction is refused before anybody else hears of it."""

    def test_limits(self) -> None:
        """Keys, values, counts and the whole have limits."""
        long_key = b"k" * 1201
        for compares, operations in (
            ((), tuple(Put(b"%d" % n, b"") for n in range(65))),
            (tuple(Compare(b"%d" % n, "==", 0) for n in range(65)), ()),
            ((), (Put(long_key, b""),)),
            ((Compare(long_key, "==", 0),), ()),
            ((), (Put(b"k", bytes(16 * 1024 + 1)),)),
            ((), tuple(Put(b"%d" % n, bytes(16 * 1024)) for n in range(3))),
        ):
            with self.assertRaises(LimitExceeded):
                check_transaction(compares, operations)

    def test_nonsense(self) -> None:
        """So are empty keys, unknown relations, and two changes of one key."""
        for compares, operations in (
            ((), (Put(b"", b""),)),
            ((Compare(b"k", "!=", 0),), ()),
            ((Compare(b"k", "==", -1),), ()),
            ((), (Put(b"k", b""), Delete(b"k"))),
        ):
            with self.assertRaises(InvalidRequest):
                check_transaction(compares, operations)
