"""A watch on another server, until this server holds the rows itself."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from chunkfarm.table.interface import Batch, Compacted, IWatch


@implementer(IWatch)
class BorrowedWatch:
    """Promises what `IWatch` does. `bring_home` moves it to this server's own rows, without a gap or a duplicate.

    Without that a server which became a master would go on listening to one that may be cut off, and would know
    nothing of changes that it made itself.
    """

    def __init__(
        self, watch: IWatch, revision: int, at_home: Callable[[int], Deferred[IWatch]], ended: Callable[[], None]
    ) -> None:
        """`watch` began at `revision`. `ended` is called when this one is closed, has failed or is at home."""
        self._watch = watch
        self._revision = revision
        self._at_home = at_home
        self._ended: Callable[[], None] | None = ended
        self._going: Deferred[Batch] | None = None
        self._leaves = False
        self._woken = False
        """Whether what is waited for was given up in order to move, and not by who waits."""
        self._closed = False

    def next(self) -> Deferred[Batch]:
        return Deferred.fromCoroutine(self._next())

    def close(self) -> None:
        self._closed = True
        self._end()
        self._watch.close()

    def bring_home(self) -> None:
        """Go on with the rows of this server."""
        self._end()
        self._leaves = True
        if self._going is not None:
            self._woken = True
            self._going.cancel()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    async def _next(self) -> Batch:
        while True:
            if self._leaves and not self._closed:
                await self._try_home()
            self._going = self._watch.next()
            try:
                batch = await self._going
            except CancelledError:
                if not self._woken:
                    raise
                self._woken = False
                continue
            except Exception:
                self._end()
                raise
            finally:
                self._going = None
            self._revision = max(self._revision, batch.revision)
            return batch

    async def _try_home(self) -> None:
        """Move. Where the rows here came as a whole, newer than what was told so far, that waits for the next news."""
        try:
            home = await self._at_home(self._revision)
        except Compacted:
            return
        self._leaves = False
        self._watch.close()
        self._watch = home
        if self._closed:
            home.close()
