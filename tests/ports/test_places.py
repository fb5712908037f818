"""Places on a crowded port, and memory for files on their way in."""

from __future__ import annotations

from attrs import define
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.model import MIB
from chunkfarm.ports.files.uploads import LOOK_BYTES, Flow, Uploads
from chunkfarm.ports.places import MET_MAX, Met, whose
from tests.builders import make_server


class MetTests(SynchronousTestCase):
    def test_rows(self) -> None:
        """Where a server is by its row is known without having met it."""
        met = Met(lambda: (make_server(1, host="10.0.0.1"), make_server(2, host="beta.example")))
        assert "10.0.0.1" in met and "::ffff:10.0.0.1" in met
        assert "10.0.0.2" not in met
        met.note("10.0.0.2")
        assert "10.0.0.2" in met

    def test_bounded(self) -> None:
        """However many addresses there are, the oldest are forgotten."""
        met = Met()
        for number in range(MET_MAX + 10):
            met.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert "10.0.0.9" not in met and "10.0.0.10" in met

    def test_odd_addresses(self) -> None:
        """What is no address is counted as it is."""
        for host in ("", "alpha", "fe80::1%eth0", "::zz"):
            assert isinstance(whose(host), str)
        assert whose("fe80::1%eth0") == whose("fe80::2%eth0")


@define
class Body:
    """What an upload's bytes come from."""

    held: int = 0
    reading: bool = True

    def pause(self) -> None:
        assert self.reading
        self.reading = False

    def resume(self) -> None:
        assert not self.reading
        self.reading = True


class UploadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.limited: list[str] = []
        self.uploads = Uploads(lambda: 100 * MIB, lambda: self.limited.append("bodies"))

    def begin(self, held: int = 0) -> tuple[Body, Flow]:
        body = Body(held)
        flow = self.uploads.begin(body)
        flow.upload = body
        return body, flow

    def test_past_the_limit(self) -> None:
        """Past the limit the oldest goes on, and the others when there is room again."""
        bodies = [self.begin(40 * MIB)[0] for _ in range(3)]
        self.uploads.came(LOOK_BYTES - 1)
        assert all(body.reading for body in bodies)
        self.uploads.came(1)
        assert [body.reading for body in bodies] == [True, False, False]
        bodies[1].held = 0
        self.uploads.look()
        assert all(body.reading for body in bodies)
        assert self.limited == ["bodies"]

    def test_the_oldest_ends(self) -> None:
        """When the oldest ends the next one goes on at once."""
        (first, flow), (second, _), (third, _) = (self.begin(60 * MIB) for _ in range(3))
        self.uploads.look()
        assert (second.reading, third.reading) == (False, False)
        self.uploads.end(flow)
        assert (first.reading, second.reading, third.reading) == (True, True, False)

    def test_two_reasons_to_wait(self) -> None:
        """A body that waits for its own upload does not go on because there is memory."""
        self.begin(90 * MIB)
        body, flow = self.begin(20 * MIB)
        flow.pause()
        self.uploads.look()
        body.held = 0
        self.uploads.look()
        assert not body.reading
        flow.resume()
        assert body.reading

    def test_slow_ones_hold_nothing(self) -> None:
        """What was announced and has not come is nobody's room."""
        bodies = [self.begin(1000)[0] for _ in range(1000)]
        self.uploads.look()
        assert all(body.reading for body in bodies)
