"""The join key beside `config.ini`, which follows the farm's."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.join_file import RETRY_SECONDS, JoinFile
from chunkfarm.links.peers import LinkFailed
from chunkfarm.trust.proof import digest_of_key, read_join_key, write_join_key
from tests.chunks.builders import run_now

OLD, NEW = b"o" * 32, b"n" * 32


class JoinFileTests(SynchronousTestCase):
    def make(self, key: bytes | None = OLD) -> JoinFile:
        self.path = Path(self.mktemp()).absolute()
        if key is not None:
            write_join_key(self.path, key)
        self.clock, self.wanted, self.asked = Clock(), "", 0
        self.answer: Deferred[bytes] = succeed(NEW)
        self.file = JoinFile(self.path, lambda: self.wanted, self.ask, self.clock, run_now)
        self.file.start()
        self.addCleanup(self.file.stop)
        return self.file

    def ask(self) -> Deferred[bytes]:
        self.asked += 1
        return self.answer

    def change(self, wanted: str) -> None:
        self.wanted = wanted
        self.file.table_changed()

    def test_a_new_key(self) -> None:
        """The file gets the new key, for its owner alone, and nobody is asked twice."""
        self.make()
        assert self.asked == 0
        self.change(digest_of_key(NEW))
        assert read_join_key(self.path) == NEW and os.stat(self.path).st_mode & 0o777 == 0o600
        self.change(digest_of_key(NEW))
        assert self.asked == 1

    def test_the_right_key_is_there(self) -> None:
        """On a shared folder another server was quicker."""
        self.make(NEW)
        self.change(digest_of_key(NEW))
        assert self.asked == 0

    def test_no_file(self) -> None:
        """Where a person has taken it away none is made."""
        self.make(None)
        self.change(digest_of_key(NEW))
        assert not self.path.exists() and self.asked == 0

    def test_nobody_answers(self) -> None:
        """It is tried again, until the first has answered."""
        self.make()
        self.answer = fail(LinkFailed("refused"))
        self.change(digest_of_key(NEW))
        assert read_join_key(self.path) == OLD
        self.answer = succeed(NEW)
        self.clock.advance(RETRY_SECONDS)
        assert read_join_key(self.path) == NEW and self.asked == 2

    def test_a_wrong_answer(self) -> None:
        """A key that is not the one which the table names is not written."""
        self.make()
        self.answer = succeed(b"x" * 32)
        self.change(digest_of_key(NEW))
        assert read_join_key(self.path) == OLD

    def test_twice_at_once(self) -> None:
        """The key changes again while the first answer is awaited."""
        self.make()
        first: Deferred[bytes] = Deferred()
        self.answer = first
        self.change(digest_of_key(b"m" * 32))
        self.change(digest_of_key(NEW))
        self.answer = succeed(NEW)
        first.callback(b"m" * 32)
        assert read_join_key(self.path) == NEW

    def test_stop(self) -> None:
        """A server that stops waits for nobody."""
        self.make()
        self.answer = Deferred()
        self.change(digest_of_key(NEW))
        self.successResultOf(self.file.stop())
        assert not self.clock.getDelayedCalls()
