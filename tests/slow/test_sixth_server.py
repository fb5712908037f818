"""A server that joins: its share of the bytes moves to it, and no more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from chunkfarm.chunks import placement
from chunkfarm.model import Server
from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm

pytestmark = pytest.mark.slow

CHUNK = 4096
CHUNKS = 4096
"""With so many of one size the shares of six servers differ by less than a tenth (`python -m benchmarks.moving`)."""
PAGE = 1000
SECONDS = 240.0


class SixthServerTests(FarmTestCase):
    def test_a_sixth_of_the_bytes(self) -> None:
        """About a sixth of all copies is sent to it, none to the others, and then all have much the same."""
        farm = self.make_farm("alpha", "beta", "gamma", "delta", "epsilon")
        assert farm.cli("set", "farm", f"chunksize={CHUNK}").returncode == 0
        with (farm.directory / "many").open("wb") as file:
            for number in range(CHUNKS):
                file.write(b"%020d\n" % number * (CHUNK // 21) + b"x" * (CHUNK % 21))
        stored = farm.cli("put", "many", "home/many")
        assert stored.returncode == 0, stored.stderr
        before = self.settled(farm, lambda held: held.total() >= 3 * CHUNKS)
        print(f"before: {sorted(before.values())}")

        farm.start_serving("zeta")
        joined = time.monotonic()
        rows = farm.rows("alpha")
        zeta = next(row["id"] for row in rows if row["name"] == "zeta")
        owned = self.owned(farm, rows)
        after = self.settled(farm, lambda held: held == owned)
        print(f"after {time.monotonic() - joined:.1f} s: {sorted(after.values())}")
        share = after[zeta] / (3 * CHUNKS / 6)
        print(f"moved: {share:.2f} of a sixth")
        assert 0.8 <= share <= 1.3
        assert all(after[id] <= before[id] for id in before), "nobody else was sent anything"
        assert max(after.values()) < 1.1 * min(after.values())
        checked = farm.cli("get", "home/many", "back")
        assert checked.returncode == 0, checked.stderr
        assert (farm.directory / "back").read_bytes() == (farm.directory / "many").read_bytes()

    def settled(self, farm: RealFarm, is_so: Callable[[Counter[str]], bool]) -> Counter[str]:
        """Chunks by server, once they are where they should be."""

        def look() -> Counter[str] | None:
            # To look asks every server for every chunk.
            time.sleep(1)
            held = holders(farm)
            return held if is_so(held) else None

        return farm.wait_for(look, SECONDS, "the chunks are where they should be")

    def owned(self, farm: RealFarm, rows: list[dict[str, str]]) -> Counter[str]:
        """Chunks by the server that owns them, by these rows."""
        servers = tuple(
            Server(
                id=row["id"],
                name=row["name"],
                host=row["host"],
                client=1,
                peer=2,
                files=3,
                weight=int(row["weight"]),
                zone=row["zone"],
            )
            for row in rows
        )
        owned: Counter[str] = Counter()
        for row in chunks(farm):
            owned.update(one.id for one in placement.owners(bytes.fromhex(row["digest"]), servers, 3))
        return owned


def chunks(farm: RealFarm) -> list[dict[str, str]]:
    """What EXPLAIN says of each chunk of the file, and of its manifest."""
    found: list[dict[str, str]] = []
    with farm.link("alpha", timeout=60.0) as link:
        for start in range(0, CHUNKS, PAGE):
            rows = link.ask(f"EXPLAIN home/many {start} {PAGE}").parsed
            found += [row for row in rows if "number" in row]
    return found


def holders(farm: RealFarm) -> Counter[str]:
    """Chunks of the file by the server that has them."""
    return Counter(holder for row in chunks(farm) for holder in row["holders"].split(","))
