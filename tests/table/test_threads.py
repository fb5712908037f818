"""The table as a server runs it: threads of its own, the real reactor."""

from __future__ import annotations

import os
import random
import threading
from functools import partial

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from chunkfarm.table.embedded import EmbeddedTable
from chunkfarm.table.interface import Put
from chunkfarm.table.journal import Journal
from chunkfarm.table.threads import OneThread
from tests.table.cluster import Cluster, MemoryLinks


class OneThreadTests(TestCase):
    """Blocking calls on a thread."""

    async def test_in_order(self) -> None:
        """Calls run one after the other on one thread, which is not this one; errors come back."""
        run = OneThread(reactor, "test")
        self.addCleanup(run.stop)
        names: list[int] = []

        def note(number: int) -> int:
            names.append(number)
            return threading.get_ident()

        going = [run(partial(note, number)) for number in range(20)]
        idents = await gatherResults(going)
        assert names == list(range(20))
        assert len(set(idents)) == 1 and idents[0] != threading.get_ident()
        with self.assertRaises(ZeroDivisionError):
            await run(lambda: 1 // 0)

    def test_never_used(self) -> None:
        """A thread that was never needed is never begun, and stopping it is no harm."""
        run = OneThread(reactor, "test")
        run.stop()
        run.stop()


class RealTableTests(TestCase):
    """A farm of one with a real disk and real threads."""

    async def test_whole_life(self) -> None:
        """Found, write, read, stop; and everything is there afterwards."""
        directory = os.path.abspath(self.mktemp())
        links = MemoryLinks(Cluster(directory), "a")
        path = os.path.join(directory, "table.sqlite")
        table = EmbeddedTable("a", Journal.open(path), links, reactor, random.Random(1))
        await table.found()
        table.start()
        await gatherResults([table.transact((), (Put(b"%02d" % n, b""),)) for n in range(50)])
        assert len((await table.read(b"")).rows) == 50
        await table.stop()
        again = EmbeddedTable("a", Journal.open(path), links, reactor, random.Random(2))
        again.start()
        assert len((await again.read(b"")).rows) == 50
        await again.stop()
