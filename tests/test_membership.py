"""Who is first, who is a master, and what people are told about it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.membership import MASTERS, candidates, in_order, learners, masters, succession
from chunkfarm.model import SERVER_STATES, Server
from tests.builders import make_server


def ids(servers: object) -> list[str]:
    return [server.name for server in servers]  # type: ignore[attr-defined]


class MastersTests(SynchronousTestCase):
    """The three most senior live servers, on different zones while there are enough."""

    def test_the_oldest_three(self) -> None:
        """The three servers that joined first are the masters, oldest first."""
        assert ids(masters(make_server(number) for number in (4, 2, 5, 1, 3))) == ["s1", "s2", "s3"]

    def test_a_server_that_is_down_is_no_master(self) -> None:
        """When the first is down the next in line leads."""
        servers = [make_server(1, state="down"), make_server(2), make_server(3), make_server(4)]
        assert ids(masters(servers)) == ["s2", "s3", "s4"]

    def test_a_leaving_server_is_no_master(self) -> None:
        """A server that is leaving is passed over before it has gone."""
        assert ids(masters([make_server(1, state="leaving"), make_server(2)])) == ["s2"]

    def test_a_server_that_is_emptied(self) -> None:
        """It gives the table to the others, and holds it only while they are too few; then it does not lead."""
        servers = [make_server(1, state="draining", draining=True), *map(make_server, (2, 3))]
        assert ids(masters(servers)) == ["s2", "s3", "s1"]
        assert ids(masters([*servers, make_server(4)])) == ["s2", "s3", "s4"]
        reasons = {standing.server.name: standing.reason for standing in succession([*servers, make_server(4)])}
        assert reasons["s1"] == "it is emptied, to be taken out"
        assert "until another server can" in succession(servers)[2].reason

    def test_the_order_of_the_table(self) -> None:
        """Live servers stand first, then those that leave, then those that are down, each oldest first."""
        states = ("down", "leaving", "up", "draining", "down", "leaving")
        servers = [make_server(number, state=state) for number, state in enumerate(states, 1)]
        assert ids(in_order(servers)) == ["s3", "s4", "s2", "s6", "s1", "s5"]

    def test_master_no_keeps_a_server_out(self) -> None:
        """`master = no` is obeyed, however senior the server is."""
        assert ids(masters([make_server(1, master=False), make_server(2)])) == ["s2"]

    def test_other_zones_come_first(self) -> None:
        """Three servers of one machine do not hold all copies of the table once other machines have joined."""
        one_host = [make_server(number, zone="host") for number in (1, 2, 3)]
        later = [make_server(4, zone="other"), make_server(5, zone="third")]
        assert ids(masters(one_host + later)) == ["s1", "s4", "s5"]

    def test_one_zone_is_better_than_too_few_masters(self) -> None:
        """While there are not enough zones, masters share one."""
        assert ids(masters(make_server(number, zone="host") for number in (1, 2, 3, 4))) == ["s1", "s2", "s3"]

    def test_the_next_two_learn(self) -> None:
        """The next two in line are kept caught up."""
        assert ids(learners(make_server(number) for number in range(1, 8))) == ["s4", "s5"]

    @given(
        st.lists(
            st.builds(
                make_server,
                st.integers(1, 30),
                state=st.sampled_from(SERVER_STATES),
                master=st.booleans(),
                zone=st.sampled_from(["a", "b", "c", "d"]),
            ),
            unique_by=lambda server: server.id,
        )
    )
    def test_whatever_the_servers_are(self, servers: list[Server]) -> None:
        """Masters are live, wanted, as many as there can be, spread over the zones there are, oldest first.

        Those that are emptied stand behind the others.
        """
        possible = [server for server in servers if server.state in ("up", "draining") and server.master]
        chosen = masters(servers)
        assert len(chosen) == min(MASTERS, len(possible))
        assert set(chosen) <= set(possible)
        assert list(chosen) == sorted(chosen, key=lambda server: (server.is_emptied, server.seniority))
        staying = [server for server in possible if not server.is_emptied]
        assert sum(not server.is_emptied for server in chosen) == min(MASTERS, len(staying))
        zones = {server.zone for server in staying}
        assert len({server.zone for server in chosen if not server.is_emptied}) == min(MASTERS, len(zones))
        assert sorted(ids(candidates(servers))) == sorted(ids(possible))
        if possible:
            assert chosen[0] == min(staying or possible, key=lambda server: server.seniority)


class SuccessionTests(SynchronousTestCase):
    """What WHO tells."""

    def test_everyone_has_a_role_and_a_reason(self) -> None:
        """Each server stands in the line once, live ones first, with a reason."""
        servers = [make_server(number) for number in (1, 2, 3, 4)] + [make_server(5, state="down", since=1_000)]
        line = succession(servers)
        assert [standing.role for standing in line] == ["first", "master", "master", "server", "server"]
        assert [standing.server for standing in line] == list(in_order(servers))
        assert line[0].reason == "the most senior live master"
        assert line[3].reason == "there are 3 masters ahead of it"
        assert line[4].reason == "it is down since 1970-01-01T00:00:01.000Z"

    def test_who_was_passed_over(self) -> None:
        """A senior that is not a master learns which server stands for its zone."""
        servers = [make_server(1, zone="a"), make_server(2, zone="a"), make_server(3, zone="b"), make_server(4)]
        reasons = {standing.server.name: standing.reason for standing in succession(servers)}
        assert reasons["s2"] == "passed over: s1 stands for the same zone, a"

    def test_a_hand_over_under_way(self) -> None:
        """While a junior still leads, both are told."""
        servers = [make_server(1), make_server(2)]
        line = succession(servers, voters=[servers[1].id], leader=servers[1].id)
        assert "being handed to it" in line[0].reason
        assert "its table is full" in line[0].reason, "as long as there is no room it is not handed back"
        assert [standing.leads for standing in line] == [False, True]
        assert "still catching up" in line[0].reason
        assert "leads until the first does" in line[1].reason
