"""`chunkfarm bench` on the command line."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred

from chunkfarm.bench import bounds, ceilings
from chunkfarm.bench.bounds import MIB, MILLISECONDS, PER_SECOND, RATE, Figure, Shape
from chunkfarm.bench.loopback import SinkProcess, measure
from chunkfarm.bench.through import PEOPLE, REMOVE_SECONDS, SMALL_BYTES, Through
from chunkfarm.cli import screen
from chunkfarm.cli.exits import give_up, interrupted
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.stopping import cancelled_by_stop
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.config import ConfigError, format_size, parse_size, read_config
from chunkfarm.errors import FarmError

SIZE = "128M"
SIZE_MIN = 8 * MIB
SIZE_MAX = 16 * 1024 * MIB
T = TypeVar("T")


class _Size(click.ParamType[int]):
    """Bytes, as `config.ini` has them."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = value if isinstance(value, int) else parse_size(value)
        except ConfigError as error:
            self.fail(error.sentence, param, ctx)
        if not SIZE_MIN <= size <= SIZE_MAX:
            self.fail(f"expected a size from {format_size(SIZE_MIN)} to {format_size(SIZE_MAX)}", param, ctx)
        return size


@click.command()
@click.option(
    "--size", type=_Size(), default=SIZE, show_default=True, help="Of the large file, and of what a disk writes."
)
@click.option("--local", is_flag=True, help="Measure this machine alone; no farm is needed.")
@click.option(
    "--dir",
    "folder",
    metavar="DIR",
    type=click.Path(),
    help="Measure the disk of DIR; by default that of the data directory, or of the working directory.",
)
@screen.as_json
@click.pass_obj
def bench(surroundings: Surroundings, size: int, local: bool, folder: str | None, as_json: bool) -> None:
    """Measure what this machine could do at best, and how near the farm comes to it.

    First the ceilings, one by one: disk, hashing, TLS and TCP on this machine, then the way to each server, then
    the farm itself: a large file and many small ones go in and come out. Each figure of the farm is shown as a part of
    the ceilings that bound it, which docs/operations.md explains.

    Files are stored under a random name, bench-..., and removed at the end, also on Ctrl-C; their room comes back
    after collect_grace. It takes ten seconds or more, in which the farm is busy.

    \b
    chunkfarm bench
    chunkfarm bench --local --dir /var/lib/chunkfarm
    chunkfarm bench --size 1G --json

    Exit status: as of all commands.
    """
    figures = Figures(lambda text: click.echo(text, err=True), size)
    place = _place(surroundings, folder)
    if local:
        finished = _without_farm(surroundings, figures, place)
    else:

        async def work(farm: Farm, run_in_thread: RunInThread) -> bool:
            return await cancelled_by_stop(farm.clock, _all(figures, farm, place, run_in_thread))

        finished = surroundings.run(work)
    if not finished:
        interrupted()
    if as_json:
        screen.show_json([figure.as_value() for figure in figures.rows])
    else:
        screen.show_table(COLUMNS, [_line(figure) for figure in figures.rows], right=COLUMNS[1:3])


COLUMNS = ["WHAT", "FIGURE", "OF CEILING", "NEAREST CEILING", "WHAT IT IS"]


def _line(figure: Figure) -> list[str]:
    nearest, percent = figure.nearest, figure.percent
    bound = f"{nearest.name}: {bounds.readable(nearest.limit)}" if nearest is not None else ""
    return [figure.name, figure.shown(), f"{percent:.0f} %" if percent is not None else "", bound, figure.meaning]


def _place(surroundings: Surroundings, folder: str | None) -> Path:
    """Where the disk is measured."""
    if folder is not None:
        path = Path(folder)
    else:
        try:
            path = read_config(surroundings.config_path, {}).server.data
        except FarmError:
            path = Path()
        if not os.access(path, os.W_OK | os.X_OK):
            path = Path()
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        give_up(FarmError(f"{path} is no folder in which files can be made"))
    return path


def _without_farm(surroundings: Surroundings, figures: Figures, place: Path) -> bool:
    failed: list[FarmError | OSError] = []
    finished: list[bool] = []

    async def main(reactor: Any) -> None:
        work = figures.here(reactor, place, surroundings.in_thread(reactor))
        try:
            finished.append(await cancelled_by_stop(reactor, work))
        except (FarmError, OSError) as error:
            failed.append(error)

    surroundings.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
    if failed:
        give_up(failed[0])
    return finished == [True]


async def _all(figures: Figures, farm: Farm, place: Path, run_in_thread: RunInThread) -> None:
    through = Through(farm, run_in_thread, time.perf_counter)
    # That a farm cannot be reached is told before anything is measured.
    status = await through.status()
    rows = await through.ask("SERVERS")
    await figures.here(farm.clock, place, run_in_thread)
    await figures.farm(through, status, rows)


async def until_it_ends(run_in_thread: RunInThread, measure: Callable[..., T], *arguments: object) -> T:
    """What a function of `ceilings` gives. After a cancel it is told to stop, and waited for: it may have a file."""
    stop = threading.Event()
    running = run_in_thread(measure, *arguments, stop.is_set)
    result: Deferred[T] = Deferred()
    ended: Deferred[None] = Deferred()
    running.addCallbacks(result.callback, result.errback).addBoth(ended.callback)
    try:
        return await result
    except CancelledError:
        stop.set()
        await ended
        raise


