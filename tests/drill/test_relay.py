"""The way between servers that a drill cuts: who is at the other end, and what becomes of the bytes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.drill.relay import Cuts, Relays, _Connection, owner_of, socket_inode

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0200007F:59D9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4001 1 0 100 0 0 10 0
   1: 0100007F:C350 0200007F:59D9 01 00000000:00000000 00:00000000 00000000     0        0 4002 1 0 20 4 30 10 -1
   2: 0200007F:59D9 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4003 1 0 20 4 30 10 -1
"""


class OwnerTests(SynchronousTestCase):
    def test_the_right_end(self) -> None:
        """Of the two ends of a connection it is the one of who connected."""
        assert socket_inode(TABLE, 50_000, 23_001) == 4002
        assert socket_inode(TABLE, 23_001, 50_000) == 4003

    def test_nobody(self) -> None:
        """A connection that is gone already has no end."""
        assert socket_inode(TABLE, 50_001, 23_001) is None

    def test_whose_process(self) -> None:
        """It is from the server whose process has the socket open, or from no server at all."""
        open_files = {7: ["/dev/null", "socket:[4001]"], 8: ["socket:[4002]"]}
        assert owner_of(50_000, 23_001, [7, 8], lambda: TABLE, open_files.__getitem__) == 8
        assert owner_of(50_000, 23_001, [7], lambda: TABLE, open_files.__getitem__) is None


class CutTests(SynchronousTestCase):
    def test_both_ways(self) -> None:
        """A server that is cut off reaches nobody and is reached by nobody; the others reach each other."""
        cuts = Cuts()
        cuts.cut_off("alpha", ["beta", "gamma"])
        assert cuts.between("alpha", "beta") and cuts.between("gamma", "alpha")
        assert not cuts.between("beta", "gamma")
        assert not cuts.between("", "alpha")
        cuts.heal()
        assert not cuts.between("alpha", "beta")


class _End(StringTransport):
    """One end of a connection, as the kernel has it."""

    connected = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class ConnectionTests(SynchronousTestCase):
    """beta has connected to alpha's relay."""

    def setUp(self) -> None:
        self.relays = Relays(None, ())
        self.dialled: list[Protocol] = []
        self.answer: Deferred[Any] = Deferred()

        def dial(port: int, protocol: Protocol) -> Deferred[Any]:
            self.dialled.append(protocol)
            return self.answer

        self.patch(self.relays, "dial", dial)

    def connect(self) -> _Connection:
        connection = _Connection(self.relays, "beta", "alpha", 23_001)
        self.near, self.far = _End(), _End()
        connection.makeConnection(self.near)
        return connection

    def answered(self) -> None:
        (far,) = self.dialled
        far.makeConnection(self.far)
        self.answer.callback(far)

    def reading(self) -> tuple[bool, bool]:
        return self.near.producerState == "producing", self.far.producerState == "producing"

    def test_passed_on(self) -> None:
        """Without a cut bytes go both ways, once the server behind has answered."""
        connection = self.connect()
        assert self.reading() == (False, True)
        self.answered()
        assert self.reading() == (True, True)
        connection.dataReceived(b"question")
        self.dialled[0].dataReceived(b"answer")
        assert (self.far.value(), self.near.value()) == (b"question", b"answer")

    def test_cut(self) -> None:
        """In a cut neither end is read from, so bytes wait where they are; afterwards both are again."""
        self.connect()
        self.answered()
        self.relays.cut_off("alpha", ["beta"])
        assert self.reading() == (False, False)
        assert not self.near.disconnecting and not self.far.disconnecting
        self.relays.heal()
        assert self.reading() == (True, True)

    def test_made_in_a_cut(self) -> None:
        """Who connects during a cut hears nothing, and reaches the server when it is over."""
        self.relays.cut_off("alpha", ["beta"])
        self.connect()
        assert self.dialled == [] and not self.near.disconnecting
        self.relays.heal()
        self.answered()
        assert self.reading() == (True, True)

    def test_a_slow_end(self) -> None:
        """Of who takes no more bytes nothing is kept in memory: the other end is not read from."""
        self.connect()
        self.answered()
        assert self.far.producer is not None
        self.far.producer.pauseProducing()
        assert self.reading() == (False, True)
        self.relays.cut_off("alpha", ["beta"])
        self.far.producer.resumeProducing()
        assert self.reading() == (False, False)

    def test_one_end_ends(self) -> None:
        """What one side ends, ends on the other side too."""
        connection = self.connect()
        self.answered()
        connection.connectionLost()
        assert self.far.disconnecting

    def test_nobody_behind(self) -> None:
        """If the server's process is gone the connection ends."""
        self.connect()
        self.answer.errback(ConnectionRefusedError())
        assert self.near.disconnecting
