"""The table of commands, and who may give which when."""

from __future__ import annotations

from collections.abc import Callable

from chunkfarm import audit
from chunkfarm.errors import (
    AuthenticationFailed,
    Denied,
    InvalidRequest,
    LimitExceeded,
    UnknownCommand,
    Waiting,
)
from chunkfarm.model import CHUNK_SIZE_MAX, Principal
from chunkfarm.ports.client import (
    authority,
    emptying,
    exporting,
    forgetting,
    keys,
    looking,
    moving,
    taking_over,
    watching,
)
from chunkfarm.ports.client.session import (
    ADMIN,
    ANYONE,
    PRIVATE,
    WRITE,
    Answer,
    Command,
    Request,
    Session,
    block,
    ok,
    refusal,
)
from chunkfarm.trust.keys import secret_digest
from chunkfarm.wire.lines import format_fields, quote

AUTH_FAILURES_MAX = 3
"""Wrong secrets a link may show: people mistype, programs do not."""
WORDS_MAX = 1000
"""More words than any command takes."""


async def help_(session: Session, request: Request) -> Answer:
    if request.words:
        command = COMMANDS.get(request.words[0].upper())
        if command is None:
            raise UnknownCommand(f"there is no command {request.words[0][:40]!r}")
        return block("HELP", [f"{command.name} {command.usage}".rstrip(), command.summary])
    return block("HELP", [f"{command.name} {command.usage}".rstrip() for command in COMMANDS.values()])


async def quit_(session: Session, request: Request) -> Answer:
    return Answer(lines=("OK",), then=session.link.end)


async def starttls(session: Session, request: Request) -> Answer:
    if session.encrypted:
        raise InvalidRequest("this link is encrypted already")
    if not session.link.can_start_tls:
        raise Waiting("this server has no certificate yet")
    return Answer(lines=("OK",), then=session.link.start_tls)


async def auth(session: Session, request: Request) -> Answer:
    key_id, secret = request.words
    # It was for whoever asked before; if their key is taken away, nobody would notice.
    session.end_watch()
    session.keys_revision = session.backend.keys_revision
    try:
        session.principal = await session.backend.authenticate(key_id, secret)
    except AuthenticationFailed:
        session.principal, session.proof = None, b""
        session.failures += 1
        await session.link.pause(session.backend.failed_attempt(session.address))
        last = session.failures >= AUTH_FAILURES_MAX
        error = AuthenticationFailed("the key is unknown or the secret is wrong")
        return refusal(error, session.link.end if last else None)
    session.proof = secret_digest(secret)
    prefix = session.principal.prefix
    return ok(format_fields([("role", session.principal.role), *([("prefix", prefix)] if prefix else [])]))


