"""The first is cut off from the others, in both directions or in one, while clients ask all of them."""

from __future__ import annotations

import os
import time

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.own_networks import Network, NetworkFarm

pytestmark = pytest.mark.slow

NAMES = ("alpha", "beta", "gamma")
WRITES_AGAIN_SECONDS = 15.0
"""On the side with two of three masters: silence until they notice, and an election."""
SAYS_SO_SECONDS = 8.0
"""Until the side without a majority calls itself read-only: three reports, and two calls that are given up."""
CUT_SECONDS = 11.0
"""The whole of it: longer than `master_grace`, so that the farm rearranges itself around the one that is gone."""
HEALED_SECONDS = 20.0
SOME_PUTS = 10


class CutOffTests(FarmTestCase):
    def make_network(self) -> NetworkFarm:
        """Three servers on three networks, that all hold the table; alpha is the first."""
        network = Network()
        network.make()
        farm = NetworkFarm(os.path.abspath(self.mktemp()), network)
        self.addCleanup(farm.close)
        farm.start_on_network(*NAMES)
        farm.wait_copies("gamma", 3)
        return farm

    def try_cut(self, *, can_send: bool, can_receive: bool) -> None:
        """Cut the first off, look at both sides, heal, and look for what was lost."""
        farm = self.make_network()
        beside = self.make_load(farm, servers=("beta", "gamma"), timeout=8.0, clients=2)
        load = self.make_load(farm, servers=("alpha",), timeout=8.0, clients=1, sets=False, seed=2)
        for one in (beside, load):
            one.wait_for_puts(SOME_PUTS, 30)
        for other in ("beta", "gamma"):
            if not can_send:
                farm.cut("alpha", other)
            if not can_receive:
                farm.cut(other, "alpha")
        cut = time.monotonic()
        print(f"cut: a put on the other side after {beside.wait_for_puts(SOME_PUTS, WRITES_AGAIN_SECONDS):.1f} s")
        farm.wait_for(lambda: self.state(farm, "alpha") == "readonly", SAYS_SO_SECONDS, "alpha says it is read-only")
        print(f"the first called itself read-only after {time.monotonic() - cut:.1f} s")
        for other in ("beta", "gamma"):
            farm.wait_for(lambda o=other: self.state(farm, o) == "serving", SAYS_SO_SECONDS, f"{other} serves")  # type: ignore[misc]
        refused_from, before = time.monotonic(), len(load.acknowledged)
        while time.monotonic() < cut + CUT_SECONDS:
            assert self.state(farm, "alpha") == "readonly"
            time.sleep(0.2)
        late = load.acknowledged[before:]
        assert not late, f"alpha acknowledged a put {late[0] - refused_from:.1f} s after it called itself read-only"
        beside.wait_for_puts(SOME_PUTS, WRITES_AGAIN_SECONDS)

        farm.heal()
        healed = time.monotonic()
        farm.wait_for(lambda: self.state(farm, "alpha") == "serving", HEALED_SECONDS, "alpha serves again")
        load.wait_for_puts(SOME_PUTS, HEALED_SECONDS)
        print(f"healed: the first served after {time.monotonic() - healed:.1f} s")
        farm.wait_copies("alpha", 3)
        for one in (load, beside):
            one.stop()
            one.servers = list(NAMES)
            self.check_load(farm, one)

    def state(self, farm: NetworkFarm, name: str) -> str:
        hello = farm.hello(name)
        return hello.state if hello is not None else "gone"

    def test_it_hears_nobody_and_nobody_hears_it(self) -> None:
        """The two others elect another first and take writes; the old one says that it takes none."""
        self.try_cut(can_send=False, can_receive=False)

    def test_it_is_heard_and_hears_nobody(self) -> None:
        """The same where its packets still arrive: it does not hold up the others by being heard."""
        self.try_cut(can_send=True, can_receive=False)

    def test_it_hears_and_nobody_hears_it(self) -> None:
        """The same where it still hears the others."""
        self.try_cut(can_send=False, can_receive=True)
