"""Find the farm: ask the listed servers, and decide whether to join, to found or to wait.

`ask` is the round of questions; `decide` is the rule, pure; `Search` goes round until there is a decision. A wrong
one makes two farms of one, so the rule founds only on proof: every other listed server has refused the connection,
or is itself starting and comes after this one in the order of (stamp, server id).

Why two never found, if each stands in the other's list. Take the two last rounds, and the later of the two
decisions. Whoever decides has its port open since before its round, and says `founding` from the reactor turn of
its decision; so the later one, which asked the earlier one in its own round, was answered `starting`, before that
decision, or `refused`, before the earlier one's port was open. In the first case the earlier one has been asked
during its round or before it, and each knows the other's place in the order. In the second the earlier one asked
after that, and so during the later one's round or before it: the later one has been asked, and knows the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, evolve, field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from chunkfarm.config_values import read_host, read_port
from chunkfarm.links.commands import PROTOCOL_VERSION, Probe, version_problem
from chunkfarm.links.peers import CONNECT_TIMEOUT, LinkFailed, Peers, reason_of
from chunkfarm.membership import Candidate
from chunkfarm.model import Address, check_server_id
from chunkfarm.ports.callers import Caller, Callers
from chunkfarm.state import PHASES, ServerState
from chunkfarm.trust.proof import DIALER, LISTENER, check_proof, exporter_of, proof
from chunkfarm.wire.tls import HandshakeTimedOut

MASTERS_FIRST = 3
"""The first three listed are the masters, so they are asked before anyone else."""
AT_ONCE = 16
"""How many of the rest are asked at the same time, so that a long list is no burst."""
REASON_MAX = 120
"""Characters of a reason that somebody unknown may have chosen."""
SOON = 0.3
"""Seconds until the next look when a farm is just being made: founding takes about as long."""
WAIT_FIRST = 0.5
WAIT_MOST = 2.0
"""Seconds between looks while waiting, growing: a farm that comes back is joined within a few seconds."""

ANSWERED = "answered"
STARTING = "starting"
FOUNDING = "founding"
REFUSED = "refused"
TIMED_OUT = "timed out"
UNTRUSTED = "untrusted"
FAILED = "failed"


@frozen(kw_only=True)
class Answer:
    """How one attempt to reach a listed server ended."""

    address: Address
    outcome: str
    error: str = ""
    server_id: str = ""
    stamp: int = 0
    farm: str = ""
    first: dict[str, Any] | None = None
    version: int = PROTOCOL_VERSION


@frozen(kw_only=True)
class Asking:
    """What this server tells of itself when it asks."""

    me: Candidate
    address: Address
    """Where it listens."""
    farm: str = ""
    """The farm that it looks for; empty if none is recorded."""
    key: bytes | None = None
    """The join key, if it has one."""


@frozen
class Join:
    """Someone answered for the farm."""

    answer: Answer


@frozen
class Found:
    """Nobody can have a farm: this server makes one."""


@frozen
class Wait:
    """Not now; `reasons` are the answers of those that are waited for, `cures` what a person may do."""

    reasons: tuple[Answer, ...]
    cures: tuple[str, ...]
    again_soon: bool = False


Decision = Join | Found | Wait


def decide(
    *,
    farm: str,
    me: Candidate,
    answers: Sequence[Answer],
    asked_by: Sequence[Caller] = (),
    found_anyway: bool = False,
) -> Decision:
    """What one fresh round of answers means for a server that has no data of a farm.

    `farm` is the id in the config file (empty: none recorded), `asked_by` the starting servers that probed
    this one, in this round or not long before.
    """
    # Whoever is not trusted is not believed to be this server either.
    others = [answer for answer in answers if answer.server_id != me.server_id or answer.outcome == UNTRUSTED]
    for answer in others:
        if answer.outcome == ANSWERED and answer.farm == (farm or answer.farm):
            return Join(answer)
    if found_anyway:
        return Found()
    if farm:
        return Wait(
            tuple(others),
            (
                "start one of the servers listed in [servers] again",
                "if this farm is lost for good, start this server once with --found: "
                "it makes a new, empty farm and gives the old one up",
            ),
        )
    if any(answer.outcome == FOUNDING for answer in others):
        return Wait(tuple(answer for answer in others if answer.outcome == FOUNDING), (), again_soon=True)
    ahead = [
        answer
        for answer in others
        if answer.outcome not in (REFUSED, STARTING)
        or (answer.outcome == STARTING and Candidate(stamp=answer.stamp, server_id=answer.server_id).before(me))
    ]
    if ahead:
        return Wait(
            tuple(ahead),
            ("start the listed servers, or take those that are gone for good out of [servers]",),
            again_soon=all(answer.outcome == STARTING for answer in ahead),
        )
    callers = [caller for caller in asked_by if caller.candidate.before(me)]
    if callers:
        word = "it asked this server, and comes before it"
        told = [Answer(address=caller.address, outcome=STARTING, error=word) for caller in callers]
        return Wait(tuple(told), (), again_soon=True)
    return Found()


def ask(peers: Peers, addresses: Sequence[Address], asking: Asking) -> Deferred[list[Answer]]:
    """Ask the masters; if none of them answers for the farm, the rest too. Never fails."""
    return Deferred.fromCoroutine(_ask(peers, addresses, asking))


async def _ask(peers: Peers, addresses: Sequence[Address], asking: Asking) -> list[Answer]:
    def one(address: Address) -> Deferred[Answer]:
        return Deferred.fromCoroutine(probe(peers, address, asking))

    answers = await gatherResults([one(address) for address in addresses[:MASTERS_FIRST]], consumeErrors=True)
    if any(answer.outcome == ANSWERED and answer.farm == (asking.farm or answer.farm) for answer in answers):
        return answers
    turns = DeferredSemaphore(AT_ONCE)
    rest = [turns.run(one, address) for address in addresses[MASTERS_FIRST:]]
    return answers + await gatherResults(rest, consumeErrors=True)


def read_answer(text: str) -> dict[str, Any]:
    """What an answer to a probe says; raises `ValueError` for what is none.

    Nobody knows yet who sent it, and it is shown to people and acted on, so every word of it is looked at.
    """
    told = json.loads(text)
    if not isinstance(told, dict) or told.get("state") not in PHASES or type(told.get("stamp")) is not int:
        raise ValueError("it is not an answer to a probe")
    first = told.get("first") or None
    return {
        "state": told["state"],
        "server": check_server_id(str(told.get("server"))),
        "stamp": told["stamp"],
        "farm": check_server_id(str(told["farm"])) if told.get("farm") else "",
        "first": server_hint(first) if first is not None else None,
        "incarnation": str(told.get("incarnation", "")),
        "generation": told["generation"] if type(told.get("generation")) is int else 0,
        "version": told["version"] if type(told.get("version")) is int else 1,
        "keyed": told.get("keyed") is True,
        "proof": str(told.get("proof", "")),
    }


def server_hint(told: Any) -> dict[str, Any]:
    """Where a server is said to listen, as `NotFirst` and the answer to a probe tell it; raises `ValueError`."""
    if not isinstance(told, dict) or type(told.get("peer")) is not int:
        raise ValueError("it does not say where a server listens")
    return {
        "id": check_server_id(str(told.get("id"))),
        "host": read_host(str(told.get("host"))),
        "peer": read_port(str(told["peer"])),
    }


async def probe(peers: Peers, address: Address, asking: Asking) -> Answer:
    """Ask one address; every way in which that can end is an `Answer`."""
    try:
        link = await peers.open(address)
    except CancelledError:
        raise
    except ConnectionRefusedError as error:
        return Answer(address=address, outcome=REFUSED, error=reason_of(error))
    except (TimeoutError, HandshakeTimedOut) as error:
        return Answer(address=address, outcome=TIMED_OUT, error=reason_of(error))
    except ConnectError as error:
        return Answer(address=address, outcome=FAILED, error=reason_of(error))
    except Exception as error:
        return Answer(address=address, outcome=UNTRUSTED, error=reason_of(error))
    try:
        exporter = exporter_of(link.transport) if asking.key is not None else b""
        call = link.callRemote(Probe, **arguments_of(asking, exporter))
        box = await peers.limit(call, CONNECT_TIMEOUT, "Probe")
        told = read_answer(box["answer"])
        outcome, word = _judge(told, asking, exporter)
        return Answer(
            address=address,
            outcome=outcome,
            error=word,
            server_id=told["server"],
            stamp=told["stamp"],
            farm=told["farm"],
            first=told["first"],
            version=told["version"],
        )
    except CancelledError:
        raise
    except LinkFailed as error:
        return Answer(address=address, outcome=TIMED_OUT, error=reason_of(error))
    except Exception as error:
        return Answer(
            address=address, outcome=UNTRUSTED, error=f"it does not speak our protocol: {reason_of(error)[:REASON_MAX]}"
        )
    finally:
        link.close()


def arguments_of(asking: Asking, exporter: bytes = b"") -> dict[str, Any]:
    """What a `Probe` says; the proof goes with a connection's exporter."""
    arguments: dict[str, Any] = {
        "server": asking.me.server_id,
        "stamp": asking.me.stamp,
        "farm": asking.farm,
        "version": PROTOCOL_VERSION,
        "host": asking.address.host,
        "peer": asking.address.port,
    }
    if asking.key is not None and exporter:
        arguments["proof"] = proof(asking.key, DIALER, exporter)
    return arguments


