"""What no server that keeps the rules would say: messages of the core looked at before the core takes them, pure.

The core trusts its members, as Raft does: a server of this farm that lies about terms and votes can stop the
farm, and no check of one message helps against that. But whatever is sent, by an error, by another version or
on purpose, must not end the process that receives it, nor leave on its disk what it could not start from again.
So the core's assertions speak of the core alone, and everything that they take for granted of a message is
asked here.
"""

from __future__ import annotations

from chunkfarm.table.leadership import ENTRY_BYTES_MAX
from chunkfarm.table.raft_log import decode_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message, MessageKind

NUMBER_MAX = 2**62
"""Terms and indexes end here: what counts on from the highest one still fits the 63 bits of disk and wire."""
TERM_STEP_MAX = 2**32
"""By how much a term may be ahead of this server's. An election a second takes 136 years to get so far, and two hundred
takeovers by hand, each of which leaps, come to less; but whoever would use terms up in such steps, each of which this
server's disk must write, is at it for weeks."""
MEMBERS_MAX = 64
"""Voters and learners of one configuration: three and two are the rule, and old ones leave one by one. The
configuration stands in the head of each page of a snapshot."""


def objection(message: Message, term: int) -> str:
    """Why a server in `term` must not take this message; empty if it may. Cheap for what carries no entries."""
    if not message.sender:
        return "it has no sender"
    if not 0 <= message.term <= min(NUMBER_MAX, term + TERM_STEP_MAX):
        return f"term {message.term} is out of reach"
    if max(message.log_index, message.commit, message.hint_index) > NUMBER_MAX:
        return "an index is out of reach"
    if message.entries:
        return _entries_objection(message)
    if message.kind is MessageKind.SNAPSHOT:
        return _snapshot_objection(message)
    return ""


def _entries_objection(message: Message) -> str:
    """Entries follow `log_index` without a gap; their terms never go down, and end at the sender's at most."""
    if message.kind is not MessageKind.APPEND:
        return "only an append carries entries"
    before, term = message.log_index, message.log_term
    for entry in message.entries:
        if entry.index != before + 1:
            return f"entry {entry.index} follows {before}"
        if not term <= entry.term <= message.term:
            return f"an entry of term {entry.term} follows one of term {term} in an append of term {message.term}"
        why = _entry_objection(entry)
        if why:
            return why
        before, term = entry.index, entry.term
    return ""


def _entry_objection(entry: Entry) -> str:
    if entry.index > NUMBER_MAX:
        return "an index is out of reach"
    if len(entry.data) > ENTRY_BYTES_MAX:
        return f"an entry of {len(entry.data)} bytes can be sent to nobody"
    if entry.kind is not EntryKind.CONFIGURATION:
        return ""
    try:
        return _configuration_objection(decode_configuration(entry.data))
    except (ValueError, RecursionError):
        return "an entry is no configuration"


def _configuration_objection(configuration: Configuration) -> str:
    if not configuration.voters or configuration.voters & configuration.learners:
        return "somebody must vote, and nobody votes and learns at once"
    if len(configuration.members) > MEMBERS_MAX or "" in configuration.members:
        return "a configuration names too many servers, or none"
    return ""


def _snapshot_objection(message: Message) -> str:
    snapshot = message.snapshot
    if snapshot is None:
        return "there is no snapshot in it"
    if not 0 < snapshot.index <= NUMBER_MAX:
        return "an index is out of reach"
    if not 0 < snapshot.term <= message.term:
        return f"a snapshot of term {snapshot.term} comes in term {message.term}"
    return _configuration_objection(snapshot.configuration)
