"""What the ports are answered by a server's parts."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import membership
from chunkfarm.backend import ServerBackend
from chunkfarm.failed_attempts import PAUSE_FIRST, PAUSE_MOST, FailedAttempts
from chunkfarm.model import Server
from tests.builders import server_id


class FailedAttemptsTests(SynchronousTestCase):
    def test_one_network_of_ipv6(self) -> None:
        """Whoever tries wrong keys from all addresses of an IPv6 network waits as from one."""
        parts: Any = SimpleNamespace(failed_attempts=FailedAttempts(), reactor=Clock())
        backend = ServerBackend(parts)
        pauses = [backend.failed_attempt(f"2001:db8::{number:x}") for number in range(12)]
        assert pauses[-1] == PAUSE_MOST
        assert backend.failed_attempt("2001:db8:0:1::1") == PAUSE_FIRST
        assert backend.failed_attempt("::ffff:10.0.0.1") == backend.failed_attempt("10.0.0.2") == PAUSE_FIRST


ROWS = tuple(
    Server(
        id=server_id(number),
        name=f"s{number}",
        host="10.0.0.1",
        client=1,
        peer=2,
        files=3,
        seniority=number,
        state="up",
    )
    for number in range(1, 5)
)


class SuccessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rows, self.voters, self.first = ROWS, frozenset({ROWS[0].id}), ROWS[0].id
        configuration = SimpleNamespace(voters=self.voters)
        parts: Any = SimpleNamespace(
            servers=lambda: self.rows,
            first=lambda: self.first,
            embedded=SimpleNamespace(configuration=configuration),
        )
        self.configuration = configuration
        self.backend = ServerBackend(parts)

    def right(self) -> tuple[membership.Standing, ...]:
        return membership.succession(self.rows, self.configuration.voters, self.first)

    def test_worked_out_once(self) -> None:
        """As long as nothing changes the line is not worked out again."""
        assert self.backend.succession() == self.right()
        assert self.backend.succession() is self.backend.succession()

    def test_changes(self) -> None:
        """Other rows, other masters that vote, and another first each make another line."""
        seen = [self.backend.succession()]
        self.rows = (evolve(ROWS[0], state="down"), *ROWS[1:])
        seen.append(self.backend.succession())
        self.first = ROWS[1].id
        seen.append(self.backend.succession())
        self.configuration.voters = frozenset(row.id for row in ROWS[:3])
        seen.append(self.backend.succession())
        assert seen[-1] == self.right()
        assert all(one != other for one, other in pairwise(seen))
