"""What a person is told to do when nobody leads the farm."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cures import cures
from tests.builders import make_server, server_id

SERVERS = tuple(make_server(number) for number in (1, 2, 3, 4))


def ids(*numbers: int) -> list[str]:
    return [server_id(number) for number in numbers]


class CureTests(SynchronousTestCase):
    def test_one_of_two(self) -> None:
        """Bring it back, or take over; a third server is for the next time, since two could not agree on it now."""
        told = cures(server_id(2), SERVERS[:2], ids(1, 2), learns=False)
        assert told[0] == "start s1 (127.0.0.1:4111) again"
        assert "chunkfarm takeover" in told[1] and "s1" in told[1]
        assert "weight = 0" in told[2] and "once there are two again" in told[2]

    def test_two_of_three(self) -> None:
        """One of the lost ones is enough to go on, and is named."""
        told = cures(server_id(3), SERVERS, ids(1, 2, 3), learns=False)
        assert told[0].startswith("start s1 (127.0.0.1:4111) or s2 (127.0.0.1:4121) again")
        assert "chunkfarm takeover" in told[1]

    def test_a_server_that_decides_nothing(self) -> None:
        """It needs a majority of the others."""
        told = cures(server_id(4), SERVERS, ids(1, 2, 3), learns=False)
        assert told[0].startswith("start 2 of s1 (127.0.0.1:4111), s2 (127.0.0.1:4121), s3 (127.0.0.1:4131) again")
        told = cures(server_id(4), SERVERS, ids(1, 2), learns=False)
        assert told[0].startswith("start s1 (127.0.0.1:4111) and s2 (127.0.0.1:4121) again")

    def test_a_server_without_the_table(self) -> None:
        """It does not know who decides, and names the masters."""
        told = cures(server_id(4), SERVERS, (), learns=False)
        assert "2 of s1" in told[0]

    def test_the_farm_went_on_elsewhere(self) -> None:
        """Nothing helps here but a server that knows how."""
        (told,) = cures(server_id(1), SERVERS, ids(1, 2, 3), learns=True)
        assert "went on" in told and "takeover" not in told

    def test_the_only_one_that_decides_has_an_old_disk(self) -> None:
        """Nobody else can catch it up, so a newer copy is wanted, or a word that there is none."""
        told = cures(server_id(1), SERVERS, ids(1), learns=False, withheld=True)
        assert "newer copy" in told[0] and "chunkfarm takeover" in told[1]
        assert cures(server_id(1), SERVERS, ids(1, 2), learns=False, withheld=True)[0].startswith("start s2")

    def test_nobody_is_missing(self) -> None:
        """A sentence even where the rows name nobody."""
        assert cures(server_id(1), SERVERS[:1], ids(1), learns=False)
