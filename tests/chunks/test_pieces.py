from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.pieces import BytesSource, Digests, raw_digests
from chunkfarm.errors import InvalidRequest
from tests.chunks.builders import pattern, read_all

lists = st.lists(st.binary(min_size=32, max_size=32), max_size=6)


class DigestsTests(SynchronousTestCase):
    @given(lists, st.data())
    def test_like_a_tuple(self, digests: list[bytes], data: st.DataObject) -> None:
        """Raw digests behave as the tuple of them does."""
        packed = Digests(b"".join(digests))
        assert list(packed) == digests
        assert len(packed) == len(digests)
        assert packed == digests
        assert packed == Digests(packed.raw)
        assert hash(packed) == hash(Digests(packed.raw))
        assert packed != [*digests, bytes(32)]
        assert raw_digests(packed) == raw_digests(digests) == b"".join(digests)
        part = data.draw(st.slices(len(digests)))
        assert packed[part] == tuple(digests[part])
        for position in range(-len(digests), len(digests)):
            assert packed[position] == digests[position]
        for position in (len(digests), -len(digests) - 1):
            with self.assertRaises(IndexError):
                packed[position]

    def test_broken(self) -> None:
        """Bytes that are no whole number of digests are refused."""
        with self.assertRaises(InvalidRequest):
            Digests(bytes(33))


class BytesSourceTests(SynchronousTestCase):
    def test_pieces(self) -> None:
        """Bytes in memory come in pieces, without a copy, and end."""
        source = BytesSource(pattern(250), piece=100)
        assert len(self.successResultOf(source.next()) or b"") == 100
        assert self.successResultOf(Deferred.fromCoroutine(read_all(source))) == pattern(250)[100:]
        assert self.successResultOf(source.next()) is None
        assert self.successResultOf(BytesSource(b"").next()) is None
