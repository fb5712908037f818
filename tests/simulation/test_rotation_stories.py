"""Named stories of farms that change their CA, while servers come, go and are killed."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import rotating
from chunkfarm.model import Server
from chunkfarm.rotation import INTRODUCED_MS, Rotation
from chunkfarm.trust.authority import fingerprint
from tests.simulation.servers import SimulatedServer
from tests.simulation.stage import Stage


def rotation(server: SimulatedServer) -> Rotation | None:
    """How far that server thinks that it is."""
    assert server.parts is not None
    return server.parts.beliefs.rotation


def ca_of(server: SimulatedServer) -> str:
    """The fingerprint of the CA that signed its certificate."""
    assert server.parts is not None and server.parts.contexts.identity is not None
    return server.parts.contexts.identity.ca_fingerprint


def seals(server: SimulatedServer) -> str:
    """The digest of the key with which it seals."""
    assert server.parts is not None and server.parts.seal is not None
    return server.parts.seal.digest


def want(farm: Stage) -> None:
    """An admin asks for another CA."""
    farm.ask(farm[1], lambda table: table.transact((), (rotating.wanted("an admin wants it"),)))


def is_done(farm: Stage, server: SimulatedServer, old: str) -> bool:
    """Whether all of it is another one there."""
    now = rotation(server) if server.is_serving else None
    return (
        now is not None
        and now.step == "done"
        and ca_of(server) == now.fingerprint != old
        and seals(server) == now.seal
        and f"ca = {now.fingerprint}" in server.recorded
    )


class RotationStories(SynchronousTestCase):
    """Three servers, and what they do meanwhile."""

    def play(self, story: Callable[[Stage, str], None]) -> None:
        with Stage() as farm:
            farm.grow(3)
            farm.until(lambda: len(farm.voters()) == 3, "three vote")
            farm.remember(farm[1], "before")
            old = ca_of(farm[1])
            story(farm, old)
            farm.until(lambda: all(is_done(farm, one, old) for one in farm.servers), "all have another CA")
            farm.remember(farm[3], "after")
            farm.end()
            assert len({seals(one) for one in farm.servers}) == 1

    def test_nothing_else_happens(self) -> None:
        """All get certificates of another CA, config.ini names it, and nobody stops serving."""

        def story(farm: Stage, old: str) -> None:
            want(farm)
            for _ in range(40):
                farm.wait(0.25)
                assert all(server.is_serving for server in farm.servers)

        self.play(story)

    def test_the_first_dies_at_each_step(self) -> None:
        """Whoever leads next goes on, or begins anew where only the dead one had the new key."""
        for step in ("trusting", "renewing", "done"):

            def story(farm: Stage, old: str, step: str = step) -> None:
                first = farm.first
                want(farm)
                farm.until(lambda: reached(first, step), f"it is {step}")
                first.kill()
                farm.serve(*(one for one in farm.servers if one is not first), seconds=20.0)
                farm.wait(5.0)
                first.start()

            self.play(story)

    def test_the_first_dies_at_any_moment(self) -> None:
        """A crash of the first in the middle of whatever it does, and at once again, stops nothing for good."""
        for number in (1, 3, 4, 6):

            def story(farm: Stage, old: str, number: int = number) -> None:
                first = farm.first
                want(farm)
                farm.wait(0.37 * number)
                first.kill()
                farm.wait(0.5)
                first.start()

            self.play(story)

    def test_nobody_is_left_for_a_while(self) -> None:
        """All lose their power while the second CA is being made known, and while it signs."""
        for step in ("trusting", "renewing"):

            def story(farm: Stage, old: str, step: str = step) -> None:
                first = farm.first
                want(farm)
                farm.until(lambda: reached(first, step), f"it is {step}")
                for server in farm.servers:
                    server.cut_power()
                farm.wait(3.0)
                for server in farm.servers:
                    server.power_on()
                    server.start()

            self.play(story)

    def test_a_server_is_away(self) -> None:
        """Who was down all the time comes back with a certificate of the old CA: its key stands in its row."""

        def story(farm: Stage, old: str) -> None:
            farm[3].kill()
            farm.until(lambda: any(row.state == "down" for row in rows(farm)), "it is down")
            want(farm)
            farm.until(lambda: all(is_done(farm, one, old) for one in farm.servers[:2]), "the others are done")
            farm[3].start()

        self.play(story)

    def test_a_server_without_rows_is_away(self) -> None:
        """One that holds no table knows the others by what introduces their CA to it."""

        def story(farm: Stage, old: str) -> None:
            farm.grow(6)
            away = next(one for one in farm.servers if one.parts and not one.parts.embedded.holds_rows)
            away.kill()
            farm.until(lambda: any(row.state == "down" for row in rows(farm)), "it is down")
            want(farm)
            others = [one for one in farm.servers if one is not away]
            farm.until(lambda: all(is_done(farm, one, old) for one in others), "the others are done")
            away.start()

        self.play(story)

    def test_a_server_without_rows_is_away_for_two(self) -> None:
        """It follows from the CA that it knows to the next, and from that to the one after."""

        def story(farm: Stage, old: str) -> None:
            farm.grow(6)
            away = next(one for one in farm.servers if one.parts and not one.parts.embedded.holds_rows)
            away.kill()
            farm.until(lambda: any(row.state == "down" for row in rows(farm)), "it is down")
            others = [one for one in farm.servers if one is not away]
            for _ in range(2):
                before = ca_of(others[0])
                want(farm)
                farm.until(lambda before=before: all(is_done(farm, one, before) for one in others), "they are done")  # type: ignore[misc]
            away.start()

        self.play(story)

    def test_twice(self) -> None:
        """It is asked for again while it is under way, and all get a third one."""

        def story(farm: Stage, old: str) -> None:
            want(farm)
            farm.until(lambda: reached(farm[1], "renewing"), "it is under way")
            second = fingerprint(rotation_of(farm[1]).ca.encode())
            want(farm)
            farm.until(lambda: reached(farm[1], "done") and ca_of(farm[1]) != second, "there is a third one")

        self.play(story)

    def test_a_server_joins_meanwhile(self) -> None:
        """Who joins while the second CA is made known belongs like all others."""

        def story(farm: Stage, old: str) -> None:
            first = farm.first
            server = farm.add_server()
            farm.prepare(server)
            want(farm)
            farm.until(lambda: reached(first, "trusting"), "it is made known")
            server.start()

        self.play(story)

    def test_nobody_can_open_the_secrets(self) -> None:
        """As after a restore without seal.key: the farm gets another CA all the same, which nobody introduces."""
        with Stage() as farm:
            farm.grow(2)
            old = ca_of(farm[1])
            for server in farm.servers:
                server.stop()
            farm.until(lambda: not any(server.is_up for server in farm.servers), "both have stopped")
            for server in farm.servers:
                (server.folder / "data" / "seal.key").unlink()
                server.start()
            farm.serve()
            want(farm)
            farm.until(lambda: all(is_done(farm, one, old) for one in farm.servers), "both have another CA")
            assert rotation_of(farm[1]).introduction == ""
            farm.end()

    def test_the_clients_know_the_old_one_for_a_day(self) -> None:
        """Then what introduces the CA is shown to servers alone."""

        def story(farm: Stage, old: str) -> None:
            want(farm)
            farm.until(lambda: all(is_done(farm, one, old) for one in farm.servers), "all have another CA")
            assert all(shows(server) for server in farm.servers)
            for server in farm.servers:
                server.clock_offset += INTRODUCED_MS
            farm.until(lambda: not any(shows(server) for server in farm.servers), "a day is over")
            for server in farm.servers:
                server.clock_offset -= INTRODUCED_MS
            want(farm)
            farm.until(lambda: reached(farm[1], "done"), "it can be done again")

        self.play(story)


def shows(server: SimulatedServer) -> bool:
    assert server.parts is not None
    return server.parts.contexts.introduces_to_clients


def rotation_of(server: SimulatedServer) -> Rotation:
    found = rotation(server)
    assert found is not None
    return found


def reached(server: SimulatedServer, step: str) -> bool:
    found = rotation(server) if server.parts is not None else None
    return found is not None and found.step == step


def rows(farm: Stage) -> tuple[Server, ...]:
    parts = farm.first.parts
    assert parts is not None
    return parts.servers()
