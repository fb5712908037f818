"""Commands that look and say: HELLO, SERVERS, WHO, LIST, STAT, STATUS and more; SET, TABLE and REMOVE beside them."""

from __future__ import annotations

from attrs import asdict

from chunkfarm.catalog import EXPLAINED_MAX
from chunkfarm.errors import Denied, InvalidRequest, LimitExceeded, NotFound
from chunkfarm.explanation import Explanation, Part, shares
from chunkfarm.links.rows import file_row, server_row
from chunkfarm.model import KIB, Server, check_file_name, chunk_count, parse_timestamp, timestamp
from chunkfarm.ports.client.session import Answer, Request, Session, block, ok
from chunkfarm.risk import LOST_FILE
from chunkfarm.wire.lines import Sentence, field, format_fields, quote, quote_sentence

PROTOCOL = "chunkfarm/1"
LIST_LIMIT = 1000
"""Rows of one LIST: up to about a megabyte, which one answer holds in memory."""
HISTORY_LIMIT = 1000
"""Notes of one HISTORY: some 200 kilobytes."""
TABLE_BYTES_MAX = 1024 * KIB
"""A server table put as a whole: a row has some 300 bytes, so this is more than one transaction could change."""
NUMBER_DIGITS_MAX = 18
"""Every size and offset stays below 10^18, so no number can be made costly to read."""


def number(word: str, what: str) -> int:
    """A decimal number; raises `InvalidRequest`."""
    if not (word.isascii() and word.isdigit() and len(word) <= NUMBER_DIGITS_MAX):
        raise InvalidRequest(f"{what} must be a decimal number, not {word[:40]!r}")
    return int(word)


def stale_mark(stale: int) -> str:
    """Says of an answer that it shows an earlier state, because nobody who knows the last one answers."""
    return f"stale={stale}" if stale else ""


async def hello(session: Session, request: Request) -> Answer:
    state = session.backend.state
    fields = format_fields(
        [
            ("farm", state.farm_id or "-"),
            ("name", state.name),
            ("state", state.phase),
            ("server", state.server_id),
            ("revision", state.revision),
            ("chunksize", state.chunksize),
            *([("because", Sentence(state.halted))] if state.halted else []),
        ]
    )
    lines = [f"OK {PROTOCOL} {fields}"]
    if state.phase == "waiting":
        rows = [
            f"PEER {quote(str(wait.address))} "
            + format_fields([("error", Sentence(wait.error)), ("since", timestamp(wait.since)), ("tries", wait.tries)])
            for wait in state.waits
        ]
        rows += [f"CURE {quote_sentence(cure)}" for cure in state.cures]
        lines += [f"WAIT {len(rows)}", *rows, "END"]
    return Answer(lines=tuple(lines))


async def ping(session: Session, request: Request) -> Answer:
    return ok()


def _roles(session: Session) -> dict[str, str]:
    return {standing.server.id: standing.role for standing in session.backend.succession()}


async def servers(session: Session, request: Request) -> Answer:
    roles = _roles(session)
    rows = [server_row(server, roles.get(server.id, "server")) for server in session.backend.servers()]
    return block("TABLE", rows, f"revision={session.backend.state.revision}")


def _find(session: Session, wanted: str) -> Server:
    for server in session.backend.servers():
        if wanted in (server.id, server.name):
            return server
    raise NotFound(f"there is no server {wanted!r}")


async def server(session: Session, request: Request) -> Answer:
    found = _find(session, request.words[0])
    return ok(server_row(found, _roles(session).get(found.id, "server")))


async def set_fields(session: Session, request: Request) -> Answer:
    target = request.words[0]
    values: dict[str, str] = {}
    for assignment in request.words[1:]:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{assignment!r} is not <field>=<value>")
        if name in values:
            raise InvalidRequest(f"{name} is set twice")
        values[name] = value
    principal = session.principal
    assert principal is not None
    if principal.role == "server" and (target == "farm" or _find(session, target).id != principal.id):
        raise Denied("a server may change its own row only")
    if target == "farm":
        options = await session.backend.set_farm(values)
        return ok("FARM " + format_fields(asdict(options).items()))
    changed = await session.backend.set_server(target, values)
    return ok(server_row(changed, _roles(session).get(changed.id, "server")))


async def table(session: Session, request: Request) -> Answer:
    changed = await session.backend.set_table(bytes(request.payload or b""))
    return ok(f"changed={changed}")


async def who(session: Session, request: Request) -> Answer:
    rows = [
        format_fields(
            [
                ("rank", rank),
                ("role", standing.role),
                ("leads", "yes" if standing.leads else "no"),
                ("id", standing.server.id),
                ("name", standing.server.name),
                ("state", standing.server.state),
                ("because", Sentence(standing.reason)),
            ]
        )
        for rank, standing in enumerate(session.backend.succession(), 1)
    ]
    return block("WHO", rows)


