"""What the table says over the peer port and writes into its log, as bytes and back.

Numbers are fixed-width and big-endian, texts and byte strings carry their length. Every payload begins
with a tag, so that a later version can add kinds. Whatever is malformed raises `CodecError` and nothing
else; numbers above 2**63 - 1 are malformed, because the journal could not hold them.
"""

from __future__ import annotations

import struct
from enum import Enum

from attrs import frozen

from chunkfarm.errors import InvalidRequest, LimitExceeded
from chunkfarm.table.framing import (
    BYTE,
    LENGTH,
    NUMBER,
    NUMBER_MAX,
    SHORT,
    CodecError,
    Reader,
    put_data,
    put_many,
    put_text,
)
from chunkfarm.table.interface import (
    KEY_BYTES_MAX,
    OPERATIONS_MAX,
    TRANSACTION_BYTES_MAX,
    VALUE_BYTES_MAX,
    Compare,
    Delete,
    Operation,
    Page,
    Put,
    Row,
)
from chunkfarm.table.raft_log import decode_configuration as decode_entry_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message, MessageKind, SnapshotMeta

PAYLOAD_BYTES_MAX = 60_000
"""An AMP value ends at 65,535 bytes; the difference is left for what a later version may add."""
PAGE_BYTES_MAX = 56 * 1024
"""Rows of one page or one answer, encoded: they fit a payload with their frame."""
REQUEST_BYTES_MAX = 52 * 1024
"""A transaction, encoded: keys and values with what frames them. The core takes no larger entry."""
COMPARES_MAX = OPERATIONS_MAX
"""One compare for each operation is what a transaction is for."""
RELATIONS = ("==", ">", "<")

_MESSAGE = struct.Struct("!BBQQQQQQQQQ")
_ENTRY = struct.Struct("!BQQI")

_KEY_HEAD = struct.Struct("!BH")
"""A byte and the length of what follows: a tag and a text, a relation and a key, an operation and a key."""
_TRANSACTION_HEAD = struct.Struct("!QQQI")
_PUT, _DELETE = b"pd"

_TAG_MESSAGE = 1
_TAG_SNAPSHOT = 2
_TAG_OPEN = 16
_TAG_TRANSACTION = 17
_TAG_READ = 18
_TAG_ANSWER = 19
_TAG_PAGE = 20

# The numbers are what is written to disks and sent to other versions: a kind is added, never renumbered.
_MESSAGE_KINDS = {
    MessageKind.PRE_VOTE: 1,
    MessageKind.PRE_VOTE_ANSWER: 2,
    MessageKind.VOTE: 3,
    MessageKind.VOTE_ANSWER: 4,
    MessageKind.APPEND: 5,
    MessageKind.APPEND_ANSWER: 6,
    MessageKind.HEARTBEAT: 7,
    MessageKind.HEARTBEAT_ANSWER: 8,
    MessageKind.SNAPSHOT: 9,
    MessageKind.READ: 10,
    MessageKind.READ_ANSWER: 11,
    MessageKind.TIMEOUT_NOW: 12,
}
ENTRY_KINDS = {EntryKind.EMPTY: 0, EntryKind.DATA: 1, EntryKind.CONFIGURATION: 2}
ENTRY_KIND_OF = {number: kind for kind, number in ENTRY_KINDS.items()}
_MESSAGE_KIND_OF = {number: kind for kind, number in _MESSAGE_KINDS.items()}
_REJECT, _TRANSFER, _WITH_SNAPSHOT, _WITHHELD = 1, 2, 4, 8


class AnswerKind(Enum):
    DONE = 1
    """The operations took effect at `revision`."""
    CONFLICT = 2
    """A compare failed and nothing was changed; `rows` are the compared rows."""
    OPENED = 3
    """The session has begun; `revision` is its epoch."""
    EXPIRED = 4
    """The session is forgotten, so nobody can say whether an earlier copy of the transaction took effect."""
    INVALID = 5
    """The entry is no transaction that this table knows; nothing was changed."""


@frozen
class Answer:
    """What the state machine says to one entry."""

    kind: AnswerKind
    revision: int = 0
    rows: tuple[Row, ...] = ()


