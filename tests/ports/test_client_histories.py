"""The client port against a model: whatever is said, in whatever pieces, is answered as a dict of files would."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chunkfarm.model import digest_of, etag_of
from tests.ports.client_link import ClientLink
from tests.ports.fakes import OTHER_ID, SERVER_ID

HOLDERS = f"copies=2 holders={SERVER_ID},{OTHER_ID}"
PIECE = 4096
CONTENTS = (b"", b"x", b"QUIT\r\n", bytes(range(256)) * 3, b"\r\n" * 2000, b"a" * PIECE, b"b" * (PIECE + 1))
NAMES = ("lab/a", "lab/b c", "home/\u00e9", "home/x%y")
BAD = (
    (b"", ()),
    (b"   ", ()),
    (b"FROB x", ("ERR unknown ",)),
    (b"STAT", ("ERR syntax ",)),
    (b"STAT nobucket", ("ERR syntax ",)),
    (b"STAT lab/%zz", ("ERR syntax ",)),
    (b"\xff\xfe", ("ERR syntax ",)),
    (b"a\x00b", ("ERR syntax ",)),
    (b"LIST - - 0", ("ERR limit ",)),
    (b"GET 00", ("ERR syntax ",)),
    (b"UNWATCH x", ("ERR syntax ",)),
)
"""Lines that change nothing, with the beginnings of their answers."""


def quoted(name: str) -> str:
    """A name as a word of a line."""
    return name.replace("%", "%25").replace(" ", "%20")


class ClientHistories(RuleBasedStateMachine):
    """One client. What it says is kept back and arrives in pieces that Hypothesis chooses; answers are read at last."""

    def __init__(self) -> None:
        super().__init__()
        self.link = ClientLink()
        self.sent = bytearray()
        """Said, and not delivered yet."""
        self.expected: list[str] = []
        """Beginnings of the answers to come, or the whole of them where they end in CRLF."""
        self.heard = ""
        self.role = ""
        self.failures = 0
        self.chunks: set[bytes] = set()
        self.files: dict[str, bytes] = {}
        self.watching = False
        self.over = False

    def say(self, data: bytes, *answers: str) -> None:
        self.sent += data
        self.expected += answers

    def line(self, text: str, *answers: str) -> None:
        self.say(text.encode() + b"\r\n", *answers)

    def end(self) -> None:
        """The link ends with this answer, and what is said behind it is nothing any more."""
        self.over = True
        self.line("PING")

    def may(self, role: str) -> str:
        """Why a command for that role is refused, as the beginning of an answer; empty if it is not."""
        if not self.role:
            return "ERR auth "
        if ("read", "write", "admin").index(self.role) < ("read", "write", "admin").index(role):
            return "ERR denied "
        return ""

    # What may be said.

    @precondition(lambda self: not self.over)
    @rule(key=st.sampled_from(["reader", "writer", "admin"]))
    def auth(self, key: str) -> None:
        self.role = {"reader": "read", "writer": "write", "admin": "admin"}[key]
        self.watching = False
        self.line(f"AUTH {key} secret", f"OK role={self.role}\r\n")

    @precondition(lambda self: not self.over and self.failures < 2)
    @rule()
    def wrong_key(self) -> None:
        self.failures += 1
        self.role = ""
        self.watching = False
        self.line("AUTH admin guess", "ERR auth ")

    @precondition(lambda self: not self.over)
    @rule(bad=st.sampled_from(BAD), ending=st.sampled_from([b"\n", b"\r\n"]))
    def bad_line(self, bad: tuple[bytes, tuple[str, ...]], ending: bytes) -> None:
        line, answers = bad
        if answers and (line.startswith((b"STAT lab", b"STAT nobucket", b"LIST", b"GET"))) and not self.role:
            answers = ("ERR auth ",)
        self.say(line + ending, *answers)

    @precondition(lambda self: not self.over)
    @rule(content=st.sampled_from(CONTENTS), wrong=st.booleans())
    def put(self, content: bytes, wrong: bool) -> None:
        content = content[:PIECE]
        digest = digest_of(content + b"!" * wrong)
        refused = self.may("write") or ("ERR syntax " if not content else "ERR mismatch " if wrong else "")
        self.say(
            b"PUT %b %d\r\n%b" % (digest.hex().encode(), len(content), content),
            refused or f"OK {digest.hex()} {HOLDERS}\r\n",
        )
        if not refused:
            self.chunks.add(content)

    @precondition(lambda self: not self.over)
    @rule(contents=st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=4))
    def have(self, contents: list[bytes]) -> None:
        digests = [digest_of(content) for content in contents]
        rows = [
            f"CHUNK digest={digest.hex()} " + (HOLDERS if content in self.chunks else "copies=0 holders=") + "\r\n"
            for digest, content in zip(digests, contents, strict=True)
        ]
        text = "".join([f"HAVE {len(rows)}\r\n", *rows, "END\r\n"])
        self.line("HAVE " + " ".join(digest.hex() for digest in digests), self.may("read") or text)

    @precondition(lambda self: not self.over)
    @rule(name=st.sampled_from(NAMES), content=st.sampled_from(CONTENTS), off=st.sampled_from([0, 0, 0, 1]))
    def commit(self, name: str, content: bytes, off: int) -> None:
        pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
        digests = [digest_of(piece) for piece in pieces]
        refused = self.may("write")
        if not refused and -(-(len(content) + off * PIECE) // PIECE) != len(pieces):
            refused = "ERR mismatch "
        if not refused and not all(piece in self.chunks for piece in pieces):
            refused = "ERR missing "
        raw = b"".join(digests)
        head = f"COMMIT {quoted(name)} {len(content) + off * PIECE} {PIECE} {len(raw)}\r\n".encode()
        self.say(head + raw, refused or f"OK name={quoted(name)} size={len(content)} chunks={len(pieces)} copies=2 ")
        if not refused:
            self.files[name] = content

    @precondition(lambda self: not self.over)
    @rule(content=st.sampled_from(CONTENTS), offset=st.integers(0, 5), length=st.integers(0, 5))
    def get(self, content: bytes, offset: int, length: int) -> None:
        there = content in self.chunks
        if there and offset + length > len(content):
            return
        part = content[offset : offset + length].decode("latin-1")
        answer = f"DATA {length}\r\n{part}" if there else "ERR notfound "
        self.line(f"GET {digest_of(content).hex()} {offset} {length}", self.may("read") or answer)

    @precondition(lambda self: not self.over)
    @rule(name=st.sampled_from(NAMES), offset=st.sampled_from([0, 1, 5000]), whole=st.booleans())
    def fetch(self, name: str, offset: int, whole: bool) -> None:
        content = self.files.get(name)
        if content is None:
            answer = "ERR notfound "
        elif offset > len(content) or (not whole and offset + 3 > len(content)):
            answer = "ERR syntax "
        else:
            part = content[offset:] if whole else content[offset : offset + 3]
            answer = f"DATA {len(part)}\r\n{part.decode('latin-1')}"
        self.line(f"FETCH {quoted(name)} {offset}" + ("" if whole else " 3"), self.may("read") or answer)

    @precondition(lambda self: not self.over)
    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        refused = self.may("write") or ("" if name in self.files else "ERR notfound ")
        self.line(f"REMOVE {quoted(name)}", refused or "OK\r\n")
        if not refused:
            del self.files[name]

    @precondition(lambda self: not self.over)
    @rule(name=st.sampled_from(NAMES))
    def stat(self, name: str) -> None:
        content = self.files.get(name)
        if content is None:
            answer = "ERR notfound "
        else:
            digests = [digest_of(content[start : start + PIECE]) for start in range(0, len(content), PIECE)]
            etag = etag_of(len(content), PIECE, digests)
            answer = f"OK FILE name={quoted(name)} size={len(content)} modified=2026-11-22T10:00:00.123Z etag={etag} "
        self.line(f"STAT {quoted(name)}", self.may("read") or answer)

    @precondition(lambda self: not self.over)
    @rule(prefix=st.sampled_from(["-", "lab/", "home/", "none/"]))
    def list(self, prefix: str) -> None:
        found = [name for name in self.files if prefix == "-" or name.startswith(prefix)]
        answer = f"FILES {len(found)} revision=7\r\n" + "".join(
            f"FILE name={quoted(name)} size={len(self.files[name])} \0\r\n" for name in sorted(found, key=str.encode)
        )
        self.line(f"LIST {prefix}", self.may("read") or answer + "END\r\n")

    @precondition(lambda self: not self.over)
    @rule()
    def watch(self) -> None:
        refused = self.may("read") or ("ERR syntax " if self.watching else "")
        self.line("WATCH farm/ 0", refused or "OK revision=0\r\n")
        self.watching = self.watching or not refused

    @precondition(lambda self: not self.over)
    @rule()
    def unwatch(self) -> None:
        refused = self.may("read")
        self.line("UNWATCH", refused or "OK\r\n")
        self.watching = self.watching and bool(refused)

    @precondition(lambda self: not self.over)
    @rule(zone=st.sampled_from(["a", "rack%201"]))
    def set_zone(self, zone: str) -> None:
        self.line(
            f"SET beta zone={zone}", self.may("admin") or f"OK SERVER id={OTHER_ID} name=beta \0 zone={zone} \0\r\n"
        )

    @precondition(lambda self: not self.over)
    @rule(word=st.sampled_from(["PING", "ping"]))
    def ping(self, word: str) -> None:
        self.line(word, "OK\r\n")

    @precondition(lambda self: not self.over)
    @rule()
    def quit(self) -> None:
        self.line("QUIT", "OK\r\n")
        self.end()

    @precondition(lambda self: not self.over)
    @rule(line=st.sampled_from(["PUT x", "PUT x -1", "COMMIT lab/a 1 4096 32x", f"PUT {'0' * 64} 99999999999"]))
    def payload_of_unknown_length(self, line: str) -> None:
        """Where the next command begins is not known: the link ends."""
        self.line(line, "ERR limit " if line.endswith("9") else "ERR syntax ")
        self.end()

    # What the network does.

    @rule(size=st.one_of(st.integers(1, 40), st.integers(1, 4000)))
    def deliver(self, size: int) -> None:
        """Some of what was said arrives, cut anywhere."""
        self.some(min(size, len(self.sent)))

    def some(self, size: int) -> None:
        if not self.link.closed:
            self.heard += self.link.send(bytes(self.sent[:size])).encode("utf-8", "surrogateescape").decode("latin-1")
            self.link.clock.advance(0)
            self.heard += self.link.heard().encode("utf-8", "surrogateescape").decode("latin-1")
        del self.sent[:size]

    @invariant()
    def answered_so_far(self) -> None:
        """Whatever has been heard by now is what was expected, in that order."""
        assert "ERR internal" not in self.heard

    def teardown(self) -> None:
        """All the rest arrives; then every answer is there, in order, and nothing else."""
        while self.sent:
            self.some(min(len(self.sent), 1500))
        at = 0
        for expected in self.expected:
            at = self.follows(at, expected)
        assert at == len(self.heard), self.heard[at:]
        assert self.link.closed == self.over
        if not self.link.closed:
            assert self.link.say("PING") == "OK\r\n"
        self.link.lose()
        assert not self.link.clock.getDelayedCalls()

    def follows(self, at: int, expected: str) -> int:
        """An answer stands at `at`: where the next one begins. A zero stands for the rest of a line."""
        encoded = expected.encode().decode("latin-1")
        if expected.startswith("DATA "):
            head, _, body = expected.partition("\r\n")
            encoded = f"{head}\r\n{body}"
            assert self.heard.startswith(encoded, at), (encoded[:200], self.heard[at : at + 200])
            return at + len(encoded)
        *lines, last = encoded.split("\r\n")
        for line in [*lines, *([last] if last else [])]:
            end = self.heard.index("\r\n", at)
            for part in line.split("\0"):
                assert part in self.heard[at:end], (line, self.heard[at:end])
            assert self.heard.startswith(line.partition("\0")[0], at), (line, self.heard[at:end])
            if line in lines and "\0" not in line:
                assert self.heard[at:end] == line
            at = end + 2
        return at


ClientHistories.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
ClientHistoriesTests = ClientHistories.TestCase
