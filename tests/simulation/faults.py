"""What goes wrong in a simulated farm, as the seed wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chunkfarm import rotating
from tests.simulation.disks import BROKEN, FULL

if TYPE_CHECKING:
    from tests.simulation.farm import FarmSimulation
    from tests.simulation.servers import SimulatedServer

HANG_PAUSE = 12.0
"""Seconds between two disks that hang, on average, in the histories that have such."""
HOURS_2 = 2 * 3600 * 1000
EXPECTED_LOGS = ("while writing to the disk; this process ends", FULL, BROKEN)
"""What the product logs as a failure when a disk fails, which is right."""


class Faults:
    """Makes faults at random, and repairs them."""

    def __init__(self, farm: FarmSimulation) -> None:
        self.count = 0
        """Faults so far."""
        self._farm = farm
        self._world = farm.world
        self._network = farm.network
        self._random = farm.world.random("faults")
        self._rotations = farm.world.random("rotations")
        self.rotated = False
        """Whether somebody wanted another CA."""
        self._hangs = farm.world.random("hangs")

    def begin(self) -> None:
        """From a little later on; in some histories at once, in the middle of the first start."""
        self._world.at(0.3 if self._random.random() < 0.2 else 6.0, None, self._next)
        if self._farm.changes_ca:
            self._world.at(6.0 + self._rotations.random() * self._farm.seconds, None, self._rotate)
        if self._farm.disks_hang:
            self._world.at(1.0 + self._hangs.random() * self._farm.seconds / 2, None, self._hang)

    def expects(self, text: str) -> bool:
        if "while starting" in text:
            # A person reads that one.
            return False
        return any(word in text for word in EXPECTED_LOGS)

    def heal(self) -> None:
        """Repair everything."""
        network = self._network
        network.slow.clear()
        for way in sorted(network.cut):
            network.open_way(*way)
        for server in self._farm.servers:
            server.disk_slow, server.disk_hangs = 0.0, False
            server.disk.full, server.disk.broken, server.disk.cut_at = False, "", 0
            if server.process is not None:
                server.process.thaw()

    def _next(self) -> None:
        if self._farm.healed:
            return
        self.count += 1
        kind = self._random.choice(self._kinds())
        if self._farm.is_founded or kind in self._gentle():
            kind()
        self._world.at(self._random.expovariate(self._farm.options.faults), None, self._next)

    def _kinds(self) -> tuple[Callable[[], None], ...]:
        return (
            self._kill,
            self._kill,
            self._kill_first,
            self._kill_first,
            self._power,
            self._power_in_write,
            self._freeze,
            self._freeze,
            self._isolate,
            self._one_way,
            self._split,
            self._flap,
            self._slow_way,
            self._reset,
            self._clock,
            self._slow_disk,
            self._full_disk,
            self._broken_disk,
            self._stop,
            self._stop_first,
            self._restart_all,
            self._add,
            self._replace,
            self._mix_up,
        )

    def _gentle(self) -> tuple[Callable[[], None], ...]:
        """Those in which no server is gone."""
        return (
            self._freeze,
            self._isolate,
            self._one_way,
            self._split,
            self._flap,
            self._slow_way,
            self._reset,
            self._clock,
            self._full_disk,
        )

    # Whom it meets.

    def _up(self) -> list[SimulatedServer]:
        return [server for server in self._farm.servers if server.is_up]

    def _one(self) -> SimulatedServer | None:
        up = self._up()
        return self._random.choice(up) if up else None

    def _first(self) -> SimulatedServer | None:
        return next((server for server in self._up() if server.parts and server.parts.embedded.is_leader), None)

    def _length(self) -> float:
        """Often so short that nobody has acted, often so long that everybody has."""
        return self._random.choice((0.3, 2.0, 8.0, 20.0)) * (0.5 + self._random.random())

    def _start_later(self, server: SimulatedServer) -> None:
        self._world.at(self._length(), None, server.start)

    # What people do.

    def _rotate(self) -> None:
        """An admin wants another CA, of whichever server can take that."""
        serving = [server for server in self._up() if server.is_serving and server.parts is not None]
        if self._farm.healed:
            return
        if not serving:
            self._world.at(1.0, None, self._rotate)
            return
        server = self._rotations.choice(serving)
        assert server.parts is not None and server.process is not None
        table = server.parts.embedded
        self.rotated = True
        self._world.note(server.name, "is asked for another CA")
        wanted = rotating.wanted("an admin wanted it")
        server.process.at(0.0, lambda: table.transact((), (wanted,)).addErrback(lambda failure: None))

    def _hang(self) -> None:
        """The disk of a server does nothing for a while, and fails nothing either."""
        if self._farm.healed:
            return
        up, first = self._up(), self._first()
        if up:
            self.count += 1
            server = first if first is not None and self._hangs.random() < 0.5 else self._hangs.choice(up)
            seconds = self._hangs.choice((1.0, 5.0, 12.0, 30.0)) * (0.5 + self._hangs.random())
            # Until everything is repaired, at the most.
            seconds = min(seconds, self._farm.seconds - self._world.now)
            self._world.note(server.name, f"has a disk that hangs for {seconds:.1f} s")
            server.disk_hangs_until = self._world.now + seconds
        self._world.at(self._hangs.expovariate(1 / HANG_PAUSE), None, self._hang)

    # Processes and machines.

    def _kill(self, server: SimulatedServer | None = None) -> None:
        server = server or self._one()
        if server is not None:
            server.kill()
            self._start_later(server)

    def _kill_first(self) -> None:
        if (first := self._first()) is not None:
            self._kill(first)

    def _power(self) -> None:
        if (server := self._one()) is not None:
            server.cut_power()
            self._power_later(server)

    def _power_in_write(self) -> None:
        """At a random point of what the journal writes next."""
        if (server := self._one()) is not None:
            server.disk.cut_at = server.disk.points + 1 + self._random.randrange(6)
            self._power_later(server)

    def _power_later(self, server: SimulatedServer) -> None:
        def on() -> None:
            server.power_on()
            self._world.at(self._random.choice((0.1, 3.0)), None, server.start)

        self._world.at(self._length(), None, on)

    def _freeze(self) -> None:
        if (server := self._one()) is not None:
            server.freeze(self._random.choice((1.0, 3.0, 12.0, 60.0)) * (0.5 + self._random.random()))

    def _stop(self, server: SimulatedServer | None = None) -> None:
        server = server or self._one()
        if server is not None:
            server.stop()
            # It takes a while to leave.
            for again in (5.0, 15.0, 30.0):
                self._world.at(again + self._length(), None, server.start)

    def _stop_first(self) -> None:
        if (first := self._first()) is not None:
            self._stop(first)

    def _restart_all(self) -> None:
        """Power or kill for the whole farm."""
        power = self._random.random() < 0.5
        for server in self._up():
            if power:
                server.cut_power()
                self._power_later(server)
            else:
                self._kill(server)

    def _add(self) -> None:
        started = sum(1 for server in self._farm.servers if server.lives)
        if started < self._farm.options.servers + self._farm.options.spares:
            self._farm.join(self._farm.add_server())

    def _replace(self) -> None:
        """A machine loses its disk, and comes back as a new server. Of two voters neither may, or all is lost."""
        server, first = self._one(), self._first()
        if server is None or first is None or first.parts is None or self._wiped:
            return
        table = first.parts.embedded
        if not table.has_quorum or (server.id in table.configuration.voters and len(table.configuration.voters) < 3):
            return
        self._wiped = True
        server.kill()
        server.wipe()
        self._farm.prepare(server)
        self._start_later(server)

    def _mix_up(self) -> None:
        """Two machines come back with each other's disks. One may be taken for old, and of two voters both decide."""
        up, first = [server for server in self._up() if server.parts is not None], self._first()
        if len(up) < 2 or first is None or first.parts is None or self._wiped:
            return
        table = first.parts.embedded
        if not table.has_quorum or len(table.configuration.voters) < 3:
            return
        self._wiped = True
        one, other = self._random.sample(up, 2)
        for server in (one, other):
            server.kill()
        one.swap_data(other)
        for server in (one, other):
            self._start_later(server)

    _wiped = False
    """More lost disks than one may be a majority, whose loss nobody can mend."""

    # The network.

    def _cut(self, ways: list[tuple[str, str]], seconds: float) -> None:
        if self._farm.healed:
            # A link that flaps would do so long after everything was repaired.
            return
        for way in ways:
            self._network.close_way(*way)
            self._world.at(seconds, None, self._network.open_way, *way)

    def _isolate(self) -> None:
        if (server := self._one()) is not None:
            seconds = self._length()
            others = [other for other in self._farm.servers if other is not server]
            if self._random.random() < 0.3 and others:
                others = self._random.sample(others, 1)
            self._world.note("network", f"{server.name} is cut off from {names(others)} for {seconds:.1f} s")
            self._cut([way for other in others for way in both(server, other)], seconds)

    def _one_way(self) -> None:
        if (server := self._one()) is not None:
            seconds = self._length()
            others = [other for other in self._farm.servers if other is not server]
            deaf = self._random.random() < 0.5
            word = "hears nothing of" if deaf else "is not heard by"
            self._world.note("network", f"{server.name} {word} {names(others)} for {seconds:.1f} s")
            ways = [both(server, other)[deaf] for other in others]
            self._cut(ways, seconds)

    def _split(self) -> None:
        servers = list(self._farm.servers)
        self._random.shuffle(servers)
        middle = self._random.randrange(len(servers) + 1)
        one, other = servers[:middle], servers[middle:]
        seconds = self._length()
        self._world.note("network", f"{names(one)} and {names(other)} are cut apart for {seconds:.1f} s")
        self._cut([way for a in one for b in other for way in both(a, b)], seconds)

    def _flap(self) -> None:
        if (server := self._one()) is None:
            return
        others = [other for other in self._farm.servers if other is not server]
        self._world.note("network", f"the link of {server.name} flaps")
        time, times = 0.0, self._random.randrange(2, 8)
        self.count += times - 1
        for _ in range(times):
            ways = [way for other in others for way in both(server, other)]
            self._world.at(time, None, self._cut, ways, self._random.random() * 2)
            time += self._random.random() * 4

    def _slow_way(self) -> None:
        if (server := self._one()) is not None:
            delay = self._random.choice((0.05, 0.3, 1.0))
            self._world.note("network", f"the link of {server.name} is up to {delay} s slow")
            for other in self._farm.servers:
                for way in both(server, other):
                    self._network.slow[way] = delay
                    self._world.at(self._length(), None, self._network.slow.pop, way, None)

    def _reset(self) -> None:
        if (server := self._one()) is not None:
            self._world.note("network", f"the connections of {server.name} are reset")
            self._network.reset(server.host)

    # Clocks and disks.

    def _clock(self) -> None:
        if (server := self._one()) is not None:
            server.clock_offset = self._random.choice((0, HOURS_2, -HOURS_2, self._random.randrange(-5000, 5000)))
            self._world.note(server.name, f"has a clock that is {server.clock_offset / 1000:+.0f} s wrong")

    def _slow_disk(self) -> None:
        if (server := self._one()) is not None:
            server.disk_slow = self._random.choice((0.05, 0.5, 3.0, 14.0))
            self._world.note(server.name, f"has a disk that takes up to {server.disk_slow} s")
            self._world.at(self._length(), None, setattr, server, "disk_slow", 0.0)

    def _full_disk(self) -> None:
        if (server := self._one()) is not None:
            self._world.note(server.name, "has a full disk")
            server.disk.full = True
            self._world.at(self._length(), None, setattr, server.disk, "full", False)

    def _broken_disk(self) -> None:
        if (server := self._one()) is not None:
            server.disk.broken = self._random.choice(("write", "sync"))
            self._world.note(server.name, f"has a disk on which a {server.disk.broken} fails")
            self._world.at(self._length(), None, setattr, server.disk, "broken", "")


def both(one: SimulatedServer, other: SimulatedServer) -> list[tuple[str, str]]:
    """There, and back."""
    return [(one.host, other.host), (other.host, one.host)]


def names(servers: list[SimulatedServer]) -> str:
    return " ".join(sorted(server.name for server in servers)) or "nobody"