@frozen
class OpenSession:
    """Begin a session of `client`, or find it again (Ongaro, section 6.3)."""

    client: str


@frozen
class Transaction:
    """A transaction of a session. Its (client, epoch, number) stay the same however often it is sent."""

    client: str
    epoch: int
    """The revision at which the session began: a session that was forgotten and opened again is another one."""
    number: int
    acknowledged: int
    """Answers up to this number have arrived and may be forgotten."""
    compares: tuple[Compare, ...] = ()
    operations: tuple[Operation, ...] = ()


Request = OpenSession | Transaction


@frozen
class ReadRequest:
    prefix: bytes
    after: bytes
    limit: int


@frozen
class SessionRecord:
    """A session as a snapshot carries it."""

    client: str
    epoch: int
    used: int
    acknowledged: int


@frozen
class AnswerRecord:
    """A remembered answer; `revision` 0 stands for a conflict."""

    client: str
    number: int
    revision: int


SnapshotRecord = Row | SessionRecord | AnswerRecord


@frozen(kw_only=True)
class SnapshotPage:
    """A piece of a snapshot. Pages of one `stream` come in `sequence` 0, 1, 2 ...; the last one says `count`
    and `digest` (SHA-256 over all records as encoded)."""

    stream: int
    sequence: int
    term: int
    meta: SnapshotMeta
    records: bytes
    """Encoded by `encode_record`, one behind the other."""
    last: bool = False
    count: int = 0
    digest: bytes = b""


# -- messages of the core --------------------------------------------------------------------------------


def encode_configuration(configuration: Configuration) -> bytes:
    """A configuration as it stands in a snapshot's head; equal configurations give equal bytes."""
    return put_many(map(put_text, sorted(configuration.voters))) + put_many(
        map(put_text, sorted(configuration.learners))
    )


def decode_configuration(data: bytes) -> Configuration:
    reader = Reader(data)
    configuration = _configuration(reader)
    reader.end()
    return configuration


def _configuration(reader: Reader) -> Configuration:
    voters = reader.many(reader.text, SHORT.size)
    return Configuration(voters, reader.many(reader.text, SHORT.size))


def _encode_meta(meta: SnapshotMeta) -> bytes:
    return NUMBER.pack(meta.index) + NUMBER.pack(meta.term) + encode_configuration(meta.configuration)


def _meta(reader: Reader) -> SnapshotMeta:
    index, term = reader.number(), reader.number()
    return SnapshotMeta(index, term, _configuration(reader))


def _encode_entry(entry: Entry) -> bytes:
    return _ENTRY.pack(ENTRY_KINDS[entry.kind], entry.term, entry.index, len(entry.data)) + entry.data


def _entries(data: bytes, at: int) -> tuple[tuple[Entry, ...], int]:
    """The counted run of entries that begins at `at`, and where it ends."""
    (count,) = LENGTH.unpack_from(data, at)
    at += LENGTH.size
    entries = []
    for _ in range(count):
        number, term, index, length = _ENTRY.unpack_from(data, at)
        begin, at = at + _ENTRY.size, at + _ENTRY.size + length
        kind = ENTRY_KIND_OF.get(number)
        if kind is None:
            raise CodecError(f"there is no entry of kind {number}")
        if at > len(data):
            raise CodecError("the bytes end too early")
        if max(term, index) > NUMBER_MAX:
            raise CodecError("a number is too large")
        entries.append(Entry(term, index, kind, data[begin:at]))
        if kind is EntryKind.CONFIGURATION:
            try:
                decode_entry_configuration(entries[-1].data)
            except (ValueError, RecursionError) as error:
                # The core reads configurations as it appends them, and must not stumble over what a peer sent.
                raise CodecError("an entry is no configuration") from error
    return tuple(entries), at


