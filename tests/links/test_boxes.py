"""Tests for `chunkfarm.links.boxes`: boxes are AMP's, wherever the network cuts them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.links.boxes import Boxes, NoLines, message_box
from chunkfarm.links.commands import ConsensusOneWay
from tests.wire.test_lines import cut


class Abortable(StringTransport):
    """A transport that remembers its end."""

    def abortConnection(self) -> None:
        self.disconnecting = True


class Kept(Boxes):
    """Keeps what comes."""

    def __init__(self, lines: NoLines) -> None:
        super().__init__(lines)
        self.kept: list[dict[bytes, bytes]] = []

    def ampBoxReceived(self, box: amp.AmpBox) -> None:
        self.kept.append(dict(box))


class OneLine(NoLines):
    """Says one line."""

    def __init__(self, said: str | None) -> None:
        self.said = said  # type: ignore[assignment]


def made(line: str | None = None) -> tuple[Kept, Abortable]:
    boxes, transport = Kept(OneLine(line)), Abortable()
    boxes.makeConnection(transport)
    return boxes, transport


class BoxesTests(SynchronousTestCase):
    """What AMP writes, this reads, and the other way round."""

    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from([b"_ask", b"_command", b"payload", b"k" * 255]),
                st.sampled_from([b"", b"Consensus", b"x", b"\x00\x00", b"y" * 300]),
                min_size=1,
            )
            | st.binary(max_size=300).map(lambda payload: {b"_command": b"Consensus", b"payload": payload})
            | st.binary(max_size=300).map(lambda it: {b"_command": b"Consensus", b"line": it[:9], b"payload": it})
        ),
        st.lists(st.integers(min_value=0)),
    )
    def test_any_boxes(self, boxes: list[dict[bytes, bytes]], places: list[int]) -> None:
        """Boxes of any kind come out as they went in, cut anywhere."""
        receiver, transport = made()
        for read in cut(b"".join(amp.AmpBox(box).serialize() for box in boxes), places):
            receiver.dataReceived(read)
        assert receiver.kept == boxes
        assert not transport.disconnecting

    def test_message(self) -> None:
        """A message of the consensus is the box of its command, to the byte, and says the line as every box does."""
        for line in (None, "", "a line"):
            sender, transport = made(line)
            sender.callRemote(ConsensusOneWay, payload=b"a payload")
            assert transport.value() == message_box(b"a payload", line)
            transport.clear()
            sender.send_message(b"a payload")
            assert transport.value() == message_box(b"a payload", line)

    @given(st.binary(max_size=600))
    def test_anything(self, data: bytes) -> None:
        """No bytes raise; those that are no box end the link."""
        receiver, transport = made()
        receiver.dataReceived(data)
        if len(data) > 2 and data[0]:
            assert transport.disconnecting

    def test_lost(self) -> None:
        """A message for a link that is gone is lost like any other."""
        sender, _ = made()
        sender.transport = None
        sender.send_message(b"a payload")