_ALL = (
    Command(
        name="HELP",
        usage="[command]",
        summary="The commands, or what one of them does.",
        run=help_,
        access=ANYONE,
        most=1,
        when_waiting=True,
    ),
    Command(
        name="HELLO",
        usage="",
        summary="Which farm and server this is, what it does, and what it waits for.",
        run=looking.hello,
        access=ANYONE,
        when_waiting=True,
    ),
    Command(
        name="PING",
        usage="",
        summary="Answers OK.",
        run=looking.ping,
        access=PRIVATE,
        overlaps=True,
        when_waiting=True,
    ),
    Command(
        name="QUIT",
        usage="",
        summary="Ends the link once everything before it is answered.",
        run=quit_,
        access=ANYONE,
        changes_session=True,
        when_waiting=True,
    ),
    Command(
        name="STARTTLS",
        usage="",
        summary="Encrypts the link: send nothing more before the OK.",
        run=starttls,
        access=ANYONE,
        changes_session=True,
        when_waiting=True,
    ),
    Command(
        name="AUTH",
        usage="<key id> <secret>",
        summary="Says who asks.",
        run=auth,
        access=PRIVATE,
        least=2,
        most=2,
        changes_session=True,
        when_resuming=True,
    ),
    Command(
        name="SERVERS",
        usage="",
        summary="The whole server table, oldest first.",
        run=looking.servers,
        by_certificate=True,
    ),
    Command(
        name="SERVER", usage="<id|name>", summary="One row of the server table.", run=looking.server, least=1, most=1
    ),
    Command(
        name="SET",
        usage="<id|name|farm> <field>=<value> ...",
        summary="Changes fields of a server's row, or options of the farm.",
        run=looking.set_fields,
        access=ADMIN,
        least=2,
        most=WORDS_MAX,
        by_certificate=True,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="TABLE",
        usage="<length>",
        summary="Sets the editable fields of the whole server table, whose text as of SERVERS follows.",
        run=looking.table,
        access=ADMIN,
        least=1,
        most=1,
        payload_at=0,
        payload_max=looking.TABLE_BYTES_MAX,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="WATCH",
        usage="[prefix] [from]",
        summary="Changes under servers/, farm/ or files/ as EVENT lines, until UNWATCH.",
        run=watching.watch,
        most=2,
        by_certificate=True,
    ),
    Command(name="UNWATCH", usage="", summary="Ends the watch.", run=watching.unwatch, by_certificate=True),
    Command(name="WHO", usage="", summary="The line of succession, and why.", run=looking.who),
    Command(
        name="HISTORY",
        usage="[since] [after] [limit]",
        summary="What this server saw of who joined, led, left and came back; - stands for nothing.",
        run=looking.history,
        most=3,
        when_resuming=True,
    ),
    Command(
        name="LIST",
        usage="[prefix] [after] [limit]",
        summary="Files in name order; - stands for nothing.",
        run=looking.list_files,
        most=3,
    ),
    Command(name="STAT", usage="<name>", summary="What is known of a file.", run=looking.stat, least=1, most=1),
    Command(
        name="EXPLAIN",
        usage="<name> [from] [limit]",
        summary="Which servers hold each chunk of a file, and what is lost with which of them.",
        run=looking.explain,
        least=1,
        most=3,
    ),
    Command(
        name="CHECK",
        usage="<name> [from] [limit] [quick]",
        summary="Has the holders of each chunk of a file read and compare it; what is wrong is mended.",
        run=looking.check,
        least=1,
        most=4,
    ),
    Command(
        name="REMOVE",
        usage="<name>",
        summary="Removes a file.",
        run=looking.remove,
        access=WRITE,
        least=1,
        most=1,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="HAVE",
        usage="<digest> ...",
        summary="Which of these chunks the farm holds.",
        run=moving.have,
        least=1,
        most=moving.HAVE_MAX,
        overlaps=True,
    ),
    Command(
        name="PUT",
        usage="<digest> <length>",
        summary="Stores the chunk whose bytes follow.",
        run=moving.put,
        access=WRITE,
        least=2,
        most=2,
        payload_at=1,
        payload_max=CHUNK_SIZE_MAX,
        overlaps=True,
        once_begun=True,
    ),
    Command(
        name="GET",
        usage="<digest> [offset] [length]",
        summary="The bytes of a chunk.",
        run=moving.get,
        least=1,
        most=3,
    ),
    Command(
        name="COMMIT",
        usage="<name> <size> <chunk size> <length>",
        summary="Makes a file of chunks, whose raw digests follow.",
        run=moving.commit,
        access=WRITE,
        least=4,
        most=4,
        payload_at=3,
        payload_max=moving.MANIFEST_BYTES_MAX,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="FETCH",
        usage="<name> [offset] [length]",
        summary="The bytes of a file.",
        run=moving.fetch,
        least=1,
        most=3,
    ),
    Command(
        name="STATUS",
        usage="",
        summary="Jobs, copies of the table, what can be lost now.",
        run=looking.status,
        when_resuming=True,
    ),
    Command(
        name="TAKEOVER",
        usage="[farm name]",
        summary="Goes on with this server alone, the majority being lost for good; without a name it only looks.",
        run=taking_over.takeover,
        access=ADMIN,
        most=1,
        once_begun=True,
        audited=True,
        when_resuming=True,
    ),
    Command(
        name="FORGET",
        usage="<id|name> [farm name]",
        summary="Takes a server out for good that is down; without the farm's name it only says what would be lost.",
        run=forgetting.forget,
        access=ADMIN,
        least=1,
        most=2,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="CA",
        usage="",
        summary="The certificate of the farm's CA, and how far the farm is with changing it.",
        run=authority.show,
        by_certificate=True,
    ),
    Command(
        name="ROTATE",
        usage="",
        summary="Has the farm change its CA, its seal key and its join key, step by step; CA tells how far that is.",
        run=authority.rotate,
        access=ADMIN,
        by_master=True,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="DRAIN",
        usage="[id|name] [anyway|off]",
        summary="Empties a server, so that it can be switched off; without a word it shows how far that is.",
        run=emptying.drain,
        access=ADMIN,
        most=2,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="EXPORT",
        usage="[number]",
        summary="Stores an export of the table as chunks; with the number of one, says how it is.",
        run=exporting.export,
        access=ADMIN,
        most=1,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="INVITE",
        usage="[seconds]",
        summary="Makes a code with which one server may join, told once.",
        run=keys.invite,
        access=ADMIN,
        most=1,
        once_begun=True,
        audited=True,
    ),
    Command(
        name="KEYS",
        usage="",
        summary="The keys of users, without their secrets.",
        run=keys.list_keys,
        access=ADMIN,
        by_master=True,
    ),
    Command(
        name="KEY",
        usage="add <read|write|admin> [prefix] [label] | disable <id> | enable <id> | remove <id>",
        summary="Makes a key, whose secret is told once, or says which keys are good.",
        run=keys.change_key,
        access=ADMIN,
        least=2,
        most=4,
        by_master=True,
        once_begun=True,
        audited=True,
    ),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}