def encode_message(message: Message) -> bytes:
    """A message of the core as a payload of the peer port."""
    flags = (
        (_REJECT if message.reject else 0)
        | (_TRANSFER if message.transfer else 0)
        | (_WITH_SNAPSHOT if message.snapshot is not None else 0)
        | (_WITHHELD if message.withheld else 0)
    )
    head = _MESSAGE.pack(
        _MESSAGE_KINDS[message.kind],
        flags,
        message.term,
        message.log_index,
        message.log_term,
        message.commit,
        message.hint_index,
        message.hint_term,
        message.context,
        message.answer,
        message.life,
    )
    return b"".join(
        (
            BYTE.pack(_TAG_MESSAGE),
            head,
            put_text(message.sender),
            put_text(message.to),
            put_many(map(_encode_entry, message.entries)),
            b"" if message.snapshot is None else _encode_meta(message.snapshot),
        )
    )


def _message(data: bytes) -> Message:
    """Taken apart by hand, like a transaction: several come and go with each of those."""
    try:
        number, flags, *numbers = _MESSAGE.unpack_from(data, BYTE.size)
        at = BYTE.size + _MESSAGE.size
        begin, at = at + SHORT.size, at + SHORT.size + SHORT.unpack_from(data, at)[0]
        sender = data[begin:at].decode()
        begin, at = at + SHORT.size, at + SHORT.size + SHORT.unpack_from(data, at)[0]
        to = data[begin:at].decode()
        entries, at = _entries(data, at)
    except struct.error as error:
        raise CodecError("the bytes end too early") from error
    except UnicodeDecodeError as error:
        raise CodecError("a text is not UTF-8") from error
    if max(numbers) > NUMBER_MAX:
        raise CodecError("a number is too large")
    kind = _MESSAGE_KIND_OF.get(number)
    if kind is None:
        raise CodecError(f"there is no message of kind {number}")
    if flags & ~(_REJECT | _TRANSFER | _WITH_SNAPSHOT | _WITHHELD):
        raise CodecError("a message has flags that nobody knows")
    snapshot = None
    if flags & _WITH_SNAPSHOT:
        reader = Reader(data, at)
        snapshot = _meta(reader)
        reader.end()
    elif at != len(data):
        raise CodecError("there are bytes behind the end")
    term, log_index, log_term, commit, hint_index, hint_term, context, answer, life = numbers
    return Message(
        kind=kind,
        sender=sender,
        to=to,
        term=term,
        log_index=log_index,
        log_term=log_term,
        entries=entries,
        commit=commit,
        reject=bool(flags & _REJECT),
        hint_index=hint_index,
        hint_term=hint_term,
        context=context,
        answer=answer,
        life=life,
        withheld=bool(flags & _WITHHELD),
        transfer=bool(flags & _TRANSFER),
        snapshot=snapshot,
    )


def is_snapshot_page(payload: bytes) -> bool:
    """Whether a payload of the `Consensus` command announces itself as a page of a snapshot."""
    return payload[:1] == BYTE.pack(_TAG_SNAPSHOT)


def decode_consensus(payload: bytes) -> Message | SnapshotPage:
    """A payload of the `Consensus` command."""
    if not is_snapshot_page(payload):
        Reader(payload).tag(_TAG_MESSAGE)
        return _message(payload)
    reader = Reader(payload)
    reader.tag(_TAG_SNAPSHOT)
    page = _snapshot_page(reader)
    reader.end()
    return page


# -- snapshots -------------------------------------------------------------------------------------------


def encode_snapshot_page(page: SnapshotPage) -> bytes:
    return b"".join(
        (
            BYTE.pack(_TAG_SNAPSHOT),
            NUMBER.pack(page.stream),
            NUMBER.pack(page.sequence),
            NUMBER.pack(page.term),
            _encode_meta(page.meta),
            put_data(page.records),
            BYTE.pack(page.last),
            NUMBER.pack(page.count),
            put_data(page.digest),
        )
    )


def _snapshot_page(reader: Reader) -> SnapshotPage:
    return SnapshotPage(
        stream=reader.number(),
        sequence=reader.number(),
        term=reader.number(),
        meta=_meta(reader),
        records=reader.data(),
        last=reader.flag(),
        count=reader.number(),
        digest=reader.data(),
    )


