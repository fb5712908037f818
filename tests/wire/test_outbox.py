"""Tests for `chunkfarm.wire.outbox`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.wire.outbox import RECORD, SLICE, Outbox


class OutboxTests(SynchronousTestCase):
    """Pieces go in, and what one call of send is given comes out."""

    @settings(deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 3 * RECORD), st.sampled_from((bytes, bytearray, memoryview)))),
        st.lists(st.integers(1, SLICE), min_size=1),
    )
    def test_same_bytes(self, pieces: list[tuple[int, type]], steps: list[int]) -> None:
        """However much is taken at a time, the bytes come out as they went in."""
        outbox, expected, taken = Outbox(), b"", b""
        for number, (size, kind) in enumerate(pieces):
            data = bytes([number % 251]) * size
            outbox.append(kind(data))
            expected += data
        assert outbox.size == len(expected)
        turn = 0
        while outbox:
            head = outbox.head()
            assert 0 < len(head) <= SLICE
            count = min(steps[turn % len(steps)], len(head))
            taken += bytes(head[:count])
            outbox.sent(count)
            turn += 1
        assert taken == expected
        assert outbox.size == 0

    def test_same_object_until_sent(self) -> None:
        """What could not be sent is offered again unchanged, even when more was written meanwhile."""
        outbox = Outbox()
        outbox.append(b"small")
        head = outbox.head()
        outbox.append(b"later")
        assert outbox.head() is head

    def test_small_pieces_are_joined(self) -> None:
        """A head and a small body leave as one."""
        outbox = Outbox()
        outbox.append(b"head")
        outbox.append(b"body")
        assert outbox.head() == b"headbody"

    def test_head_is_filled_up_to_a_record(self) -> None:
        """A small piece before a large one takes only as much of it as fits into a record."""
        outbox = Outbox()
        outbox.append(b"head")
        outbox.append(bytes(10 * RECORD))
        assert len(outbox.head()) == RECORD

    def test_large_pieces_are_not_copied(self) -> None:
        """A large piece is cut into views of the same memory."""
        data = bytearray(2 * SLICE)
        outbox = Outbox()
        outbox.append(memoryview(data))
        head = outbox.head()
        data[0] = 7
        assert len(head) == SLICE
        assert head[0] == 7

    def test_bytearray_is_copied(self) -> None:
        """Whoever writes a bytearray may go on using it."""
        data = bytearray(RECORD)
        outbox = Outbox()
        outbox.append(data)
        data[0] = 7
        assert outbox.head()[0] == 0

    def test_other_elements(self) -> None:
        """A view of numbers is sent as its bytes."""
        outbox = Outbox()
        outbox.append(memoryview(b"12345678").cast("I"))
        assert outbox.size == 8
        assert bytes(outbox.head()) == b"12345678"

    def test_text_is_refused(self) -> None:
        """Text has no bytes of its own."""
        with self.assertRaises(TypeError):
            Outbox().append("text")  # type: ignore[arg-type]

    def test_clear(self) -> None:
        """What is forgotten is not sent."""
        outbox = Outbox()
        outbox.append(bytes(2 * SLICE))
        outbox.head()
        outbox.clear()
        outbox.append(b"new")
        assert outbox.head() == b"new"
