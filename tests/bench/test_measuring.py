"""What a benchmark does to the disk and to the farm, and that nothing of it is left."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.bench import ceilings, command, through
from chunkfarm.bench.bounds import MIB, Figure
from chunkfarm.bench.sink import LENGTH, Sink
from chunkfarm.bench.through import Content, Through
from chunkfarm.cli import stopping
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.stopping import cancelled_by_stop
from chunkfarm.cli.threads import RunInThread
from tests.cli.world import World


class DiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.ticks = itertools.count()

    def seconds(self) -> float:
        return next(self.ticks) / 2

    def test_rates(self) -> None:
        """Rates are bytes by seconds, times are in milliseconds, and no file is left."""
        no = lambda: False  # noqa: E731
        assert ceilings.write_and_read(self.folder, 3 * MIB, self.seconds, no) == (6.0 * MIB, 6.0 * MIB)
        assert ceilings.sync_time(self.folder, self.seconds, no) == 500.0
        assert ceilings.new_files(self.folder, self.seconds, no) == 2 * ceilings.SMALL_FILES
        assert ceilings.hash_rate(self.seconds, no) == 0.0
        assert list(self.folder.iterdir()) == []

    def test_given_up(self) -> None:
        """Who does not want the figure any more does not wait for it, and no file is left."""
        for measure in (ceilings.sync_time, ceilings.new_files):
            with self.assertRaises(ceilings.GivenUp):
                measure(self.folder, self.seconds, lambda: True)
        answers = iter([False, True])
        with self.assertRaises(ceilings.GivenUp):
            ceilings.write_and_read(self.folder, 3 * MIB, self.seconds, lambda: next(answers))
        assert list(self.folder.iterdir()) == []


class ThreadTests(SynchronousTestCase):
    def test_waited_for(self) -> None:
        """On Ctrl-C a thread is told to stop, and waited for until it has removed its file."""
        threads: list[tuple[Callable[[], bool], Deferred[Any]]] = []

        def run(function: Callable[..., Any], /, *arguments: Any) -> Deferred[Any]:
            threads.append((arguments[-1], Deferred()))
            return threads[0][1]

        done = Deferred.fromCoroutine(command.until_it_ends(run, ceilings.sync_time))  # type: ignore[arg-type]
        (stopped, ended) = threads[0]
        assert not stopped()
        done.cancel()
        assert stopped()
        self.assertNoResult(done)
        ended.errback(ceilings.GivenUp())
        self.failureResultOf(done, CancelledError)


class SinkTests(SynchronousTestCase):
    def test_counted(self) -> None:
        """It answers when it has all bytes, in however many pieces they and their length came."""
        sink, transport = Sink(), StringTransport()
        sink.makeConnection(transport)
        sent = LENGTH.pack(5) + b"12345" + LENGTH.pack(2) + b"67" + LENGTH.pack(3) + b"8"
        for at in range(0, len(sent), 3):
            sink.dataReceived(sent[at : at + 3])
        assert transport.value() == b".."
        sink.dataReceived(b"90")
        assert transport.value() == b"..."


class ContentTests(SynchronousTestCase):
    def test_all_chunks_differ(self) -> None:
        """No chunk is stored twice, so that none is found to be there already."""
        content = Content(3 * MIB - 5)
        pieces = [content.read(MIB), content.read(MIB), content.read(MIB), content.read(MIB)]
        assert [len(piece) for piece in pieces] == [MIB, MIB, MIB - 5, 0]
        assert len(set(pieces)) == 4


class FarmTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        self.patch(through, "LATE_SECONDS", 0.1)

        def whole(reactor: Any, work: Any) -> Deferred[bool]:
            return Deferred.fromCoroutine(work).addCallback(lambda _: True)

        self.patch(command, "cancelled_by_stop", whole)

    def test_files_go_in_and_out(self) -> None:
        """Files of a benchmark are stored beside those of people, read, and removed again."""
        path = self.world.directory / "mine"
        path.write_bytes(b"mine")
        assert self.world.run("put", str(path), "home/mine").exit_code == 0
        listed: list[str] = []

        async def work(figures: Any, farm: Farm, place: Path, run_in_thread: RunInThread) -> None:
            ticks = itertools.count()
            here = Through(farm, run_in_thread, lambda: float(next(ticks)))
            assert await here.put_large(10_000) == 10_000
            assert await here.get_large(10_000) == 10_000
            assert await here.put_small(3) == 3
            assert await here.get_small(3) == 3
            listed.extend(row["name"] for row in await here.ask("LIST - - 100"))
            figures.add(Figure("removed", await here.remove(), "/s", "files"))

        self.patch(command, "_all", work)
        done = self.world.run("bench", "--json")
        assert done.exit_code == 0, done.output
        assert [row["value"] for row in json.loads(done.stdout)] == [4]
        assert len(listed) == 5 and sum(name.startswith("bench-") for name in listed) == 4
        assert self.world.run("ls").stdout.split()[-1] == "home/mine"

    def test_sizes(self) -> None:
        """A size that is none, or out of bounds, is refused before anything is done."""
        for size in ("much", "1M", "17G"):
            assert self.world.run("bench", "--size", size).exit_code == 2

    def test_no_folder(self) -> None:
        """A folder that is not there cannot be measured."""
        done = self.world.run("bench", "--dir", "nowhere")
        assert done.exit_code == 1 and "nowhere is no folder" in done.stderr


class _Reactor(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.triggers: list[Callable[[], Any]] = []

    def addSystemEventTrigger(self, phase: str, event: str, function: Callable[[], Any]) -> Any:
        self.triggers.append(function)
        return function

    def removeSystemEventTrigger(self, trigger: Any) -> None:
        self.triggers.remove(trigger)


class StoppingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(stopping, "end_quietly", lambda: None)
        self.reactor = _Reactor()
        self.waits: Deferred[None] = Deferred()
        self.cleans: Deferred[None] = Deferred()

    async def work(self) -> None:
        try:
            await self.waits
        finally:
            await self.cleans

    def test_to_its_end(self) -> None:
        """Work that ends by itself has nothing to do with the reactor's end any more."""
        done = cancelled_by_stop(self.reactor, self.work())
        self.waits.callback(None)
        self.cleans.callback(None)
        assert self.successResultOf(done) is True and self.reactor.triggers == []

    def test_stopped(self) -> None:
        """On Ctrl-C the reactor waits until what has to be cleaned up is clean."""
        done = cancelled_by_stop(self.reactor, self.work())
        stopped = self.reactor.triggers[0]()
        self.assertNoResult(stopped)
        self.assertNoResult(done)
        self.cleans.callback(None)
        assert self.successResultOf(done) is False
        self.successResultOf(stopped)

    def test_failed(self) -> None:
        """What goes wrong is told."""
        done = cancelled_by_stop(self.reactor, self.work())
        self.waits.errback(ValueError("no"))
        self.cleans.callback(None)
        self.failureResultOf(done, ValueError)
