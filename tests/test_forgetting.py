"""Forgetting servers: by a person, and by the farm itself."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import Busy, NotFound, PreconditionFailed
from chunkfarm.forgetting import AGAIN_SECONDS_MIN, ROUND_SECONDS, Forgetting, objection
from chunkfarm.issuer import JOIN_KEY, Issuer
from chunkfarm.links import commands
from chunkfarm.losses import Losses
from chunkfarm.membership import in_order
from chunkfarm.model import BARRED, JOIN_DIGEST_KEY, SERVERS, FarmOptions, Server
from chunkfarm.table.interface import TableError
from chunkfarm.table.registry import Registry
from chunkfarm.trust.proof import digest_of_key
from chunkfarm.trust.seal import SealKey
from tests.builders import make_server, server_id
from tests.memory_table import MemoryTable

NOW = 10**12


class FakeSurvey:
    """Says what the test wants."""

    def __init__(self) -> None:
        self.losses = Losses(files=3, done=True)
        self.asked: list[tuple[str, float | None]] = []

    def ask(self, server: str, seconds: float | None = None) -> Deferred[Losses]:
        self.asked.append((server, seconds))
        return succeed(self.losses)

    def stop(self) -> Deferred[None]:
        return succeed(None)


class FakePeers:
    """The first, if it is another server."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self.error: Exception | None = None

    def call(self, to: str, command: Any, timeout: float, **arguments: Any) -> Deferred[dict[str, Any]]:
        self.calls.append((to, command, arguments))
        return fail(self.error) if self.error is not None else succeed({})