async def history(session: Session, request: Request) -> Answer:
    since = _moment(request.word(0)) if request.word(0) else 0
    after = number(request.word(1, "0"), "number of a note")
    limit = number(request.word(2, str(HISTORY_LIMIT)), "limit")
    if limit > HISTORY_LIMIT:
        raise LimitExceeded(f"one HISTORY shows up to {HISTORY_LIMIT} notes; ask again after the last number")
    backend = session.backend
    notes, more = backend.chronicle.told(since, after, limit)
    rows = [
        "NOTE "
        + format_fields(
            [
                ("number", note.number),
                ("at", timestamp(max(0, note.at))),
                ("kind", note.kind),
                ("server", note.server),
                ("name", note.name),
                *([("term", note.term)] if note.term else []),
                *([("mark", note.mark)] if note.mark else []),
                *([("because", Sentence(note.because))] if note.because else []),
            ]
        )
        for note in notes
    ]
    header = [("server", backend.state.server_id), ("name", backend.state.name), ("now", timestamp(backend.now))]
    return block("HISTORY", rows, format_fields(header) + (" more" if more else ""))


def _moment(word: str) -> int:
    try:
        return parse_timestamp(word)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


async def list_files(session: Session, request: Request) -> Answer:
    limit = number(request.word(2, str(LIST_LIMIT)), "limit")
    if not 0 < limit <= LIST_LIMIT:
        raise LimitExceeded(f"one LIST shows 1 to {LIST_LIMIT} files; ask again with `after`")
    listing = await session.catalog.list(request.word(0), request.word(1), limit)
    header = f"revision={session.backend.state.revision} {stale_mark(listing.stale)}".rstrip()
    return block("FILES", [file_row(file) for file in listing.files], header + (" more" if listing.more else ""))


async def stat(session: Session, request: Request) -> Answer:
    found = await session.catalog.find(check_file_name(request.words[0]))
    return ok(f"{file_row(found.file)} {stale_mark(found.stale)}")


async def explain(session: Session, request: Request) -> Answer:
    name = check_file_name(request.words[0])
    start = number(request.word(1, "0"), "number of a chunk")
    limit = number(request.word(2, str(EXPLAINED_MAX)), "limit")
    if not 0 < limit <= EXPLAINED_MAX:
        raise LimitExceeded(f"one EXPLAIN shows 1 to {EXPLAINED_MAX} chunks; ask again from the next number")
    told = await session.catalog.explain(name, start, limit)
    rows = [f"{_part_row(part)} verified={','.join(map(_when, part.verified))}" for part in told.parts]
    rows += [
        "HOLDER "
        + format_fields(
            [
                ("id", share.server.id),
                ("name", share.server.name),
                ("state", share.server.state),
                ("held", share.held),
                ("only", share.only),
                ("bytes", share.bytes),
                ("verified", _when(share.verified)),
            ]
        )
        for share in shares(told.parts, session.backend.servers())
    ]
    return block("EXPLAIN", rows, _header(told))


async def check(session: Session, request: Request) -> Answer:
    name = check_file_name(request.words[0])
    start = number(request.word(1, "0"), "number of a chunk")
    limit = number(request.word(2, str(EXPLAINED_MAX)), "limit")
    if request.word(3) not in ("", "quick"):
        raise InvalidRequest("the fourth word can only be quick")
    if not 0 < limit <= EXPLAINED_MAX:
        raise LimitExceeded(f"one CHECK looks at 1 to {EXPLAINED_MAX} chunks; ask again from the next number")
    told = await session.catalog.check(name, start, limit, read=request.word(3) != "quick")
    rows = [f"{_part_row(part)} damaged={','.join(part.damaged)}" for part in told.parts]
    silent = session.backend.transfer.silent()
    rows += [
        "SILENT "
        + format_fields(
            [
                ("id", server.id),
                ("name", server.name),
                ("state", server.state),
                ("owns", "yes" if server.owns else "no"),
            ]
        )
        for server in session.backend.servers()
        if server.id in silent
    ]
    return block("CHECK", rows, _header(told))


def _header(told: Explanation) -> str:
    file = told.file
    header = format_fields(
        [
            ("name", file.name),
            ("size", file.size),
            ("chunksize", file.chunk_size),
            ("chunks", chunk_count(file.size, file.chunk_size)),
            ("wanted", told.wanted),
            ("revision", file.revision),
        ]
    )
    return f"{header} {stale_mark(told.stale)}".rstrip() + (" more" if told.more else "")


def _when(ms: int) -> str:
    return timestamp(ms) if ms else "-"


def _part_row(part: Part) -> str:
    where = [("digest", part.digest.hex()), ("copies", len(part.holders)), ("holders", ",".join(part.holders))]
    if part.number is None:
        return "MANIFEST " + format_fields(where)
    return "CHUNK " + format_fields([("number", part.number), ("length", part.length), *where])


async def remove(session: Session, request: Request) -> Answer:
    await session.catalog.remove(check_file_name(request.words[0]))
    return ok()


async def status(session: Session, request: Request) -> Answer:
    prefix = session.principal.prefix if session.principal is not None else ""
    pairs = [
        (name, value)
        for name, value in await session.backend.status()
        if name != LOST_FILE or value.partition(" ")[2].startswith(prefix)
    ]
    return block("STATUS", [field(quote(name), Sentence(value) if " " in value else value) for name, value in pairs])
