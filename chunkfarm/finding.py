"""Find the farm: ask the listed servers, and decide whether to join, to found or to wait.

`ask` is the round of questions; `decide` is the rule, pure. A wrong answer here makes two farms of one, so
the rule founds only on proof: every other listed server has refused the connection, or is itself starting
and comes after this one in the order of (stamp, server id).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError

from chunkfarm.config_values import read_host, read_port
from chunkfarm.links.commands import Probe
from chunkfarm.links.peers import CONNECT_TIMEOUT, LinkFailed, Peers, reason_of
from chunkfarm.membership import Candidate
from chunkfarm.model import Address, check_server_id
from chunkfarm.state import PHASES
from chunkfarm.wire.tls import HandshakeTimedOut

MASTERS_FIRST = 3
"""The first three listed are the masters, so they are asked before anyone else."""
AT_ONCE = 16
"""How many of the rest are asked at the same time, so that a long list is no burst."""
REASON_MAX = 120
"""Characters of a reason that somebody unknown may have chosen."""

ANSWERED = "answered"
STARTING = "starting"
FOUNDING = "founding"
REFUSED = "refused"
TIMED_OUT = "timed out"
UNTRUSTED = "untrusted"
FAILED = "failed"

JOINABLE = ("serving", "readonly", "leaving")


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
    asked_by: Sequence[Candidate] = (),
    found_anyway: bool = False,
) -> Decision:
    """What one fresh round of answers means for a server that has no data of a farm.

    `farm` is the id in the config file (empty: none recorded), `asked_by` the starting servers that probed
    this one since the round began.
    """
    others = [answer for answer in answers if answer.server_id != me.server_id]
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
    if any(candidate.before(me) for candidate in asked_by):
        return Wait((), (), again_soon=True)
    return Found()


def ask(peers: Peers, addresses: Sequence[Address], me: Candidate, farm: str) -> Deferred[list[Answer]]:
    """Ask the masters; if none of them answers for a farm, the rest too. Never fails."""
    return Deferred.fromCoroutine(_ask(peers, addresses, me, farm))


async def _ask(peers: Peers, addresses: Sequence[Address], me: Candidate, farm: str) -> list[Answer]:
    def one(address: Address) -> Deferred[Answer]:
        return Deferred.fromCoroutine(probe(peers, address, me, farm))

    answers = await gatherResults([one(address) for address in addresses[:MASTERS_FIRST]], consumeErrors=True)
    if any(answer.outcome == ANSWERED and answer.server_id != me.server_id for answer in answers):
        return answers
    turns = DeferredSemaphore(AT_ONCE)
    rest = [turns.run(one, address) for address in addresses[MASTERS_FIRST:]]
    return answers + await gatherResults(rest, consumeErrors=True)


def _read_answer(text: str) -> dict[str, Any]:
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


async def probe(peers: Peers, address: Address, me: Candidate, farm: str) -> Answer:
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
        call = link.callRemote(Probe, server=me.server_id, stamp=me.stamp, farm=farm)
        box = await peers.limit(call, CONNECT_TIMEOUT, "Probe")
        told = _read_answer(box["answer"])
        state, server_id = told["state"], told["server"]
        outcome = {STARTING: STARTING, "waiting": STARTING, FOUNDING: FOUNDING}.get(state, ANSWERED)
        word = state
        if outcome == STARTING and told["farm"]:
            # It has data of a farm and waits for others of it; that is no rival for founding, but a farm.
            outcome, word = FAILED, f"it is {state} too, for farm {told['farm']}"
        elif outcome == ANSWERED and farm and told["farm"] != farm:
            word = f"it belongs to another farm, {told['farm']}"
        return Answer(
            address=address,
            outcome=outcome,
            error=word,
            server_id=server_id,
            stamp=told["stamp"],
            farm=told["farm"],
            first=told["first"],
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