class ForgettingTests(SynchronousTestCase):
    """Servers s1 and s2 are up, s3 is down; this one is s1, and the first."""

    def make(self, **third: Any) -> Forgetting:
        self.clock, self.table, self.seal = Clock(), MemoryTable(), SealKey.create()
        for server in (make_server(1), make_server(2), make_server(3, **{"state": "down", "name": "gone", **third})):
            self.table.put(server.key, server.to_value())
        self.has_seal = True
        self.survey, self.peers, self.first = FakeSurvey(), FakePeers(), server_id(1)
        survey: Any = self.survey
        peers: Any = self.peers
        self.registry = Registry(self.table, lambda: NOW)
        self.issuer = Issuer(self.table, lambda: self.seal if self.has_seal else None, lambda: NOW)
        self.forgetting = Forgetting(
            server_id=server_id(1),
            registry=self.registry,
            issuer=self.issuer,
            survey=survey,
            peers=peers,
            servers=self.servers,
            options=lambda: FarmOptions(name="lab"),
            first=lambda: self.first,
            leads=lambda: self.first == server_id(1),
            clock=self.clock,
        )
        self.forgetting.start()
        self.addCleanup(self.forgetting.stop)
        return self.forgetting

    def servers(self) -> tuple[Server, ...]:
        rows = (row for key, row in self.table.rows.items() if key.startswith(SERVERS))
        return in_order(Server.from_value(row.value, row.revision) for row in rows)

    def names(self) -> list[str]:
        return [server.name for server in self.servers()]

    def test_looking(self) -> None:
        """It says what would be lost and whether it may be, and changes nothing."""
        forgetting = self.make()
        before = dict(self.table.rows)
        outlook = self.successResultOf(forgetting.look("gone"))
        assert (outlook.server.name, outlook.objection, outlook.losses.files) == ("gone", "", 3)
        assert "s2 is up" in self.successResultOf(forgetting.look(server_id(2))).objection
        self.failureResultOf(forgetting.look("nobody"), NotFound)
        assert self.table.rows == before

    def test_forgotten(self) -> None:
        """Its row goes, its id is barred, and the join key is another, all in one transaction."""
        forgetting = self.make()
        before = len(self.table.transactions)
        assert self.successResultOf(forgetting.run("gone", "lab")).id == server_id(3)
        assert len(self.table.transactions) == before + 1
        assert self.names() == ["s1", "s2"]
        told = json.loads(self.table.rows[BARRED + server_id(3).encode()].value)
        assert told == {"name": "gone", "since": NOW, "key": ""}
        key = self.successResultOf(self.issuer.join_key())
        assert self.table.rows[JOIN_DIGEST_KEY].value.decode() == digest_of_key(key)
        failure = self.failureResultOf(self.registry.join(make_server(3, incarnation="again")), TableError)
        assert "taken out of this farm for good" in str(failure.value)
        assert self.successResultOf(self.registry.read()).barred == {server_id(3)}

    def test_refusals(self) -> None:
        """A wrong name of the farm, and a server that is not down; nothing is changed."""
        forgetting = self.make()
        before = dict(self.table.rows)
        for target, name in (("gone", "bal"), ("s2", "lab"), ("s1", "lab")):
            self.failureResultOf(forgetting.run(target, name), PreconditionFailed)
        self.failureResultOf(forgetting.run("nobody", "lab"), NotFound)
        self.has_seal = False
        self.failureResultOf(forgetting.run("gone", "lab"), Busy)
        assert self.table.rows == before

    def test_who_may_be_forgotten(self) -> None:
        """Only a server that is down; to the others it is said what to do before."""
        assert objection(make_server(1, state="down")) == ""
        assert "say DRAIN s1" in objection(make_server(1))
        said = objection(make_server(1, state="draining", draining=True))
        assert "stop it first" in said and "DRAIN" not in said
        assert "again in a few seconds" in objection(make_server(1, state="leaving"))

    def test_another_server_leads(self) -> None:
        """It is told, and what it says is passed on."""
        forgetting = self.make()
        self.first = server_id(2)
        self.successResultOf(forgetting.run("gone", "lab"))
        assert self.peers.calls == [(server_id(2), commands.Forget, {"server": server_id(3)})]
        for error, kind in ((commands.Conflict("it is up"), PreconditionFailed), (commands.NotNow("no"), Busy)):
            self.peers.error = error
            self.failureResultOf(forgetting.run("gone", "lab"), kind)
        assert JOIN_KEY not in self.table.rows

    def down_for(self, seconds: float, given_up: bool = True) -> Forgetting:
        return self.make(since=NOW - round(seconds * 1000), given_up=given_up)

    def test_by_itself(self) -> None:
        """After `forget_after` the row of a server goes that has nothing which others lack; it is not barred."""
        self.down_for(FarmOptions().forget_after)
        self.clock.advance(ROUND_SECONDS)
        assert self.names() == ["s1", "s2"] and self.survey.asked == [(server_id(3), None)]
        assert not any(key.startswith(BARRED) or key == JOIN_KEY for key in self.table.rows)
        assert self.successResultOf(self.registry.join(make_server(3))).name == "s3"

    def test_too_early(self) -> None:
        """Not before its time, not while it is waited for, and not by a server that does not lead."""
        for seconds, given_up, first in ((604_799, True, 1), (10**6, False, 1), (10**6, True, 2)):
            self.down_for(seconds, given_up)
            self.first = server_id(first)
            self.clock.advance(ROUND_SECONDS)
            assert "gone" in self.names() and self.survey.asked == []

    def test_the_last_copy(self) -> None:
        """While it may hold the last copy of a chunk its row stays; that is looked at again, but seldom."""
        self.down_for(10**6)
        self.survey.losses = Losses(files=3, lost_files=1, lost_chunks=1, lost_bytes=5, done=True)
        for _ in range(round(AGAIN_SECONDS_MIN / ROUND_SECONDS)):
            self.clock.advance(ROUND_SECONDS)
        assert "gone" in self.names() and len(self.survey.asked) == 1
        self.survey.losses = Losses(files=3, done=True)
        self.clock.advance(ROUND_SECONDS)
        assert "gone" not in self.names()

    def test_files_that_cannot_be_listed(self) -> None:
        """Then nothing is known, and nobody is forgotten."""
        self.down_for(10**6)
        self.survey.ask = lambda server, seconds=None: fail(Busy("not now"))  # type: ignore[method-assign]
        self.clock.advance(ROUND_SECONDS)
        assert "gone" in self.names()
        self.survey.ask = lambda server, seconds=None: fail(RuntimeError("a fault"))  # type: ignore[method-assign]
        self.clock.advance(AGAIN_SECONDS_MIN)
        assert len(self.flushLoggedErrors(RuntimeError)) == 1 and "gone" in self.names()

    def test_it_comes_back_meanwhile(self) -> None:
        """Whoever is up again when it is committed stays."""
        forgetting = self.make()
        back = make_server(3, name="gone")
        self.table.put(back.key, back.to_value())
        self.failureResultOf(forgetting.forget(server_id(3)), PreconditionFailed)