@define
class Figures:
    """What is measured, in the order in which it is shown. `say` is told what is being done; `size` is in bytes."""

    say: Callable[[str], None]
    size: int
    rows: list[Figure] = field(factory=list, init=False)
    measured: dict[str, float] = field(factory=dict, init=False)
    """In the units in which they are shown."""

    def add(self, figure: Figure) -> None:
        """One more."""
        self.rows.append(figure)
        self.measured[figure.name] = figure.value

    async def here(self, reactor: Any, place: Path, run_in_thread: RunInThread) -> None:
        """Disk, hashing, TCP and TLS of this machine. Raises `OSError` and `NoSink`."""
        seconds = time.perf_counter

        async def on_thread(measure: Callable[..., T], *arguments: object) -> T:
            return await until_it_ends(run_in_thread, measure, *arguments)

        self.say(f"the disk of {place.absolute()}")
        write, read = await on_thread(ceilings.write_and_read, place, self.size, seconds)
        self.add(Figure(bounds.DISK_WRITE, write / MIB, RATE, "one file, written in order and synchronized once"))
        meaning = "the same, read in order, not from memory if that can be helped"
        self.add(Figure(bounds.DISK_READ, read / MIB, RATE, meaning))
        sync = await on_thread(ceilings.sync_time, place, seconds)
        self.add(Figure(bounds.DISK_SYNC, sync, MILLISECONDS, "4 KiB appended and synchronized, the median"))
        files = await on_thread(ceilings.new_files, place, seconds)
        meaning = "1 KiB each, synchronized, renamed, name synchronized, one by one"
        self.add(Figure("disk new files", files, PER_SECOND, meaning))
        self.say("hashing")
        sha = await on_thread(ceilings.hash_rate, seconds)
        self.add(Figure(bounds.SHA256, sha / MIB, RATE, "names every chunk; on one processor"))
        crc = await on_thread(ceilings.crc_rate, seconds)
        self.add(Figure(bounds.CRC32C, crc / MIB, RATE, "checks what is read from a disk; on one processor"))
        await self._loopback(reactor, seconds)

    async def _loopback(self, reactor: Any, seconds: Callable[[], float]) -> None:
        sink = SinkProcess(reactor)
        try:
            self.say("TCP and TLS between two processes")
            await sink.start()
            plain, trip = await measure(reactor, sink.ports[0], False, 4 * self.size, seconds)
            self.add(
                Figure(
                    bounds.TCP, plain / MIB, RATE, "between two processes of this machine, by the farm's own transport"
                )
            )
            self.add(
                Figure(f"{bounds.TCP} {bounds.ROUND_TRIP}", trip, MILLISECONDS, "a byte there and one back, the median")
            )
            secure, trip = await measure(reactor, sink.ports[1], True, 2 * self.size, seconds)
            self.add(
                Figure(
                    bounds.TLS,
                    secure / MIB,
                    RATE,
                    "the same, encrypted as between servers (AES-128-GCM); a processor at each end",
                )
            )
            self.add(
                Figure(f"{bounds.TLS} {bounds.ROUND_TRIP}", trip, MILLISECONDS, "a byte there and one back, the median")
            )
        finally:
            sink.end()

    async def farm(self, through: Through, status: dict[str, str], servers: list[dict[str, str]]) -> None:
        """Each server, and the farm. Raises `FarmError`."""
        up = [row for row in servers if row["state"] == "up"]
        links, trips = await self._links(through, up)
        copies = int(status.get("copies-possible", "1")) or 1
        shape = Shape(
            copies, len({row["host"] for row in up}) or 1, os.cpu_count() or 1, links, next(iter(trips.values()), 0.0)
        )
        size = screen.readable_size(self.size)
        small = screen.readable_size(SMALL_BYTES)
        try:
            self.say(f"a file of {size} goes in and comes out, as {through.bucket}/large")
            put = await through.put_large(self.size) / MIB
            self.add(
                Figure(
                    "farm put large",
                    put,
                    RATE,
                    f"a file of {size}, {copies} copies",
                    bounds.of_large_put(self.measured, shape),
                )
            )
            get = await through.get_large(self.size) / MIB
            self.add(Figure("farm get large", get, RATE, "the same file", bounds.of_large_get(self.measured, shape)))
            self.say(f"{PEOPLE} people put and get files of {small}")
            put = await through.put_small()
            bound = bounds.of_small_put(self.measured, shape, PEOPLE)
            self.add(Figure("farm put small", put, PER_SECOND, f"files of {small}, {PEOPLE} people at a time", bound))
            get = await through.get_small()
            self.add(Figure("farm get small", get, PER_SECOND, "the same files", bounds.of_small_get(shape, PEOPLE)))
        finally:
            await self._remove(through)

    async def _links(self, through: Through, up: list[dict[str, str]]) -> tuple[dict[str, float], dict[str, float]]:
        links, trips = {}, {}
        listed = {server.name: server for server in through.farm.servers}
        for name in [row["name"] for row in up if row["name"] in listed]:
            self.say(f"the way to {name}")
            found = await through.link(listed[name])
            if isinstance(found, str):
                self.say(f"{name} was left out: {found}")
                continue
            trips[name], links[name] = found[0], found[1] / MIB
            self.add(Figure(f"{bounds.ROUND_TRIP} {name}", found[0], MILLISECONDS, "PING and its answer, the median"))
            meaning = "bytes that it takes in, decrypts, hashes and does not store"
            self.add(Figure(f"{bounds.LINK} {name}", found[1] / MIB, RATE, meaning))
        return links, trips

    async def _remove(self, through: Through) -> None:
        """Also when nobody wants the figures any more: what cannot be removed in time is named."""
        removing = Deferred.fromCoroutine(through.remove())
        removing.addTimeout(REMOVE_SECONDS, through.farm.clock)
        try:
            count = await removing
        except (FarmError, OSError, TimeoutError, CancelledError):
            self.say(f"files under {through.bucket}/ could not be removed: chunkfarm ls {through.bucket}/")
            return
        self.say(f"{count} files were removed again")