def encode_record(record: SnapshotRecord) -> bytes:
    """One record of a snapshot."""
    if isinstance(record, Row):
        return b"r" + _encode_row(record)
    if isinstance(record, SessionRecord):
        numbers = (record.epoch, record.used, record.acknowledged)
        return b"s" + put_text(record.client) + b"".join(map(NUMBER.pack, numbers))
    return b"a" + put_text(record.client) + NUMBER.pack(record.number) + NUMBER.pack(record.revision)


def decode_records(data: bytes) -> list[SnapshotRecord]:
    """All records of one page."""
    reader = Reader(data)
    records: list[SnapshotRecord] = []
    while not reader.exhausted:
        kind = reader.take(1)
        if kind == b"r":
            records.append(_row(reader))
        elif kind == b"s":
            records.append(SessionRecord(reader.text(), reader.number(), reader.number(), reader.number()))
        elif kind == b"a":
            records.append(AnswerRecord(reader.text(), reader.number(), reader.number()))
        else:
            raise CodecError("a snapshot has a record of an unknown kind")
    return records


# -- transactions, reads and their answers ---------------------------------------------------------------


def check_transaction(compares: tuple[Compare, ...], operations: tuple[Operation, ...]) -> None:
    """Raise `LimitExceeded` or `InvalidRequest` if this cannot be a transaction (limits: `table.interface`)."""
    if len(operations) > OPERATIONS_MAX:
        raise LimitExceeded(f"a transaction has at most {OPERATIONS_MAX} operations")
    if len(compares) > COMPARES_MAX:
        raise LimitExceeded(f"a transaction has at most {COMPARES_MAX} compares")
    total = 0
    for item in (*compares, *operations):
        if not item.key:
            raise InvalidRequest("a key has at least one byte")
        if len(item.key) > KEY_BYTES_MAX:
            raise LimitExceeded(f"a key has at most {KEY_BYTES_MAX} bytes")
        total += len(item.key)
        if isinstance(item, Put):
            if len(item.value) > VALUE_BYTES_MAX:
                raise LimitExceeded(f"a value has at most {VALUE_BYTES_MAX} bytes")
            total += len(item.value)
        elif isinstance(item, Compare) and (item.relation not in RELATIONS or not 0 <= item.revision <= NUMBER_MAX):
            raise InvalidRequest("a compare is (key, one of == > <, a revision)")
    if total > TRANSACTION_BYTES_MAX:
        raise LimitExceeded(f"a transaction has at most {TRANSACTION_BYTES_MAX} bytes of keys and values")
    if len({operation.key for operation in operations}) < len(operations):
        raise InvalidRequest("a transaction changes no key twice")


def encode_request(request: Request) -> bytes:
    """A transaction (or the opening of a session) as log entry and as payload of `Transact`."""
    if isinstance(request, OpenSession):
        return BYTE.pack(_TAG_OPEN) + put_text(request.client)
    return b"".join(
        (
            BYTE.pack(_TAG_TRANSACTION),
            put_text(request.client),
            NUMBER.pack(request.epoch),
            NUMBER.pack(request.number),
            NUMBER.pack(request.acknowledged),
            put_many(map(_encode_compare, request.compares)),
            put_many(map(_encode_operation, request.operations)),
        )
    )


def decode_request(data: bytes) -> Request:
    tag = data[0] if data else 0
    if tag == _TAG_TRANSACTION:
        return _transaction(data)
    reader = Reader(data)
    if reader.byte() != _TAG_OPEN:
        raise CodecError(f"there is no request of kind {tag}")
    request = OpenSession(reader.text())
    reader.end()
    return request


