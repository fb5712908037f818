"""What a starting server can know of the age of its data directory."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import Config, ConfigFile, parse_config
from chunkfarm.model import FarmOptions
from chunkfarm.old_disks import tells_of_newer, witness
from tests.builders import make_server, server_id

FARM = "f" * 32
ME, OTHER = server_id(1), server_id(2)


def config(generation: int, *states: str, farm: str = FARM) -> Config:
    """A file in which this server, and then others, stand with these states."""
    rows = "".join(
        f"s{number} = 2026-11-22T10:00:00.123Z 10.0.0.{number} 4100 4101 4102 {state} {server_id(number)}\n"
        for number, state in enumerate(states, 1)
    )
    return parse_config(f"[farm]\nid = {farm}\ngeneration = {generation}\n[servers]\n{rows}", "config.ini", {}, "s1")


class WitnessTests(SynchronousTestCase):
    def test_what_the_file_says(self) -> None:
        """The newest version in which this server is not down counts, and so does one in which it takes its leave."""
        assert witness(ME, FARM, [config(7, "up", "up")]) == 7
        assert witness(ME, FARM, [config(7, "leaving", "up")]) == 7
        assert witness(ME, FARM, []) == 0

    def test_times_at_which_it_was_away(self) -> None:
        """A file that others went on writing says nothing of what this server has seen."""
        versions = [config(9, "down", "up"), config(8, "down", "up"), config(7, "up", "up"), config(6, "up", "up")]
        assert witness(ME, FARM, versions) == 7
        assert witness(server_id(3), FARM, versions) == 0

    def test_what_is_remembered(self) -> None:
        """What this very server has noted is better than what stands in a file that several share."""
        assert witness(ME, FARM, [config(9, "up", "up")], 5) == 5

    def test_alone(self) -> None:
        """Where nobody else is listed nobody could catch it up."""
        assert witness(ME, FARM, [config(9, "up")], 9) == 0

    def test_another_farm(self) -> None:
        """The file of another farm is no witness."""
        assert witness(ME, FARM, [config(9, "up", "up", farm="e" * 32)]) == 0


class TellsOfNewerTests(SynchronousTestCase):
    """What another server of the farm answers to a probe."""

    def told(self, **changes: object) -> dict[str, object]:
        first = {"id": OTHER, "host": "10.0.0.2", "peer": 4101}
        return {"state": "serving", "generation": 7, "first": first, **changes}

    def test_a_farm_that_is_led(self) -> None:
        """It is further, and has a first who can catch this server up."""
        assert tells_of_newer(self.told(), ME, 6)
        assert not tells_of_newer(self.told(), ME, 7)

    def test_merely_behind(self) -> None:
        """Where nobody leads, or this server is said to, a server that was away must be able to vote."""
        assert not tells_of_newer(self.told(first=None), ME, 6)
        assert not tells_of_newer(self.told(first={"id": ME, "host": "10.0.0.1", "peer": 4101}), ME, 6)
        assert not tells_of_newer(self.told(state="readonly"), ME, 6)


class ReachedTests(SynchronousTestCase):
    def make_file(self) -> ConfigFile:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        path = folder / "config.ini"
        path.write_text("[server]\nzone = x\n")
        return ConfigFile(str(path))

    def test_remembered(self) -> None:
        """Each server that brings a shared file up to a generation, or finds it there, is remembered with it."""
        file = self.make_file()
        assert file.reached(ME) is None
        options, servers = FarmOptions(id=FARM), (make_server(1), make_server(2))
        assert file.write_if_newer(4, options, servers, ME)
        assert not file.write_if_newer(3, options, servers, OTHER)
        assert (file.reached(ME), file.reached(OTHER), file.reached(server_id(3))) == (4, 3, None)
        file.write_if_newer(12, options, servers, OTHER)
        assert (file.reached(ME), file.reached(OTHER)) == (4, 12)
        assert [version.generation for version in file.versions()] == [12, 4, 0]

    def test_damaged(self) -> None:
        """What cannot be read says nothing, and is written over."""
        file = self.make_file()
        Path(file.path + ".lock").write_bytes(b"\xff\x00 nonsense\n" + ME.encode() + b" x\n")
        assert file.reached(ME) is None
        file.write_if_newer(4, FarmOptions(id=FARM), (make_server(1),), ME)
        assert file.reached(ME) == 4
        Path(file.path + ".lock").write_bytes(f"{ME} {'9' * 5000}\n{OTHER} 3\n".encode())
        assert (file.reached(ME), file.reached(OTHER)) == (None, 3)
        file.write_if_newer(5, FarmOptions(id=FARM), (make_server(1),), ME)
        assert file.reached(ME) == 5