def _judge(told: dict[str, Any], asking: Asking, exporter: bytes) -> tuple[str, str]:
    """The outcome of an answer that could be read, and a few words on it."""
    state, farm = told["state"], told["farm"]
    if problem := version_problem(told["version"]):
        return FAILED, problem
    if state == FOUNDING:
        return FOUNDING, state
    if state not in ("starting", "waiting"):
        if asking.farm and farm != asking.farm:
            return ANSWERED, f"it belongs to another farm, {farm}"
        return ANSWERED, state
    if farm:
        # It has data of a farm, or a config that names one. That is no rival for founding, but a farm.
        return FAILED, f"it is {state} too, for farm {farm}"
    if asking.key is None:
        if told["keyed"]:
            return UNTRUSTED, "it has a join key (farm.join) and this server has none: copy the file"
        return STARTING, state
    if not check_proof(asking.key, LISTENER, exporter, _bytes_of(told["proof"])):
        return UNTRUSTED, "it did not prove that it knows the join key: is farm.join the same there?"
    return STARTING, state


def _bytes_of(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


@define
class Search:
    """Goes round the listed servers until it is clear what to do."""

    peers: Peers
    state: ServerState
    callers: Callers
    clock: IReactorTime
    read: Callable[[], Deferred[tuple[list[Address], Asking]]]
    """Whom to ask and what to tell, looked up anew for each round."""
    may_found: Callable[[], Deferred[bool]]
    """Asked when the decision is to found; False if somebody else was quicker."""
    explain: Callable[[Wait], None]
    found_anyway: bool = False
    _had_farm: dict[Address, str] = field(factory=dict, init=False)
    """Who was making a farm or served one when it was last asked, in words."""

    async def run(self) -> Join | Found:
        """What this server is to do; the state is `founding` from the turn of that decision. May be run again."""
        delay = WAIT_FIRST
        while True:
            addresses, asking = await self.read()
            self.callers.key = asking.key
            answers = await ask(self.peers, addresses, asking)
            decision = decide(
                farm=asking.farm,
                me=asking.me,
                answers=[self._remember(answer) for answer in answers],
                asked_by=self.callers.current(),
                found_anyway=self.found_anyway,
            )
            if isinstance(decision, Join):
                # What it has seen to live is not given up because it is gone at the next look.
                self.found_anyway = False
                return decision
            if isinstance(decision, Found):
                self.state.change(FOUNDING)
                if await self.may_found():
                    return decision
                decision = Wait((), (), again_soon=True)
            self.explain(decision)
            await deferLater(self.clock, SOON if decision.again_soon else delay)
            delay = min(delay * 1.5, WAIT_MOST)

    def _remember(self, answer: Answer) -> Answer:
        """A server that had a farm and refuses has stopped; its farm is on its disk."""
        if answer.outcome == FOUNDING:
            self._had_farm[answer.address] = "it was making the farm"
        elif answer.outcome == ANSWERED:
            self._had_farm[answer.address] = "it served a farm"
        elif answer.outcome == STARTING:
            self._had_farm.pop(answer.address, None)
        elif answer.outcome == REFUSED and answer.address in self._had_farm:
            word = f"refused, and {self._had_farm[answer.address]} when it was last asked"
            return evolve(answer, outcome=FAILED, error=word)
        return answer
