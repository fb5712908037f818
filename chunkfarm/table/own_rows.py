"""The rows that this server holds: as they are by all that is applied here, or once the leader says that is enough."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from chunkfarm.table.codec import ReadRequest
from chunkfarm.table.driver import Driver
from chunkfarm.table.interface import Page, TableClosed, of_one
from chunkfarm.table.journal import Journal


class OwnRows:
    """Reads of this server's journal, and of what of it is in memory. All raise `TableClosed` after the end."""

    def __init__(self, driver: Driver, journal: Journal) -> None:
        self._driver = driver
        self._journal = journal

    async def read(self, request: ReadRequest, secrets: bool = True) -> Page:
        """A page of the rows as they are here; without `secrets` those under `secret/` are left out."""
        self._check_open()
        return await self._driver.reading(
            lambda: self._journal.read(request.prefix, request.after, request.limit, secrets=secrets)
        )

    async def read_current(self, request: ReadRequest, secrets: bool = True) -> Page:
        """The same, and in it everything that was acknowledged before the call."""
        await self._driver.read_index()
        return await self.read(request, secrets)

    async def find(self, key: bytes) -> Page:
        """A page of that row, or of none, as it is here."""
        self._check_open()
        return self._driver.rows.find(key) or await self._fetch(key)

    async def find_current(self, key: bytes) -> Page:
        """The same, and in it everything that was acknowledged before the call."""
        rows = self._driver.rows
        ahead: Deferred[object] | None = None
        if rows.find(key) is None:
            # Meanwhile the leader is asked. What comes of it goes among the recent rows, and counts only from there.
            ahead = self._fetch(key).addErrback(lambda _: None)
        await self._driver.read_index()
        if ahead is not None and rows.find(key) is None:
            await ahead
        return await self.find(key)

    def _check_open(self) -> None:
        if self._driver.stopped:
            raise TableClosed("this server's part of the table is closed")

    def _fetch(self, key: bytes) -> Deferred[Page]:
        """Read the row from the journal, and remember it."""

        def read(page: Page) -> Page:
            found = of_one(page, key)
            self._driver.rows.read(key, found)
            return found

        return self._driver.reading(lambda: self._journal.read(key, b"", 1)).addCallback(read)
