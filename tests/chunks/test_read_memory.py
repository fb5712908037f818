"""Memory of all who read: pieces that become smaller as it fills up."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.chunkfile import BLOCK
from chunkfarm.chunks.read_memory import PIECE, READ_BYTES_MAX, ReadMemory
from chunkfarm.chunks.store import ChunkStore
from chunkfarm.model import MIB
from tests.chunks.builders import run_now


class ReadMemoryTests(SynchronousTestCase):
    def test_pieces(self) -> None:
        """There is a largest piece while there is room, and a block in any case."""
        memory = ReadMemory()
        sizes = []
        while memory.used < 2 * READ_BYTES_MAX:
            sizes.append(memory.piece())
            memory.take(sizes[-1])
        assert sizes[0] == PIECE and sizes[-1] == BLOCK
        assert sizes == sorted(sizes, reverse=True)
        assert all(size & (size - 1) == 0 for size in sizes)
        memory.give(memory.used)
        assert memory.piece() == PIECE

    def test_what_is_not_sent(self) -> None:
        """What connections keep counts too, once."""
        memory = ReadMemory()
        memory.take(READ_BYTES_MAX // 4)
        memory.queued = READ_BYTES_MAX // 4
        assert memory.used == READ_BYTES_MAX // 4 and memory.is_crowded(False) and not memory.is_crowded(True)
        memory.queued = READ_BYTES_MAX
        assert memory.piece() == BLOCK and memory.is_crowded(True)
        memory.queued = 0
        assert not memory.is_crowded(True)

    def test_readers_that_take_nothing(self) -> None:
        """However many ask for a large chunk and take nothing, what they keep is bounded; and each gets its bytes."""
        directory = Path(self.mktemp())
        directory.mkdir()
        store = ChunkStore(directory / "chunks", directory / "index.sqlite", run_now)
        self.successResultOf(store.start())
        self.addCleanup(store.close)
        data = bytes(range(256)) * (4 * MIB // 256)
        digest = self.successResultOf(store.put(None, data))
        readers = [self.successResultOf(store.open(digest, 1000 * number)) for number in range(200)]
        kept = [[self.successResultOf(reader.next())] for reader in readers]
        held = sum(len(piece) for pieces in kept for piece in pieces if piece is not None)
        assert held < READ_BYTES_MAX
        assert store.memory.used < READ_BYTES_MAX + 200 * 2 * BLOCK
        for number, (reader, pieces) in enumerate(zip(readers, kept, strict=True)):
            while (piece := self.successResultOf(reader.next())) is not None:
                pieces.append(piece)
            if number % 20 == 0:
                assert b"".join(piece for piece in pieces if piece is not None) == data[1000 * number :]
            pieces.clear()
            reader.close()
        assert store.memory.used == 0
