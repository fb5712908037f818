"""Named stories of farms that are divided by takeovers by hand; each raises `Violation` if something does not hold."""

from __future__ import annotations

from attrs import evolve

from chunkfarm.old_disks import OLDER_THAN_CONFIG
from tests.simulation.checks import Violation
from tests.simulation.divided import PREFIX, LineSimulation
from tests.simulation.farm import SERVE_WITHIN
from tests.simulation.faults import both
from tests.simulation.servers import SimulatedServer


class DividedStory(LineSimulation):
    """A farm of so many servers, without weather."""

    def __init__(self, seed: int, servers: int) -> None:
        super().__init__(seed)
        self.options = evolve(self.options, servers=servers)

    def grow(self) -> None:
        """All have begun, and the first three vote."""
        self.begin()
        self.must(self.everybody_has_begun, SERVE_WITHIN, "begin")
        self.run_for(10.0)

    def take_over(self, server: SimulatedServer) -> None:
        """An admin says TAKEOVER there, and it is done."""
        before = self.taken_over
        self._say_to(server)
        self.must(lambda: self.taken_over > before, SERVE_WITHIN, "take over")

    def leads(self, server: SimulatedServer) -> bool:
        return server.parts is not None and server.parts.embedded.is_leader


def away_from_both(seed: int) -> None:
    """Two sides took over, met and stopped; two masters that come back later must not serve what neither has."""
    with DividedStory(seed, 4) as farm:
        farm.grow()
        one, *away, other = farm.servers
        for server in away:
            server.kill()
        farm.faults._cut(both(one, other), 20.0)
        farm.run_for(10.0)
        farm.take_over(one)
        farm.take_over(other)
        farm.must(lambda: farm.stopped == [one, other], SERVE_WITHIN, "stop who took over")
        for server in away:
            server.start()
        farm.run_for(40.0)
        if serving := [server.name for server in farm.servers if server.is_serving]:
            raise Violation(f"divided: {serving} serve what neither side has")


def terms_of_the_lost(seed: int) -> None:
    """A lost majority elected somebody, whose entries nobody has committed, and who comes back to the new line.

    Nobody of the new line has heard of that term, and nothing of it may pass for a part of that line.
    """
    with DividedStory(seed, 3) as farm:
        farm.grow()
        first = next(server for server in farm.servers if farm.leads(server))
        lost = [server for server in farm.servers if server is not first]
        for server in lost:
            farm.faults._cut(both(first, server), 300.0)
        farm.must(lambda: any(map(farm.leads, lost)), SERVE_WITHIN, "elect")
        (elected,) = filter(farm.leads, lost)
        (voter,) = [server for server in lost if server is not elected]
        farm.faults._cut(both(voter, elected), 300.0)
        assert elected.parts is not None and elected.process is not None
        elected.process.at(0.0, farm._put, elected.parts, PREFIX + b"of the lost")
        farm.run_for(0.5)
        for server in lost:
            server.kill()
        farm.take_over(first)
        for way in sorted(farm.network.cut):
            farm.network.open_way(*way)
        elected.start()
        farm.must(lambda: first.is_serving and elected.is_serving, SERVE_WITHIN, "serve the new line")
        farm.run_for(5.0)
        farm.check()


def who_only_follows(seed: int) -> None:
    """A server without a table followed the side that stops; from then on it knows what the other side knows."""
    with DividedStory(seed, 7) as farm:
        farm.grow()
        holders = [server for server in farm.servers if server.parts is not None and server.parts.embedded.holds_rows]
        follower = max((server for server in farm.servers if server not in holders), key=lambda server: server.number)
        first = next(server for server in holders if farm.leads(server))
        assert first.parts is not None and first.process is not None
        voters = first.parts.embedded.configuration.voters
        alone = next(server for server in holders if server is not first and server.id in voters)
        for server in farm.servers:
            if server is not alone:
                farm.faults._cut(both(alone, server), 40.0)
        farm.run_for(8.0)
        first.process.at(0.0, first.parts.registry.set_farm, lambda options: evolve(options, replicas=2))
        farm.run_for(4.0)
        farm.take_over(alone)
        farm.run_for(60.0)
        assert alone.parts is not None and follower.parts is not None
        if not (alone.is_serving and follower.is_serving) or first not in farm.stopped:
            raise Violation(f"divided: {[(server.name, server.state) for server in farm.servers]}")
        mine, there = follower.parts.roster, alone.parts.roster
        if (mine.options, mine.generation) != (there.options, there.generation) or mine.servers != there.servers:
            raise Violation(f"followed: {mine.revision} {mine.options}, and {there.revision} {there.options}")


def nobody_can_teach(seed: int) -> None:
    """The only one that votes has an old disk: it says what it waits for, and what a person can do about it."""
    with DividedStory(seed, 2) as farm:
        farm.grow()
        first = next(server for server in farm.servers if farm.leads(server))
        (other,) = [server for server in farm.servers if server is not first]
        other.kill()
        assert first.parts is not None and first.process is not None
        table = first.parts.embedded
        farm.must(lambda: table.configuration.voters == {first.id}, SERVE_WITHIN, "go on alone")
        farm.run_for(2.0)
        copy = first.copy_disk()
        first.process.at(0.0, first.parts.registry.set_farm, lambda options: evolve(options, replicas=2))
        farm.must(lambda: "replicas = 2" in first.config.read_text(), SERVE_WITHIN, "write a list newer than the copy")
        first.kill()
        first.put_back(copy)
        first.start()
        other.start()
        farm.run_for(20.0)
        state = first.parts.state
        if state.phase != "waiting" or [wait.error for wait in state.waits] != [OLDER_THAN_CONFIG]:
            raise Violation(f"old disk: {first.name} is {state.phase}, and waits for {state.waits}")
        if "takeover" not in "".join(state.cures):
            raise Violation(f"old disk: {first.name} says {state.cures}")
        farm.take_over(first)
        farm.must(farm.everybody_has_begun, SERVE_WITHIN, "serve")
        farm.check()
