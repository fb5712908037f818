"""What is to be done about a chunk, and what comes first."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks import placement, repair
from chunkfarm.chunks.repair import Backlog, Bucket, Meter, Progress
from chunkfarm.model import MIB, Server, digest_of
from tests.chunks.builders import make_server, make_servers

DIGEST = digest_of(b"a chunk")


@st.composite
def farms(draw: st.DrawFn) -> tuple[Server, ...]:
    """Up to seven servers in any state."""
    servers = []
    for number in range(1, draw(st.integers(2, 8))):
        state = draw(st.sampled_from(["up", "up", "up", "down", "leaving", "draining"]))
        servers.append(
            make_server(
                number,
                state=state,
                weight=draw(st.sampled_from([0, 1, 1, 5])),
                full=draw(st.sampled_from([False, False, False, True])),
                given_up=state == "down" and draw(st.booleans()),
            )
        )
    return tuple(servers)


digests = st.binary(min_size=32, max_size=32)
numbers = st.sets(st.integers(1, 8))


class NeedTests(SynchronousTestCase):
    @given(digests, farms(), st.integers(1, 4), numbers)
    @settings(max_examples=300, deadline=None)
    def test_what_holds_of_every_need(
        self, digest: bytes, servers: tuple[Server, ...], replicas: int, numbers: set[int]
    ) -> None:
        """Nobody is sent what it has or cannot take, no more are sent than are missing, and one that has it sends."""
        holders = {server.id for server in servers if int(server.id, 16) in numbers}
        need = repair.need(digest, servers, replicas, holders)
        owners = placement.owners(digest, servers, replicas)
        assert need.wanted == len(owners) <= replicas
        assert len(set(need.targets)) == len(need.targets)
        for target in need.targets:
            assert placement.takes_chunks(target) and target.id not in holders
        assert need.sender in holders if holders else need.sender == ""
        for owner in owners:
            if owner.id not in holders and placement.takes_chunks(owner):
                assert owner in need.targets
        standing_in = [target for target in need.targets if target not in owners]
        assert need.staying + len(need.targets) <= need.wanted or not standing_in

    @given(digests, farms(), st.integers(1, 4), numbers)
    @settings(max_examples=300, deadline=None)
    def test_what_is_sent_is_enough(
        self, digest: bytes, servers: tuple[Server, ...], replicas: int, numbers: set[int]
    ) -> None:
        """Once what is to be sent is there, nothing more is to be sent, and too few copies have a reason."""
        holders = {server.id for server in servers if int(server.id, 16) in numbers}
        need = repair.need(digest, servers, replicas, holders)
        after = repair.need(digest, servers, replicas, holders | {target.id for target in need.targets})
        assert after.targets == ()
        if after.is_short:
            owners = placement.owners(digest, servers, replicas)
            awaited = [one for one in owners if one.state in ("down", "leaving") and one.id not in holders]
            free = [one for one in servers if placement.takes_chunks(one) and one.id not in holders]
            assert awaited or not set(free) - set(need.targets)

    def test_an_owner_that_is_down(self) -> None:
        """It is waited for: nobody stands in before it is given up. The chunk is short all the same."""
        servers = make_servers(5)
        first, second, third, *others = placement.order(DIGEST, servers)
        down = tuple(evolve(one, state="down") if one == third else one for one in servers)
        need = repair.need(DIGEST, down, 3, {first.id, second.id})
        assert need.targets == () and need.is_short and need.sender == first.id
        given_up = tuple(evolve(one, state="down", given_up=True) if one == third else one for one in servers)
        need = repair.need(DIGEST, given_up, 3, {first.id, second.id})
        assert need.targets == (others[0],) and need.is_short

    def test_an_owner_that_is_full(self) -> None:
        """The next in order stands in for it, unless that one has a copy already."""
        servers = make_servers(5)
        first, second, third, *others = placement.order(DIGEST, servers)
        full = tuple(evolve(one, full=True) if one == third else one for one in servers)
        assert repair.need(DIGEST, full, 3, {first.id, second.id}).targets == (others[0],)
        assert repair.need(DIGEST, full, 3, {first.id, second.id, others[1].id}).targets == ()

    def test_a_server_that_is_emptied(self) -> None:
        """Its copy is sent to whoever owns the chunk now. While it is there it counts: nothing is short by emptying."""
        servers = make_servers(4)
        first, second, third, fourth = placement.order(DIGEST, servers)
        draining = tuple(evolve(one, state="draining") if one == first else one for one in servers)
        need = repair.need(DIGEST, draining, 3, {first.id})
        assert [one.id for one in need.targets] == [second.id, third.id, fourth.id]
        assert (need.copies, need.staying, need.sender) == (1, 0, first.id)
        moving = repair.need(DIGEST, draining, 3, {first.id, second.id, third.id})
        assert moving.targets == (fourth,) and not moving.is_short
        by_flag = tuple(evolve(one, state="down", draining=True) if one == first else one for one in servers)
        assert repair.need(DIGEST, by_flag, 3, {second.id, third.id}).targets == (fourth,)

    def test_one_sender(self) -> None:
        """Of several that have the chunk the most entitled owner sends it; if it has lost its copy, the next."""
        servers = make_servers(5)
        _, second, third, *others = placement.order(DIGEST, servers)
        assert repair.need(DIGEST, servers, 3, {second.id, third.id, others[0].id}).sender == second.id
        assert repair.need(DIGEST, servers, 3, {others[1].id, others[0].id}).sender == others[0].id

    def test_whom_to_ask(self) -> None:
        """The owners that may answer, then as many others as there should be copies."""
        servers = make_servers(7)
        line = placement.order(DIGEST, servers)
        down = tuple(evolve(one, state="down") if one == line[1] else one for one in servers)
        assert [one.id for one in repair.owners_to_ask(DIGEST, down, 3)] == [line[0].id, line[2].id]
        asked = {line[0].id, line[2].id}
        others = repair.others_to_ask(DIGEST, down, 3, asked)
        assert [one.id for one in others] == [one.id for one in line[3:6]]


class ChangeTests(SynchronousTestCase):
    @given(digests, farms(), farms(), st.integers(1, 4))
    @settings(max_examples=300, deadline=None)
    def test_who_is_not_affected(
        self, digest: bytes, before: tuple[Server, ...], after: tuple[Server, ...], replicas: int
    ) -> None:
        """A chunk that a change does not touch needs afterwards what it needed before, if its owners had it."""
        if repair.is_affected(digest, before, after, (replicas, replicas)):
            return
        holders = {owner.id for owner in placement.owners(digest, before, replicas)}
        first, second = (repair.need(digest, servers, replicas, holders) for servers in (before, after))
        assert [one.id for one in first.targets] == [one.id for one in second.targets] == []
        assert first.sender == second.sender

    def test_who_stands_in_for_a_full_owner(self) -> None:
        """While an owner is full a chunk is touched by what happens to the server that has its copy, and no others."""
        servers = make_servers(7)
        digest = bytes(32)
        line = placement.order(digest, servers)

        def changed(number: int, rows: tuple[Server, ...], **fields: Any) -> tuple[Server, ...]:
            return tuple(evolve(one, **fields) if one.id == line[number].id else one for one in rows)

        full = changed(1, servers, full=True)
        for fields in ({"state": "down"}, {"incarnation": "another"}, {"given_up": True}, {"weight": 0}):
            assert repair.is_affected(digest, full, changed(3, full, **fields), (3, 3)), fields
            assert not repair.is_affected(digest, servers, changed(3, servers, **fields), (3, 3)), fields
            assert not repair.is_affected(digest, full, changed(4, full, **fields), (3, 3)), fields
        more = changed(3, full, full=True)
        assert repair.is_affected(digest, more, changed(4, more, state="down"), (3, 3))

    def test_what_changes_nothing(self) -> None:
        """Free space, versions and notes move no chunk; states, weights and zones do."""
        servers = make_servers(3)
        standing = repair.standing(servers, 3)
        rest = tuple(evolve(one, free=7, used=8, version="2", note="x", joined=5) for one in servers)
        assert repair.standing(rest, 3) == standing
        changes: tuple[dict[str, Any], ...] = (
            {"state": "down"}, {"weight": 9}, {"zone": "q"}, {"full": True}, {"given_up": True}, {"incarnation": "2"}
        )  # fmt: skip
        for change in changes:
            changed = tuple(evolve(one, **change) if one is servers[0] else one for one in servers)
            assert repair.standing(changed, 3) != standing, change
        assert repair.standing(servers, 2) != standing


class BacklogTests(SynchronousTestCase):
    @given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.booleans())))
    def test_fewest_copies_first(self, happening: list[tuple[int, int, bool]]) -> None:
        """Whatever was noted or taken back: what comes out has the fewest copies of all, and each comes once."""
        backlog = Backlog()
        noted: dict[bytes, int] = {}
        for number, copies, add in happening:
            digest = bytes([number])
            if add:
                backlog.add(digest, copies, 10)
                noted[digest] = copies
            else:
                backlog.discard(digest)
                noted.pop(digest, None)
            assert (len(backlog), backlog.size) == (len(noted), 10 * len(noted))
            assert backlog.fewest == min(noted.values(), default=None)
        while noted:
            fewest = min(noted.values())
            taken = backlog.take(2)
            assert taken and all(noted.pop(digest) == fewest for digest in taken)
        assert backlog.take(2) == [] and backlog.size == 0


class PaceTests(SynchronousTestCase):
    def test_bucket(self) -> None:
        """Over time no more bytes move than the rate allows; a pause saves up no more than a burst."""
        bucket = Bucket(rate=100, burst=50)
        assert bucket.take(0, 50) == 0
        assert bucket.take(0, 100) == 1
        assert bucket.take(1, 100) == pytest.approx(1)
        assert bucket.take(1000, 150) == pytest.approx(1)
        assert Bucket(rate=0, burst=1).take(0, 10**9) == 0

    def test_meter(self) -> None:
        """A steady flow is shown as it is, and fades when it ends."""
        meter = Meter(2.0)
        for tick in range(200):
            meter.note(tick / 10, MIB)
        assert meter.rate(20.0) == pytest.approx(10 * MIB, rel=0.1)
        assert meter.rate(40.0) < 1000

    def test_meter_at_the_beginning(self) -> None:
        """What has only just begun to move is shown as fast as it is; after a silence it is known to be one."""
        meter = Meter(30.0)
        meter.begin(100.0)
        for tick in range(1, 31):
            meter.note(100.0 + tick / 10, MIB)
        assert meter.rate(103.0) == pytest.approx(10 * MIB, rel=0.1)
        assert not meter.is_silent(130.0) and meter.is_silent(134.0)


class ProgressTests(SynchronousTestCase):
    def test_time_left(self) -> None:
        """It is told while something moves and something is left."""
        assert Progress(left=3, bytes_left=1000, rate=100).seconds_left == 10
        assert Progress(left=3, bytes_left=1000).seconds_left is None
        assert Progress(rate=100).seconds_left is None
        pairs = dict(Progress(left=3, bytes_left=1000, rate=100, paused="files are read").pairs())
        assert (pairs["repair-left"], pairs["repair-seconds-left"]) == ("3", "10")
        assert pairs["repair-paused"] == "files are read"
