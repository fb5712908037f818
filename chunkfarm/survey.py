"""Asking other servers what their journals hold, and which takeovers they know of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred

from chunkfarm.links.commands import Probe
from chunkfarm.links.peers import CONNECT_TIMEOUT, LinkFailed, Peers, call_on, reason_of
from chunkfarm.model import Address, check_server_id, check_server_name
from chunkfarm.table.lines import NUMBER_MAX, Chain, read_chain

PROBE_TIMEOUT = 5.0
"""Seconds for one answer; as long as a connection may take."""


@frozen(kw_only=True)
class Told:
    """What a server of this farm says of itself to another one."""

    server: str
    name: str
    state: str
    first: str = ""
    """Who leads, as far as it knows."""
    commits: bool = False
    """Whether it leads, and a majority answers."""
    journal: tuple[int, int] | None = None
    """Term and index of its journal's last entry; None if it holds no journal."""
    chain: Chain = ()
    settled: bool = True
    """Whether the rows of its own journal tell of that chain."""
    stopped: bool = False
    """Whether it takes part in nothing any more."""
    term_there: int | None = None
    """The term of its entry at the index that was asked about."""


def read_told(text: str) -> Told:
    """What an answer to a probe says, looked at word by word; raises `ValueError` for what is none."""
    told = json.loads(text)
    if not isinstance(told, dict) or not isinstance(told.get("state"), str):
        raise ValueError("it is not an answer to a probe")
    first, journal, there = told.get("first") or {}, told.get("journal"), told.get("term_at")
    if not isinstance(first, dict):
        raise ValueError("it does not say who leads")
    return Told(
        server=check_server_id(str(told.get("server"))),
        name=check_server_name(str(told.get("name"))),
        state=told["state"],
        first=check_server_id(str(first["id"])) if "id" in first else "",
        commits=told.get("commits") is True,
        journal=(_number(journal["term"]), _number(journal["index"])) if isinstance(journal, dict) else None,
        chain=read_chain(told.get("lines", [])),
        settled=told.get("settled") is not False,
        stopped=told.get("stopped") is True,
        term_there=_number(there) if there is not None else None,
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise ValueError("a term and an index are numbers")
    return value


@define
class Questions:
    """Asks servers, by id or by address."""

    peers: Peers
    arguments: Callable[[], dict[str, Any]]
    """What a `Probe` says of this server."""

    def ask(self, server_id: str, index: int) -> Deferred[Told]:
        """Ask a server of the farm; fails with `LinkFailed`, also if the answer makes no sense."""
        return Deferred.fromCoroutine(self._ask(server_id, index))

    async def _ask(self, server_id: str, index: int) -> Told:
        box = await self.peers.call(server_id, Probe, PROBE_TIMEOUT, **self.arguments(), index=index)
        return _understood(box["answer"])

    def ask_at(self, address: Address) -> Deferred[Told]:
        """Ask whoever listens at an address; fails with `LinkFailed`, also if it is no server of this farm."""
        return Deferred.fromCoroutine(self._ask_at(address))

    async def _ask_at(self, address: Address) -> Told:
        try:
            link = await self.peers.open(address)
        except CancelledError:
            raise
        except Exception as error:
            raise LinkFailed(reason_of(error)) from None
        try:
            found = self.peers.identity(link)
            if found is None:
                raise LinkFailed("it is no server of this farm")
            call = call_on(link, Probe, self.arguments())
            told = _understood((await self.peers.limit(call, CONNECT_TIMEOUT, "Probe"))["answer"])
            if told.server != found:
                raise LinkFailed("it gives another server's id than its certificate")
            return told
        finally:
            link.close()


def _understood(text: str) -> Told:
    try:
        return read_told(text)
    except (ValueError, KeyError, RecursionError) as error:
        raise LinkFailed(f"its answer makes no sense: {error}") from None
