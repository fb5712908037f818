"""docs/protocol.md says what the code says: a stranger writes a client, or a server, from it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from attrs import fields
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

import chunkfarm
from chunkfarm import catalog, errors, model
from chunkfarm.limits import Limits
from chunkfarm.links import commands as peer_commands
from chunkfarm.links.interface import DAMAGED, HAVE_DIGESTS_MAX, KEEP_DIGESTS_MAX, VERIFY_DIGESTS_MAX
from chunkfarm.links.rows import server_row
from chunkfarm.ports.client import commands as client_commands
from chunkfarm.ports.client import looking, moving
from chunkfarm.table import interface
from chunkfarm.table.duties import Report
from chunkfarm.trust.authority import SERVER_URI
from chunkfarm.trust.proof import EXPORTER_LABEL
from chunkfarm.wire import http1, lines

TEXT = (Path(chunkfarm.__file__).parents[1] / "docs" / "protocol.md").read_text()
LIMITS = Limits()
TYPES = {amp.Unicode: "text", amp.String: "bytes", amp.Integer: "number", amp.Boolean: "yes or no"}


def told(arguments: list[tuple[bytes, amp.Argument]]) -> str:
    """Arguments as the table of AMP commands has them."""
    return ", ".join(f"`{name.decode()}` {TYPES[type(kind)]}" for name, kind in arguments) or "nothing"


class ProtocolDocumentTests(SynchronousTestCase):
    def test_commands(self) -> None:
        """Every command of the client port is there as HELP writes it, with the role that it takes."""
        for command in client_commands.COMMANDS.values():
            written = f"`{command.name} {command.usage}".rstrip().replace("|", r"\|") + "`"
            rows = [line for line in TEXT.splitlines() if written in line]
            assert rows, written
            if command.access in ("write", "admin"):
                assert rows[0].endswith(f"| {command.access} |"), rows[0]

    def test_before_serving(self) -> None:
        """The commands that a server answers which waits for the others are named, and no others are answered."""
        named = {command.name for command in client_commands.COMMANDS.values() if command.when_resuming}
        found = re.search(r"and has the\s+table itself, answers ([A-Z, ]+ and [A-Z]+) too", TEXT)
        assert found is not None and set(re.findall("[A-Z]+", found[1])) == named
        named = {command.name for command in client_commands.COMMANDS.values() if command.when_waiting}
        found = re.search(r"Everything but ([A-Z, ]+ and [A-Z]+) is\s+answered `ERR waiting`", TEXT)
        assert found is not None and set(re.findall("[A-Z]+", found[1])) == named

    def test_codes(self) -> None:
        """Every code is there, with its HTTP status."""
        for code, kind in errors.CODES.items():
            assert f"| `{code}` | {kind.http_status} |" in TEXT, code

    def test_statuses(self) -> None:
        """Every status with which the file port refuses a request is told where that port is."""
        of_port = TEXT[TEXT.index("# The file port") : TEXT.index("# The peer port")]
        for status in http1.REASONS:
            if status >= 400:
                assert re.search(rf"\b{status}\b", of_port), status

    def test_peer_commands(self) -> None:
        """Every command of the peer port is there, with arguments, answer and errors, and no other."""
        rows = dict(re.findall(r"^\| `([A-Z][a-z]+[A-Za-z]*)` \| (.*) \|$", TEXT, re.MULTILINE))
        kinds = [
            kind
            for _, kind in inspect.getmembers(peer_commands, inspect.isclass)
            if issubclass(kind, amp.Command) and kind is not peer_commands.ConsensusOneWay
        ]
        assert sorted(rows) == sorted(kind.__name__ for kind in kinds)
        for kind in kinds:
            arguments, answer, wrong = rows[kind.__name__].split(" | ")
            assert (arguments, answer) == (told(kind.arguments), told(kind.response)), kind.__name__
            assert wrong.split() == [f"`{code.decode()}`" for code in kind.errors.values()], kind.__name__

    def test_records(self) -> None:
        """What travels as JSON is there with all of its fields."""
        for record, sentence in ((model.Server, "A row is a JSON object: `"), (Report, "I am alive. JSON: `")):
            start = TEXT.index(sentence) + len(sentence)
            named = TEXT[start : TEXT.index("`", start)].split()
            assert sorted(named) == sorted(attribute.name for attribute in fields(record))

    def test_rows(self) -> None:
        """A server's row shows the fields that are there, in their order."""
        row = server_row(model.Server(id="0" * 32, name="a", host="b", client=1, peer=2, files=3), "first")
        start = TEXT.index("SERVER id=<32")
        assert re.findall(r"([a-z]+)=", row) == re.findall(r"([a-z]+)=", TEXT[start : TEXT.index("```", start)])

    def test_numbers(self) -> None:
        """The limits are those that hold."""
        for number in (
            lines.LINE_BYTES_MAX,
            LIMITS.client_pending,
            LIMITS.client_payload,
            LIMITS.client_watch_backlog,
            int(LIMITS.client_idle),
            int(LIMITS.client_stranger_idle),
            int(LIMITS.client_stranger_time),
            LIMITS.client_payload_rate,
            LIMITS.client_connections,
            LIMITS.client_connections_address,
            looking.LIST_LIMIT,
            looking.NUMBER_DIGITS_MAX,
            moving.HAVE_MAX,
            moving.HOLDERS_SHOWN_MAX,
            catalog.MANIFEST_DIGESTS_MAX * model.DIGEST_LENGTH,
            model.CHUNK_SIZE_MIN,
            model.CHUNK_SIZE_MAX,
            model.NAME_BYTES_MAX,
            http1.HEAD_BYTES_MAX,
            HAVE_DIGESTS_MAX,
            VERIFY_DIGESTS_MAX,
            KEEP_DIGESTS_MAX,
            DAMAGED,
            LIMITS.peer_connections,
            LIMITS.peer_strangers,
            interface.KEY_BYTES_MAX,
            interface.VALUE_BYTES_MAX,
            interface.OPERATIONS_MAX,
            interface.TRANSACTION_BYTES_MAX,
        ):
            assert re.search(rf"(?<![\d,]){number:,}(?![\d,]*\d)", TEXT), f"{number:,}"

    def test_names(self) -> None:
        """Names that both sides must spell the same."""
        for name in (
            looking.PROTOCOL,
            SERVER_URI,
            EXPORTER_LABEL.decode(),
            f"version {peer_commands.PROTOCOL_VERSION}",
        ):
            assert name in TEXT, name
