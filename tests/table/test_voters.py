"""Which server votes next, and which one goes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.membership import masters
from chunkfarm.model import Server
from chunkfarm.table.records import Configuration
from chunkfarm.table.voters import View, heir, next_configuration, to_drop
from tests.builders import make_server, server_id


def numbers(*values: int) -> frozenset[str]:
    return frozenset(server_id(value) for value in values)


class NextConfigurationTests(SynchronousTestCase):
    """One single-server change at a time, copies before losses."""

    def make_view(
        self,
        servers: list[Server],
        voters: frozenset[str],
        learners: frozenset[str] = frozenset(),
        leader: int = 1,
        **changes: Any,
    ) -> View:
        arguments: dict[str, Any] = {
            "caught_up": numbers(*range(1, 20)),
            "silent": {},
            "master_grace": 10.0,
            "repair_after": 600.0,
        }
        return View(
            servers=tuple(servers),
            configuration=Configuration(voters, learners),
            leader=server_id(leader),
            **(arguments | changes),
        )

    def test_a_new_server_learns_first(self) -> None:
        """The second server of a farm becomes a learner before it votes."""
        view = self.make_view([make_server(1), make_server(2)], numbers(1))
        assert next_configuration(view) == Configuration(numbers(1), numbers(2))

    def test_a_caught_up_learner_votes(self) -> None:
        """Once it has the whole log it votes."""
        view = self.make_view([make_server(1), make_server(2)], numbers(1), numbers(2))
        assert next_configuration(view) == Configuration(numbers(1, 2))

    def test_a_learner_that_lags_does_not_vote(self) -> None:
        """A vote without the log would hold up every commit, or lose one."""
        view = self.make_view([make_server(1), make_server(2)], numbers(1), numbers(2), caught_up=numbers(1))
        assert next_configuration(view) is None

    def test_three_and_two_are_at_rest(self) -> None:
        """Three voters and two learners is how a farm of six stays."""
        servers = [make_server(number) for number in range(1, 7)]
        assert next_configuration(self.make_view(servers, numbers(1, 2, 3), numbers(4, 5))) is None

    def test_one_of_two_that_leaves_gives_up_its_vote(self) -> None:
        """The other one can then commit alone."""
        view = self.make_view([make_server(1), make_server(2, state="leaving")], numbers(1, 2))
        assert next_configuration(view) == Configuration(numbers(1))

    def test_one_of_three_that_leaves_keeps_its_vote(self) -> None:
        """Two of three are a majority, and it may be back in a moment."""
        view = self.make_view([make_server(1), make_server(2), make_server(3, state="leaving")], numbers(1, 2, 3))
        assert next_configuration(view) is None

    def test_one_of_two_that_is_down_keeps_its_vote(self) -> None:
        """Nobody knows whether it only lost contact."""
        view = self.make_view(
            [make_server(1), make_server(2, state="down")], numbers(1, 2), silent={server_id(2): 60.0}
        )
        assert next_configuration(view) is None

    def test_a_lost_voter_is_replaced(self) -> None:
        """A voter silent for `master_grace` makes room: the learner is promoted first, then the lost one goes."""
        servers = [make_server(1), make_server(2), make_server(3, state="down"), make_server(4)]
        silent = {server_id(3): 10.0}
        view = self.make_view(servers, numbers(1, 2, 3), numbers(4), silent=silent)
        promoted = next_configuration(view)
        assert promoted == Configuration(numbers(1, 2, 3, 4))
        view = self.make_view(servers, promoted.voters, silent=silent)
        assert next_configuration(view) == Configuration(numbers(1, 2, 4))

    def test_a_short_silence_replaces_nobody(self) -> None:
        """A reboot of the network is no reason to move the table."""
        servers = [make_server(1), make_server(2), make_server(3, state="down"), make_server(4)]
        view = self.make_view(servers, numbers(1, 2, 3), numbers(4), silent={server_id(3): 9.9})
        assert next_configuration(view) is None

    def test_with_nobody_to_promote_the_lost_one_stays(self) -> None:
        """Three servers, one down for a minute: it still votes, or the farm would shrink too eagerly."""
        servers = [make_server(1), make_server(2), make_server(3, state="down")]
        view = self.make_view(servers, numbers(1, 2, 3), silent={server_id(3): 60.0})
        assert next_configuration(view) is None

    def test_a_voter_that_was_forgotten(self) -> None:
        """Without a row it is given up at once; of two that are left no third is counted."""
        view = self.make_view([make_server(1), make_server(2)], numbers(1, 2, 3), silent={server_id(3): 6.0})
        assert next_configuration(view) == Configuration(numbers(1, 2))

    def test_after_repair_after_it_goes(self) -> None:
        """Gone for `repair_after`, it is no longer counted."""
        servers = [make_server(1), make_server(2), make_server(3, state="down")]
        view = self.make_view(servers, numbers(1, 2, 3), silent={server_id(3): 600.0})
        assert next_configuration(view) == Configuration(numbers(1, 2))

    def test_not_before_it_could_be_replaced(self) -> None:
        """Where `repair_after` is the shorter of the two, a lost voter keeps its place for `master_grace`."""
        servers = [make_server(1), make_server(2), make_server(3, state="down")]
        view = self.make_view(servers, numbers(1, 2, 3), silent={server_id(3): 9.9}, repair_after=5.0)
        assert next_configuration(view) is None
        view = self.make_view(servers, numbers(1, 2, 3), silent={server_id(3): 10.0}, repair_after=5.0)
        assert next_configuration(view) == Configuration(numbers(1, 2))

    def test_two_voters_are_not_shrunk_by_this_rule(self) -> None:
        """Dropping one of two voters takes more proof than silence."""
        servers = [make_server(1), make_server(2, state="down")]
        view = self.make_view(servers, numbers(1, 2), silent={server_id(2): 6000.0})
        assert next_configuration(view) is None

    def test_one_of_two_keeps_its_vote(self) -> None:
        """The second of two is no master any more: it votes until it leaves, or until there is a third."""
        servers = [make_server(1), make_server(2, master=False)]
        assert next_configuration(self.make_view(servers, numbers(1, 2))) is None
        servers[1] = make_server(2, master=False, state="leaving")
        assert next_configuration(self.make_view(servers, numbers(1, 2))) == Configuration(numbers(1))

    def test_a_lost_partner_is_dropped(self) -> None:
        """Silent for `master_grace`, the other one of two voters goes; not before, and not one of three."""
        servers = [make_server(1), make_server(2)]
        for silent, dropped in ((9.9, None), (10.0, server_id(2))):
            assert to_drop(self.make_view(servers, numbers(1, 2), silent={server_id(2): silent})) == dropped
        assert to_drop(self.make_view(servers, numbers(1, 2, 3), silent={server_id(2): 60.0})) is None
        assert to_drop(self.make_view(servers, numbers(1))) is None

    def test_a_learner_takes_the_place_of_a_lost_partner(self) -> None:
        """A third server that learns is promoted, and nobody is dropped; unless a change is in its way."""
        servers = [make_server(1), make_server(2), make_server(3)]
        silent = {server_id(2): 20.0}
        view = self.make_view(servers, numbers(1, 2), numbers(3), silent=silent)
        assert to_drop(view) is None
        assert next_configuration(view) == Configuration(numbers(1, 2, 3))
        stuck = self.make_view(servers, numbers(1, 2), numbers(3), silent=silent, change_pending=True)
        assert to_drop(stuck) == server_id(2)
        lost_too = self.make_view(servers, numbers(1, 2), numbers(3), silent=silent | {server_id(3): 20.0})
        assert to_drop(lost_too) == server_id(2)

    def test_who_still_learns_takes_nobodys_place(self) -> None:
        """It may never come to an end, and until then nothing can be decided; nor does one that is no master."""
        servers = [make_server(1), make_server(2), make_server(3), make_server(4)]
        silent = {server_id(2): 20.0}
        learning = self.make_view(servers, numbers(1, 2), numbers(3), silent=silent, caught_up=numbers(1))
        assert to_drop(learning) == server_id(2)
        # The third master is gone as well, and what is decided of that would need the second.
        silent[server_id(3)] = 20.0
        fourth = self.make_view(servers, numbers(1, 2), numbers(3, 4), silent=silent, caught_up=numbers(1, 4))
        assert to_drop(fourth) == server_id(2)

    def test_a_stranger_takes_nobodys_place(self) -> None:
        """A third that does not learn yet cannot begin to without the one that is gone."""
        servers = [make_server(1), make_server(2), make_server(3)]
        assert to_drop(self.make_view(servers, numbers(1, 2), silent={server_id(2): 20.0})) == server_id(2)

    def test_a_first_that_came_back_makes_room(self) -> None:
        """The old first rejoined at the end of the line: the fourth votes in its place, and it learns."""
        servers = [make_server(2), make_server(3), make_server(4), make_server(1, seniority=9)]
        view = self.make_view(servers, numbers(1, 2, 3), numbers(4), leader=2)
        promoted = next_configuration(view)
        assert promoted == Configuration(numbers(1, 2, 3, 4))
        reduced = next_configuration(self.make_view(servers, promoted.voters, leader=2))
        assert reduced == Configuration(numbers(2, 3, 4))
        again = next_configuration(self.make_view(servers, reduced.voters, leader=2))
        assert again == Configuration(numbers(2, 3, 4), numbers(1))

    def test_the_leader_never_removes_itself(self) -> None:
        """It hands over first."""
        servers = [make_server(2), make_server(3), make_server(4), make_server(1, seniority=9)]
        view = self.make_view(servers, numbers(1, 2, 3, 4), leader=1)
        assert next_configuration(view) is None
        assert heir(view) == server_id(2)

    def test_the_most_senior_leads(self) -> None:
        """Nothing is handed over when the right one leads."""
        servers = [make_server(1), make_server(2)]
        assert heir(self.make_view(servers, numbers(1, 2))) is None
        assert heir(self.make_view(servers, numbers(1, 2), leader=2)) == server_id(1)

    def test_a_senior_that_lags_is_not_handed_the_lead(self) -> None:
        """Leadership goes only to a voter that has everything."""
        servers = [make_server(1), make_server(2)]
        view = self.make_view(servers, numbers(1, 2), leader=2, caught_up=numbers(2))
        assert heir(view) is None

    def test_all_masters_on_one_machine(self) -> None:
        """Three servers of one machine vote; two machines join later: the one machine may die after that."""
        servers = [make_server(number, zone="one") for number in (1, 2, 3)]
        assert next_configuration(self.make_view(servers, numbers(1, 2, 3))) is None
        servers += [make_server(4, zone="two"), make_server(5, zone="three")]
        configuration = Configuration(numbers(1, 2, 3))
        for _ in range(10):
            step = next_configuration(self.make_view(servers, configuration.voters, configuration.learners))
            configuration = step or configuration
        assert configuration.voters == numbers(1, 4, 5)

    @given(st.data())
    def test_it_comes_to_rest_at_the_masters(self, data: st.DataObject) -> None:
        """From any configuration with everyone alive, single steps lead to the masters and stop there."""
        count = data.draw(st.integers(1, 7))
        servers = [make_server(number, zone=f"z{data.draw(st.integers(0, 4))}") for number in range(1, count + 1)]
        leader = data.draw(st.integers(1, count))
        voters = numbers(leader) | frozenset(
            data.draw(st.sets(st.sampled_from([server.id for server in servers]), max_size=2))
        )
        configuration = Configuration(voters)
        leading = server_id(leader)
        for _ in range(40):
            view = self.make_view(servers, configuration.voters, configuration.learners, leader=int(leading, 16))
            step = next_configuration(view)
            if step is None:
                new = heir(view)
                if new is None:
                    break
                leading = new
                continue
            assert len(step.voters ^ configuration.voters) <= 1
            assert leading in step.voters
            configuration = step
        else:
            self.fail("it never came to rest")
        assert configuration.voters == {server.id for server in masters(servers)}
