"""A server's part of the table in this process, while the server does not run and nobody else votes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from chunkfarm.table.embedded import EmbeddedTable, IConsensusLinks
from chunkfarm.table.interface import IWatch
from chunkfarm.table.journal import Journal


@implementer(IConsensusLinks)
class Nobody:
    """The links of a table that is alone."""

    def send(self, to: str, payload: bytes) -> None:
        """There is nobody."""

    def call(self, to: str, payload: bytes) -> Deferred[None]:
        return fail(ConnectionError("there is nobody"))

    def transact(self, to: str, request: bytes) -> Deferred[bytes]:
        return fail(ConnectionError("there is nobody"))

    def read(self, to: str, request: bytes, stale: bool = False) -> Deferred[bytes]:
        return fail(ConnectionError("there is nobody"))

    def holders(self) -> tuple[str, ...]:
        return ()

    def watch(self, prefix: bytes, from_revision: int) -> Deferred[IWatch]:
        return fail(ConnectionError("there is nobody"))

    def leader_hint(self) -> str:
        return ""


def run_alone(data: Path, work: Callable[[EmbeddedTable], Coroutine[Deferred[Any], Any, None]]) -> None:
    """Do something with the table in a data directory, and close it. Once in a process, since a reactor runs once."""
    from twisted.internet import reactor

    loop = cast(Any, reactor)
    loop.seconds = time.monotonic
    server_id = (data / "server.id").read_text().strip()
    table = EmbeddedTable(
        server_id, Journal.open(str(data / "table.sqlite")), Nobody(), loop, random.Random(), client_id="benchmark"
    )
    problems: list[Any] = []

    async def run() -> None:
        table.start()
        try:
            await work(table)
        finally:
            await table.stop()

    loop.callWhenRunning(
        lambda: Deferred.fromCoroutine(run()).addErrback(problems.append).addBoth(lambda _: loop.stop())
    )
    loop.run(installSignalHandlers=False)
    if problems:
        problems[0].raiseException()
