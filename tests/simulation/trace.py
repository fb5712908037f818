"""What happened, as lines that people can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkfarm.table.consensus import Consensus
from chunkfarm.table.raft_log import decode_configuration
from chunkfarm.table.records import Configuration, Entry, EntryKind, Message

if TYPE_CHECKING:
    from tests.simulation.core import Simulation


def configuration_text(configuration: Configuration) -> str:
    """Voters, and learners behind a plus sign."""
    text = " ".join(sorted(configuration.voters)) or "nobody"
    return f"{text} + {' '.join(sorted(configuration.learners))}" if configuration.learners else text


def entry_text(entry: Entry) -> str:
    """An entry as `index/term what`."""
    if entry.kind is EntryKind.CONFIGURATION:
        what = f"({configuration_text(decode_configuration(entry.data))})"
    else:
        what = entry.data.decode() if entry.kind is EntryKind.DATA else "-"
    return f"{entry.index}/{entry.term} {what}"


def message_text(message: Message) -> str:
    """A message on one line; fields that say nothing are left out."""
    words = [f"{message.sender}->{message.to} {message.kind.value} term={message.term}"]
    if message.reject:
        words.append("no")
    if message.withheld:
        words.append("withheld")
    if message.transfer:
        words.append("transfer")
    if message.log_index or message.log_term:
        words.append(f"at={message.log_index}/{message.log_term}")
    if message.reject and (message.hint_index or message.hint_term):
        words.append(f"hint={message.hint_index}/{message.hint_term}")
    if message.commit:
        words.append(f"commit={message.commit}")
    if message.context:
        words.append(f"round={message.context}")
    if message.snapshot is not None:
        words.append(f"snapshot={message.snapshot.index}/{message.snapshot.term}")
    if message.entries:
        words.append("[" + ", ".join(map(entry_text, message.entries)) + "]")
    return " ".join(words)


def state_text(core: Consensus) -> str:
    """How a server stands."""
    return f"{core.role} term={core.term} log={core.last_index}/{core.log.last_term} commit={core.commit}"


def _word(item: Any) -> str:
    return message_text(item) if isinstance(item, Message) else str(item)


def lines(simulation: Simulation) -> list[str]:
    """The whole trace of a simulation, and where it ended."""
    told = [f"seed {simulation.seed}: {simulation.options}"]
    told += [f"{time:>6} " + " ".join(map(_word, what)) for time, *what in simulation.trace]
    for server in simulation.servers.values():
        state = state_text(server.core) if server.core is not None else "down"
        told.append(f"{simulation.now:>6} {server.id}: {state} rows={server.rows.index}")
    return told
