from __future__ import annotations

import random

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.placement import order, owners, reading_order, writers, writing_order
from chunkfarm.model import Server, digest_of
from tests.chunks.builders import make_server, make_servers

digests = st.binary(min_size=32, max_size=32)


@st.composite
def tables(draw: st.DrawFn) -> list[Server]:
    """Server tables of every shape: weights, zones, states, full ones."""
    count = draw(st.integers(0, 9))
    return [
        make_server(
            number,
            weight=draw(st.sampled_from([0, 1, 1, 2, 1000])),
            zone=draw(st.sampled_from(["", "a", "b", "c"])),
            state=draw(st.sampled_from(["up", "up", "up", "down", "leaving", "draining"])),
            full=draw(st.sampled_from([False, False, True])),
        )
        for number in range(1, count + 1)
    ]


class OrderTests(SynchronousTestCase):
    @given(digests, tables(), st.randoms())
    def test_same_everywhere(self, digest: bytes, servers: list[Server], shuffler: random.Random) -> None:
        """Every server computes the same order, however its table happens to be sorted."""
        shuffled = list(servers)
        shuffler.shuffle(shuffled)
        assert order(digest, servers) == order(digest, shuffled)
        assert owners(digest, servers, 3) == owners(digest, shuffled, 3)
        assert writers(digest, servers, 3) == writers(digest, shuffled, 3)

    def test_never_changes(self) -> None:
        """The order is part of what farms have stored: a new version computes the same."""
        line = order(digest_of(b"chunk"), [make_server(number, weight=number) for number in range(1, 7)])
        assert [server.name for server in line] == ["s5", "s2", "s6", "s4", "s1", "s3"]

    @given(digests, tables())
    def test_everybody_who_stores(self, digest: bytes, servers: list[Server]) -> None:
        """The order has every server that stores once, whatever its state."""
        assert sorted(server.id for server in order(digest, servers)) == [s.id for s in servers if s.weight]

    @given(digests, tables())
    def test_state_is_no_matter(self, digest: bytes, servers: list[Server]) -> None:
        """A server that goes down or fills up moves no chunk."""
        changed = [evolve(server, state="down", full=not server.full) for server in servers]
        assert [s.id for s in order(digest, servers)] == [s.id for s in order(digest, changed)]

    def test_proportion(self) -> None:
        """Chunks fall to servers in proportion to their weights."""
        servers = [make_server(number, weight=number) for number in (1, 2, 3, 4)]
        count = 20000
        firsts = [order(digest_of(b"%d" % number), servers)[0].weight for number in range(count)]
        for weight in (1, 2, 3, 4):
            assert abs(firsts.count(weight) / count - weight / 10) < 0.015

    def test_a_heavier_server_only_gains(self) -> None:
        """When a server's weight grows, chunks move to it and nowhere else."""
        before = make_servers(5)
        after = (evolve(before[0], weight=3), *before[1:])
        for number in range(500):
            old, new = (order(digest_of(b"%d" % number), table)[0].id for table in (before, after))
            assert new in (old, before[0].id)


class OwnersTests(SynchronousTestCase):
    @given(digests, tables(), st.integers(1, 5))
    def test_zones(self, digest: bytes, servers: list[Server], replicas: int) -> None:
        """Copies are in as many zones as there are, and are as many as there are servers for."""
        able = [server for server in servers if server.weight and server.state != "draining"]
        found = owners(digest, servers, replicas)
        zones = {server.zone or server.id for server in able}
        assert len(found) == len({server.id for server in found}) == min(replicas, len(able))
        assert len({server.zone or server.id for server in found}) == min(replicas, len(zones))
        line = order(digest, servers)
        assert [line.index(server) for server in found] == sorted(line.index(server) for server in found)

    @given(digests, tables(), st.integers(1, 5), st.sampled_from(["", "a", "d"]), st.integers(1, 5))
    @settings(max_examples=300)
    def test_a_new_server_only_gains(
        self, digest: bytes, servers: list[Server], replicas: int, zone: str, weight: int
    ) -> None:
        """A server that joins takes over its share; no chunk moves between the others."""
        newcomer = make_server(99, zone=zone, weight=weight)
        before = {server.id for server in owners(digest, servers, replicas)}
        after = {server.id for server in owners(digest, [*servers, newcomer], replicas)}
        assert after <= before | {newcomer.id}

    @given(digests, tables(), st.integers(1, 5))
    def test_writers(self, digest: bytes, servers: list[Server], replicas: int) -> None:
        """New chunks go to the owners that can take them; for each that cannot, the next one steps in."""
        able = [server for server in servers if server.weight and server.state == "up" and not server.full]
        found = writers(digest, servers, replicas)
        assert len(found) == min(replicas, len(able))
        assert set(found) <= set(able)
        assert set(owners(digest, servers, replicas)) & set(able) <= set(found)

    @given(digests, tables(), st.integers(1, 5))
    def test_writing_order(self, digest: bytes, servers: list[Server], replicas: int) -> None:
        """The writers come first, then everybody else who could take the chunk."""
        line = writing_order(digest, servers, replicas)
        chosen = writers(digest, servers, replicas)
        assert line[: len(chosen)] == chosen
        assert {s.id for s in line} == {s.id for s in servers if s.weight and s.state == "up" and not s.full}
        assert len(line) == len(set(line))

    @given(digests, tables(), st.integers(1, 5))
    def test_reading_order(self, digest: bytes, servers: list[Server], replicas: int) -> None:
        """A reader may ask down to the last server of the table, those that are down last."""
        line = reading_order(digest, servers, replicas, "a")
        assert sorted(server.id for server in line) == [server.id for server in servers]
        assert [s.state == "down" for s in line] == sorted(s.state == "down" for s in line)

    def test_nearest_first(self) -> None:
        """Of the owners the one in the reader's zone is asked first; a stranger in that zone is not."""
        servers = make_servers(6)
        digest = digest_of(b"chunk")
        chosen = owners(digest, servers, 3)
        near = reading_order(digest, servers, 3, chosen[2].zone)
        assert near[:3] == (chosen[2], chosen[0], chosen[1])
        stranger = order(digest, servers)[5]
        assert reading_order(digest, servers, 3, stranger.zone)[:3] == chosen