def find(word: str) -> Command:
    """The command of that name, in capitals or not; raises `UnknownCommand`."""
    command = COMMANDS.get(word.upper())
    if command is None:
        raise UnknownCommand(f"there is no command {word[:40]!r}; HELP lists them")
    return command


def check_access(session: Session, command: Command) -> None:
    """Raise what stands between this session and this command: `Denied`, `Waiting` or `AuthenticationFailed`."""
    if command.access != ANYONE and not (session.encrypted or session.local):
        raise Denied(
            "an unencrypted link from another machine may say HELLO, HELP, QUIT and STARTTLS only: say STARTTLS"
        )
    if not (command.when_waiting or session.ready or (command.when_resuming and session.resuming)):
        raise Waiting(f"this server is {session.backend.state.phase}; HELLO says what it waits for")
    if command.access in (ANYONE, PRIVATE):
        return
    principal = session.identify()
    if principal is None:
        raise AuthenticationFailed("say AUTH <key id> <secret> first")
    if principal.role == "server" and (refused := session.backend.barred(principal.id)):
        raise Denied(refused)
    if not _may(session, principal, command):
        raise Denied(f"{command.name} takes a key with the role {command.access}; this one has {principal.role}")


def _may(session: Session, principal: Principal, command: Command) -> bool:
    if principal.role == "server":
        return command.by_certificate or (command.by_master and session.backend.is_master(principal.id))
    return principal.may(command.access)


_LOOKS: dict[str, Callable[[tuple[str, ...]], bool]] = {
    "DRAIN": lambda words: not words,
    "EXPORT": bool,
    "FORGET": lambda words: len(words) < 2,
    "TAKEOVER": lambda words: not words,
}
"""Commands that with such words only look."""


def note_change(session: Session, command: Command, request: Request) -> None:
    """Write down who changed what. No command but AUTH has anything secret among its words.

    They stand in the log as on a line: decoded they could begin another one, or write to a terminal.
    """
    if not command.audited or (command.name in _LOOKS and _LOOKS[command.name](request.words)):
        return
    note = audit.admin if command.access == ADMIN else audit.files
    note(session.principal, session.address, " ".join((command.name, *map(quote, request.words))))


def check_words(command: Command, given: list[str]) -> None:
    """Raise `InvalidRequest` unless there are as many words as the command takes."""
    if not command.least <= len(given) <= command.most:
        raise InvalidRequest(f"usage: {command.name} {command.usage}".rstrip())


def payload_length(command: Command, given: list[str]) -> int:
    """The length that a command with a payload announces.

    Raises an error after which nobody knows where the next command begins, so that the link must end.
    """
    assert command.payload_at is not None
    check_words(command, given)
    length = looking.number(given[command.payload_at], "length")
    if length > command.payload_max:
        raise LimitExceeded(f"{command.name} takes at most {command.payload_max} bytes")
    return length
