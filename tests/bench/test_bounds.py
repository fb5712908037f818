"""What bounds a farm, by formulas that the documentation repeats."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.bench import bounds
from chunkfarm.bench.bounds import Ceiling, Figure, Shape

MEASURED = {"disk write": 600.0, "disk sync": 4.0, "hash SHA-256": 1000.0, "tls loopback": 900.0}


def limits(ceilings: tuple[Ceiling, ...]) -> dict[str, float]:
    return {one.name: round(one.limit, 3) for one in ceilings}


class BoundTests(SynchronousTestCase):
    def test_put_on_one_machine(self) -> None:
        """Three servers on one machine write every copy to one disk, and hash it on the same processors."""
        shape = Shape(copies=3, hosts=1, cores=2, links={"alpha": 300.0})
        assert limits(bounds.of_large_put(MEASURED, shape)) == {
            "disk write": 200.0,
            "hash SHA-256": 500.0,
            "tls loopback": 300.0,
        }

    def test_put_on_several_machines(self) -> None:
        """Each machine writes and hashes one copy; the copies for the others leave by one link."""
        shape = Shape(copies=3, hosts=3, cores=2, links={"alpha": 400.0, "beta": 110.0})
        assert limits(bounds.of_large_put(MEASURED, shape)) == {
            "disk write": 600.0,
            "hash SHA-256": 1000.0,
            "tls loopback": 300.0,
            "link": 55.0,
        }

    def test_one_copy(self) -> None:
        """A farm of one server sends nothing on."""
        shape = Shape(copies=1, hosts=1, cores=4)
        found = limits(bounds.of_large_put(MEASURED, shape))
        assert found == {"disk write": 600.0, "hash SHA-256": 1000.0, "tls loopback": 900.0}

    def test_get(self) -> None:
        """Reading takes each byte through TLS and SHA-256 once."""
        near, far = Shape(3, 1, 2, {"alpha": 300.0}), Shape(3, 3, 2, {"alpha": 110.0})
        assert limits(bounds.of_large_get(MEASURED, near)) == {"hash SHA-256": 1000.0, "tls loopback": 900.0}
        assert limits(bounds.of_large_get(MEASURED, far))["link"] == 110.0

    def test_small_files(self) -> None:
        """A small file waits twice, for a disk and for an answer; several people wait beside each other."""
        shape = Shape(3, 3, 2, round_trip=1.0)
        assert limits(bounds.of_small_put(MEASURED, shape, 8)) == {"disk sync + round trip": 800.0}
        assert limits(bounds.of_small_get(shape, 8)) == {"round trip": 4000.0}

    def test_not_measured(self) -> None:
        """What was not measured bounds nothing."""
        assert bounds.of_small_get(Shape(3, 3, 2), 8) == ()
        assert limits(bounds.of_large_put({"tls loopback": 9.0}, Shape(3, 1, 2))) == {"tls loopback": 3.0}


class FigureTests(SynchronousTestCase):
    def test_nearest(self) -> None:
        """A figure is shown as a part of the lowest of its ceilings."""
        figure = Figure("farm put large", 150.0, "MiB/s", "a file", (Ceiling("disk", 600.0), Ceiling("tls", 300.0)))
        assert figure.nearest == Ceiling("tls", 300.0) and figure.percent == 50.0
        assert figure.as_value() == {
            "name": "farm put large",
            "value": 150.0,
            "unit": "MiB/s",
            "meaning": "a file",
            "percent": 50.0,
            "nearest": "tls",
            "ceilings": {"disk": 600.0, "tls": 300.0},
        }

    def test_a_ceiling(self) -> None:
        """A ceiling is a figure without one above it."""
        figure = Figure("disk sync", 3.987, "ms", "appended")
        assert figure.percent is None and "percent" not in figure.as_value()
        assert figure.shown() == "3.99 ms"
        assert Figure("x", 1234.5, "/s", "").shown() == "1,234/s"
        assert Figure("x", 12.34, "MiB/s", "").shown() == "12.3 MiB/s"