def _transaction(data: bytes) -> Transaction:
    """Taken apart by hand, for every server does it with every transaction: a `Reader` takes three times as long.

    A slice that finds too few bytes is noticed by what follows it, or at the end.
    """
    try:
        at = _KEY_HEAD.size + _KEY_HEAD.unpack_from(data)[1]
        client = data[_KEY_HEAD.size : at].decode()
        epoch, number, acknowledged, count = _TRANSACTION_HEAD.unpack_from(data, at)
        at += _TRANSACTION_HEAD.size
        highest = max(epoch, number, acknowledged)
        compares = []
        for _ in range(count):
            relation, length = _KEY_HEAD.unpack_from(data, at)
            begin, at = at + _KEY_HEAD.size, at + _KEY_HEAD.size + length
            (revision,) = NUMBER.unpack_from(data, at)
            highest = max(highest, revision)
            compares.append(Compare(data[begin:at], RELATIONS[relation], revision))
            at += NUMBER.size
        (count,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        operations: list[Operation] = []
        for _ in range(count):
            kind, length = _KEY_HEAD.unpack_from(data, at)
            begin, at = at + _KEY_HEAD.size, at + _KEY_HEAD.size + length
            if kind == _PUT:
                value = at + LENGTH.size
                end = value + LENGTH.unpack_from(data, at)[0]
                operations.append(Put(data[begin:at], data[value:end]))
                at = end
            elif kind == _DELETE:
                operations.append(Delete(data[begin:at]))
            else:
                raise CodecError("there is no such operation")
    except struct.error as error:
        raise CodecError("the bytes end too early") from error
    except IndexError as error:
        raise CodecError("there is no such relation") from error
    except UnicodeDecodeError as error:
        raise CodecError("a text is not UTF-8") from error
    if at != len(data):
        raise CodecError("the bytes end too early" if at > len(data) else "there are bytes behind the end")
    if highest > NUMBER_MAX:
        raise CodecError("a number is too large")
    return Transaction(client, epoch, number, acknowledged, tuple(compares), tuple(operations))


def _encode_key(key: bytes) -> bytes:
    return SHORT.pack(len(key)) + key


def _key(reader: Reader) -> bytes:
    return reader.take(reader.unpack(SHORT)[0])


def _encode_compare(compare: Compare) -> bytes:
    relation = RELATIONS.index(compare.relation)
    return BYTE.pack(relation) + _encode_key(compare.key) + NUMBER.pack(compare.revision)


def _encode_operation(operation: Operation) -> bytes:
    if isinstance(operation, Put):
        return b"p" + _encode_key(operation.key) + put_data(operation.value)
    return b"d" + _encode_key(operation.key)


def _encode_row(row: Row) -> bytes:
    return _encode_key(row.key) + NUMBER.pack(row.revision) + put_data(row.value)


def _row(reader: Reader) -> Row:
    key, revision = _key(reader), reader.number()
    return Row(key, reader.data(), revision)


_ROW_BYTES_MIN = SHORT.size + NUMBER.size + LENGTH.size


def row_bytes(row: Row) -> int:
    """How many bytes the row takes in a page or an answer."""
    return _ROW_BYTES_MIN + len(row.key) + len(row.value)


def encode_answer(answer: Answer) -> bytes:
    head = BYTE.pack(_TAG_ANSWER) + BYTE.pack(answer.kind.value) + NUMBER.pack(answer.revision)
    return head + put_many(map(_encode_row, answer.rows))


def decode_answer(data: bytes) -> Answer:
    reader = Reader(data)
    reader.tag(_TAG_ANSWER)
    number = reader.byte()
    try:
        kind = AnswerKind(number)
    except ValueError as error:
        raise CodecError(f"there is no answer of kind {number}") from error
    answer = Answer(kind, reader.number(), reader.many(lambda: _row(reader), _ROW_BYTES_MIN))
    reader.end()
    return answer


def encode_read(request: ReadRequest) -> bytes:
    """A read as payload of `Read` and `GetTable`."""
    head = BYTE.pack(_TAG_READ) + _encode_key(request.prefix) + _encode_key(request.after)
    return head + NUMBER.pack(request.limit)


def decode_read(data: bytes) -> ReadRequest:
    reader = Reader(data)
    reader.tag(_TAG_READ)
    request = ReadRequest(_key(reader), _key(reader), reader.number())
    reader.end()
    return request


def encode_page(page: Page) -> bytes:
    head = BYTE.pack(_TAG_PAGE) + NUMBER.pack(page.revision) + BYTE.pack(page.more)
    return head + put_many(map(_encode_row, page.rows))


def decode_page(data: bytes) -> Page:
    reader = Reader(data)
    reader.tag(_TAG_PAGE)
    revision, more = reader.number(), reader.flag()
    page = Page(revision, reader.many(lambda: _row(reader), _ROW_BYTES_MIN), more)
    reader.end()
    return page
