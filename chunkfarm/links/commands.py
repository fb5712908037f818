"""The AMP commands of the peer port, and the errors that each may answer with.

Version 1. Values end at 65,535 bytes, so whatever may grow is paged. Only `Probe` and `Join` are answered
to a peer without a certificate of this farm. A responder that raises an error which is not declared here has
a fault: AMP logs it and closes the link. Every box may say besides, as `line`, which line of the farm's history
its sender belongs to (`links.boxes`).
"""

from __future__ import annotations

from typing import ClassVar

from twisted.protocols import amp

PROTOCOL_VERSION = 1
"""Spoken between servers; a peer one version older is still understood, and spoken to in its own.

It grows only with what an older server would take wrongly. What it would pass over does not need that: a command, an
argument or a value that may be left out, a field of JSON. So what is new must be such that the other side may know
nothing of it: arguments and values are `optional`, and a field that is missing means what was so before there was one.
"""
VERSION_DIGITS_SHOWN = 12
"""A stranger can name a version of thousands of digits, which no log is for."""
UNDERSTOOD = (PROTOCOL_VERSION, PROTOCOL_VERSION - 1)


def version_problem(version: int) -> str:
    """Why a peer of that version cannot be spoken with, or an empty string."""
    if version in UNDERSTOOD:
        return ""
    shown = str(version)[:VERSION_DIGITS_SHOWN]
    return f"it speaks version {shown} of the peer protocol, not version {PROTOCOL_VERSION} or the one before"


def version_for(version: int) -> int:
    """The version to speak with a peer of that one."""
    return PROTOCOL_VERSION - 1 if version == PROTOCOL_VERSION - 1 else PROTOCOL_VERSION


class NotFirst(Exception):
    """Another server leads. The text is JSON: `{"id", "host", "peer"}` of that server, or `{}` if unknown."""


class JoinRefused(Exception):
    """The joiner is turned away; the text is one sentence that says why."""


class NotNow(Exception):
    """This server cannot answer now (starting, no leader, no majority); the text says what it waits for."""


class BadRequest(Exception):
    """The request is malformed or not allowed to this peer."""


class Conflict(Exception):
    """The table has changed since it was read; the text says what."""


_REFUSALS = {NotNow: b"NOT_NOW", BadRequest: b"BAD_REQUEST"}


class Probe(amp.Command):
    """Who are you, what are you doing? `stamp` and `server` are the prober's own.

    What may be left out: the prober's `version` (then 1), its `proof` as dialer (see `trust.proof`) if it has a
    join key and is starting, and `host` and `peer`, where it listens. `answer` is JSON: `version, server, state, farm,
    name, stamp, revision, first, keyed, proof` (`first` as in NotFirst). A server that is starting says with `keyed`
    whether it has a join key, and to a dialer that proved the same key it shows its `proof` as listener, in hex.

    A server of the farm is told besides what the other one's journal holds: `journal, commits, lines, settled, stopped,
    term_at` (see docs/protocol.md), the last for the `index` that it asked about.
    """

    arguments = [
        (b"server", amp.Unicode()),
        (b"stamp", amp.Integer()),
        (b"farm", amp.Unicode()),
        (b"version", amp.Integer(optional=True)),
        (b"proof", amp.String(optional=True)),
        (b"host", amp.Unicode(optional=True)),
        (b"peer", amp.Integer(optional=True)),
        (b"index", amp.Integer(optional=True)),
    ]
    response = [(b"answer", amp.Unicode())]
    errors = {BadRequest: b"BAD_REQUEST"}


class Join(amp.Command):
    """Become a server of the farm.

    `proof` is the joiner's (see `trust.proof`), `request` a PEM signing request made on the joiner, `row`
    JSON of a `model.Server`. The answer carries the member's proof, which the joiner checks before it
    accepts anything else, then the certificate, the CA certificate and, for a server that may be a master,
    the key that seals secret rows. With `invite`, the id of a code, both prove knowledge of its secret and not of
    the join key.
    """

    arguments = [
        (b"version", amp.Integer()),
        (b"farm", amp.Unicode()),
        (b"proof", amp.String()),
        (b"request", amp.String()),
        (b"row", amp.Unicode()),
        (b"invite", amp.Unicode(optional=True)),
    ]
    response = [
        (b"proof", amp.String()),
        (b"farm", amp.Unicode()),
        (b"certificate", amp.String()),
        (b"ca", amp.String()),
        (b"seal", amp.String()),
        (b"row", amp.Unicode()),
    ]
    errors = {NotFirst: b"NOT_FIRST", JoinRefused: b"JOIN_REFUSED", **_REFUSALS}


