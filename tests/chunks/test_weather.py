"""Transfers in any weather: whatever the other servers do, what is promised holds and nothing is left behind."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.chunks.patience import COPY_TIMEOUT
from chunkfarm.chunks.transfer import Transfer
from chunkfarm.chunks.writing import WRITE_PATIENCE
from chunkfarm.errors import FarmError, NotFound
from chunkfarm.model import digest_of
from tests.chunks.builders import MemoryLinks, make_servers, make_store, pattern, read_all, run_now

FAULTS = ["well", "well", "dead", "silent", "full", "corrupting"]
servers_with_faults = st.lists(st.sampled_from(FAULTS), min_size=1, max_size=7)
changes = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.5, 3.0, 20.0]), st.integers(0, 6), st.sampled_from([*FAULTS, "release"])),
    max_size=8,
)


class Weather:
    """A farm whose servers (but the first, this one) fall ill and get well."""

    def __init__(self, directory: str, faults: list[str]) -> None:
        self.clock = Clock()
        self.links = MemoryLinks()
        self.servers = make_servers(len(faults))
        self.store = make_store(directory)
        self.transfer = Transfer(
            self.store, lambda: self.servers, self.servers[0].id, self.links, lambda: 3, self.clock, run_now
        )
        for number, fault in enumerate(faults):
            self.strike(number, fault)

    def strike(self, number: int, fault: str) -> None:
        if fault == "release":
            self.links.release()
            return
        server = self.servers[number % len(self.servers)].id
        for name in ("dead", "silent", "full", "corrupting"):
            ill: set[str] = getattr(self.links, name)
            ill.discard(server)
            if name == fault:
                ill.add(server)

    def pass_by(self, happening: list[tuple[float, int, str]]) -> None:
        """Let things happen, then time pass until everything has been given up."""
        for wait, number, fault in happening:
            self.clock.advance(wait)
            self.strike(number, fault)
        self.clock.pump([1.0] * int(3 * COPY_TIMEOUT + WRITE_PATIENCE))


class WeatherTests(SynchronousTestCase):
    @given(servers_with_faults, changes)
    @settings(max_examples=150, deadline=None)
    def test_write(self, faults: list[str], happening: list[tuple[float, int, str]]) -> None:
        """A receipt tells the truth and names enough holders; without one there is a sentence that says why."""
        with TemporaryDirectory() as directory:
            weather = Weather(directory, faults)
            data = pattern(500)
            outcome: list[object] = []
            weather.transfer.write(data).addBoth(outcome.append)
            weather.pass_by(happening)
            (result,) = outcome
            holders = getattr(result, "holders", None)
            if holders is None:
                assert isinstance(getattr(result, "value", None), FarmError), result
            else:
                assert len(holders) == len(set(holders)) >= weather.transfer.required()
                for server in weather.servers[1:]:
                    assert server.id not in holders or digest_of(data) in weather.links.on(server)
                here = self.successResultOf(weather.store.has([digest_of(data)]))[0]
                assert here or weather.servers[0].id not in holders
            assert weather.transfer.following == 0
            assert weather.clock.getDelayedCalls() == []

    @given(servers_with_faults, st.sets(st.integers(1, 6)), changes)
    @settings(max_examples=150, deadline=None)
    def test_read(self, faults: list[str], places: set[int], happening: list[tuple[float, int, str]]) -> None:
        """A chunk is read right or not at all; if a server that is well all the time has it, it is read."""
        with TemporaryDirectory() as directory:
            weather = Weather(directory, faults)
            data = pattern(500)
            holders = [weather.servers[number] for number in places if number < len(weather.servers)]
            for server in holders:
                weather.links.on(server)[digest_of(data)] = data

            async def read() -> bytes:
                return await read_all(await weather.transfer.open(digest_of(data)))

            outcome: list[object] = []
            Deferred.fromCoroutine(read()).addBoth(outcome.append)
            weather.pass_by(happening)
            (result,) = outcome
            struck = {number % len(faults) for _, number, fault in happening if fault != "release"}
            healthy = [
                server
                for number, server in enumerate(weather.servers)
                if faults[number] in ("well", "full") and number not in struck
            ]
            if result != data:
                error = getattr(result, "value", None)
                assert isinstance(error, FarmError), result
                assert not set(holders) & set(healthy)
                assert not holders or not isinstance(error, NotFound)
            assert weather.clock.getDelayedCalls() == []
