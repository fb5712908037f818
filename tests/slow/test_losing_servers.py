"""Servers that die without a word, and what goes on all the same."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import GIB, MIB, digest_of, size_under, write_file
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

UNDER_WAY = 48 * MIB
"""Bytes after which a transfer has begun for good, and is far from its end."""
TAKEOVER_SECONDS = 10.0
"""In which another first leads, and has written `config.ini`."""
REJOIN_SECONDS = 5.0
TRANSFER_SECONDS = 240.0


class FirstDiesTests(FarmTestCase):
    def test_in_the_middle_of_transfers(self) -> None:
        """The first is killed while a put and a get run: both end well, and another first takes over."""
        farm = self.make_farm("alpha", "beta", "gamma")
        old = write_file(farm.directory / "old", GIB, seed=1)
        new = write_file(farm.directory / "new", GIB, seed=2)
        stored = farm.cli("put", "old", "home/old", seconds=TRANSFER_SECONDS)
        assert stored.returncode == 0, stored.stderr
        before = farm.config()
        held = size_under(farm.directory / "alpha" / "chunks")
        (farm.directory / "out").mkdir()
        put = farm.start_cli("put", "new", "home/new")
        get = farm.start_cli("get", "home/old", "out/old")
        farm.wait_for(
            lambda: (
                size_under(farm.directory / "alpha" / "chunks") > held + UNDER_WAY
                and size_under(farm.directory / "out") > UNDER_WAY
            ),
            60,
            "both transfers are under way",
        )

        farm.kill9("alpha")
        killed = time.monotonic()

        assert put.poll() is None and get.poll() is None, "a transfer ended before the first was killed"
        farm.wait_for(
            lambda: farm.config().generation > before.generation and farm.listed()[0] != "alpha",
            TAKEOVER_SECONDS,
            "config.ini shows another first and a higher generation",
        )
        print(f"config.ini showed the new first after {time.monotonic() - killed:.1f} s")
        assert farm.config().farm.id == before.farm.id
        (farm.directory / "note").write_text("written after the first died\n")
        stored = farm.cli("put", "note", "home/note", seconds=30)
        assert stored.returncode == 0, stored.stderr
        print(f"a new put was done after {time.monotonic() - killed:.1f} s")

        for what, process in (("put", put), ("get", get)):
            _, error = process.communicate(timeout=TRANSFER_SECONDS)
            assert process.returncode == 0, f"{what}: {error.decode()}\n{farm.tails()}"
        assert digest_of(farm.directory / "out" / "old") == old
        fetched = farm.cli("get", "home/new", "out/new", seconds=TRANSFER_SECONDS)
        assert fetched.returncode == 0, fetched.stderr
        assert digest_of(farm.directory / "out" / "new") == new

        # A junior that was quicker to be elected hands over to beta.
        farm.wait_for(lambda: farm.status("beta")["first"] == "beta", 30, "beta leads")
        told = farm.cli("who")
        assert told.returncode == 0, told.stderr
        assert told.stdout.startswith("beta leads the farm."), told.stdout
        assert "the most senior live master" in told.stdout and "it is down" in told.stdout, told.stdout

        started = time.monotonic()
        farm.start("alpha")
        farm.wait_for(
            lambda: list(farm.states("beta").items())[-1] == ("alpha", "up") and farm.states("beta")["beta"] == "up",
            REJOIN_SECONDS,
            "alpha is up again, at the end of the line",
        )
        print(f"alpha was back after {time.monotonic() - started:.1f} s")
        farm.wait_serving("alpha", seconds=REJOIN_SECONDS)
        farm.wait_for(lambda: farm.listed()[-1] == "alpha", 5, "config.ini lists alpha last")

    def test_writes_go_on_within_seconds(self) -> None:
        """A writer that asks the second server waits a few seconds at most when the first is killed."""
        farm = self.make_farm("alpha", "beta", "gamma")
        farm.wait_for(lambda: copies_of_table(farm, "beta") == 3, 15, "there are three copies of the table")
        put_small(farm, "beta", "home/before")
        farm.kill9("alpha")
        killed = time.monotonic()

        farm.wait_for(lambda: try_to_put_small(farm, "beta", "home/after"), TAKEOVER_SECONDS, "a write is taken")

        print(f"the first write after the kill was taken after {time.monotonic() - killed:.1f} s")
        assert [row["name"] for row in farm.ask("gamma", "LIST home/").parsed] == ["home/after", "home/before"]


class AllDieTests(FarmTestCase):
    def test_started_again_in_any_order(self) -> None:
        """All servers are killed and started again, in all six orders: it is the same farm with the same files."""
        names = ("alpha", "beta", "gamma")
        farm = self.make_farm(*names)
        farm.wait_for(lambda: copies_of_table(farm, "alpha") == 3, 15, "there are three copies of the table")
        digest = write_file(farm.directory / "file", 20 * MIB + 5)
        assert farm.cli("put", "file", "home/file").returncode == 0
        identity = farm.config().farm.id, farm.config().farm.ca

        for turn, order in enumerate(itertools.permutations(names)):
            begun = time.monotonic()
            farm.kill9(*names)
            for name in order:
                farm.start(name)
            farm.wait_serving(*names)
            print(f"{' '.join(order)}: all serve after {time.monotonic() - begun:.1f} s")
            assert (farm.config().farm.id, farm.config().farm.ca) == identity
            for name in names:
                hello = farm.hello(name)
                assert hello is not None and hello.fields["farm"] == identity[0]
                reply = farm.ask(name, "FETCH home/file")
                assert len(reply.data) == 20 * MIB + 5
            assert farm.cli("get", "home/file", "back").returncode == 0
            assert digest_of(farm.directory / "back") == digest
            farm.wait_for(
                lambda turn=turn: try_to_put_small(farm, "beta", f"home/turn-{turn}"),  # type: ignore[misc]
                10,
                "a write is taken",
            )
            # Who is back before the first change is made keeps its place, in whatever order they were started.
            farm.wait_for(lambda: farm.states("alpha") == dict.fromkeys(names, "up"), 10, "alpha has heard of all")
            assert list(farm.states("alpha")) == list(names), f"the order is {list(farm.states('alpha'))}"
        listed = [row["name"] for row in farm.ask("gamma", "LIST home/turn-").parsed]
        assert listed == [f"home/turn-{turn}" for turn in range(6)]


def copies_of_table(farm: RealFarm, name: str) -> int:
    """How many servers hold the table, as one of them tells."""
    told = dict(row.split("=", 1) for row in farm.ask(name, "STATUS").rows)
    return int(told["table-copies"])


def put_small(farm: RealFarm, name: str, file: str) -> None:
    """Store an empty file through one server: a commit without chunks. Raises as `LineSocket.reply` does."""
    farm.ask(name, f"COMMIT {file} 0 8388608 0")


def try_to_put_small(farm: RealFarm, name: str, file: str) -> bool:
    """The same; whether it was taken."""
    try:
        put_small(farm, name, file)
    except Exception as error:
        print(f"not taken: {error}")
        return False
    return True