class Renew(amp.Command):
    """A fresh certificate for a server of the farm, for the key it shows in this link.

    Behind the certificate may stand what introduces its CA to those who know one before it.
    """

    arguments = [(b"request", amp.String())]
    response = [(b"certificate", amp.String()), (b"ca", amp.String())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class Report(amp.Command):
    """I am alive. `report` is JSON.

    Its fields: `incarnation, free, used, full, revision, note, leaving, table_full, short, drain, ca, ready, risk`.

    The answer is JSON: `term, first, voters, learners, revision, known, short, drains, risk` (`known` says whether the
    sender's row carries this incarnation; if not, it must give its row anew with PutServer).
    """

    arguments = [(b"report", amp.Unicode())]
    response = [(b"answer", amp.Unicode())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class GetTable(amp.Command):
    """One page of rows (`servers/` and `farm/` only), encoded as `table.codec` says."""

    arguments = [(b"request", amp.String())]
    response = [(b"page", amp.String())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class PutTable(amp.Command):
    """The editable fields of the whole server table, compared and put at once: `block` as SERVERS shows it.

    The answer is how many rows were changed.
    """

    arguments = [(b"block", amp.String())]
    response = [(b"changed", amp.Integer())]
    errors = {Conflict: b"CONFLICT", **_REFUSALS}


class GetServer(amp.Command):
    """One row of the server table, as JSON."""

    arguments = [(b"server", amp.Unicode())]
    response = [(b"row", amp.Unicode())]
    errors = _REFUSALS


class PutServer(amp.Command):
    """A server gives its own row anew: after a start, or when its state changes."""

    arguments = [(b"row", amp.Unicode())]
    response = [(b"row", amp.Unicode())]
    errors = {NotFirst: b"NOT_FIRST", JoinRefused: b"JOIN_REFUSED", **_REFUSALS}


class Transact(amp.Command):
    """A transaction, sent on to the leader; request and answer as `table.codec` says."""

    arguments = [(b"request", amp.String())]
    response = [(b"answer", amp.String())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class Read(amp.Command):
    """A linearizable read, sent on to the leader; request and answer as `table.codec` says.

    With `stale` it goes to any server that holds rows, and is answered from its last state; one of before does not know
    that word, and answers as it does without.
    """

    arguments = [(b"request", amp.String()), (b"stale", amp.Boolean(optional=True))]
    response = [(b"page", amp.String())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class Referenced(amp.Command):
    """How many files use each of these chunks? `digests` are raw digests one after the other, 1,000 at most.

    Answered by every server that holds the table's rows, as the files are at some moment after the question. `counts`
    has a number of four bytes for each, big-endian, in which more than 1,000 files may count as 1,000.
    """

    arguments = [(b"digests", amp.String())]
    response = [(b"counts", amp.String())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class AtRisk(amp.Command):
    """Which chunks, of those that you answer for, are on these servers alone (`holders`, one id or two with a comma)?

    `keys` are the first eight bytes of each digest, in order, one after the other, from `start` on (eight bytes).
    `next` is where to go on, empty if that was all.
    """

    arguments = [(b"holders", amp.Unicode()), (b"start", amp.String())]
    response = [(b"keys", amp.String()), (b"next", amp.String())]
    errors = _REFUSALS


class LostFiles(amp.Command):
    """How many files can be lost now? Answered by the first alone.

    `answer` is JSON: `sets, one, one_at_least, two, two_at_least`; a set is `holders, files, at_least, names`.
    """

    arguments: ClassVar[list[tuple[bytes, amp.Argument]]] = []
    response = [(b"answer", amp.Unicode())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class Consensus(amp.Command):
    """One encoded message of the consensus core, or one page of a snapshot; the latter waits for its answer."""

    arguments = [(b"payload", amp.String())]
    response: ClassVar[list[tuple[bytes, amp.Argument]]] = []
    errors = _REFUSALS


class ConsensusOneWay(Consensus):
    """The same without an answer: the core repeats what is lost."""

    commandName = b"Consensus"
    requiresAnswer = False


class Forget(amp.Command):
    """Take a server out for good, as FORGET does that an admin said to the asker. Answered by the first alone."""

    arguments = [(b"server", amp.Unicode())]
    response: ClassVar[list[tuple[bytes, amp.Argument]]] = []
    errors = {NotFirst: b"NOT_FIRST", Conflict: b"CONFLICT", **_REFUSALS}


class JoinKey(amp.Command):
    """The farm's join key, for a server whose `farm.join` has an earlier one. Answered by the first alone."""

    arguments: ClassVar[list[tuple[bytes, amp.Argument]]] = []
    response = [(b"key", amp.String())]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}


class SealKey(amp.Command):
    """The key that seals secret rows, for a server that may be a master and holds an earlier one.

    `digest` says which. Answered by every server that holds it, if the table names it: the farm seals with it, or will.
    """

    arguments = [(b"digest", amp.Unicode())]
    response = [(b"key", amp.String())]
    errors = _REFUSALS


class Authenticate(amp.Command):
    """Is this a good key? `proof` is SHA-256 of the secret. Asked by servers that hold no keys.

    Answers the role, and what the names of its files begin with if it is not good for all.
    """

    arguments = [(b"key", amp.Unicode()), (b"proof", amp.String())]
    response = [(b"role", amp.Unicode()), (b"prefix", amp.Unicode(optional=True))]
    errors = {NotFirst: b"NOT_FIRST", **_REFUSALS}
