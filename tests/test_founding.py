"""What a founder leaves behind that stops half-way, and what the next start makes of it."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.data_directory import write_atomically
from chunkfarm.founding import MARKER, discard_unrecorded, remove_marker

MADE = "a" * 32
OTHER = "b" * 32


class DiscardTests(SynchronousTestCase):
    """A farm that `config.ini` does not name is nobody's; one that it names is not to be touched."""

    def make_directory(self, marker: str | None = MADE) -> Path:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        for name in (
            "table.sqlite",
            "server.pem",
            "server.key",
            "ca.pem",
            "seal.key",
            "admin.key",
            "netrc",
            "server.id",
        ):
            (directory / name).write_text("x")
        if marker is not None:
            write_atomically(directory / MARKER, marker.encode())
        return directory

    def names(self, directory: Path) -> set[str]:
        return {path.name for path in directory.iterdir()}

    def test_before_the_record(self) -> None:
        """No farm is recorded: what was made goes, the server id stays."""
        directory = self.make_directory()
        assert discard_unrecorded(directory, "")
        assert self.names(directory) == {"server.id"}

    def test_after_the_record(self) -> None:
        """The file names this farm: only the marker goes."""
        directory = self.make_directory()
        assert not discard_unrecorded(directory, MADE)
        assert MARKER not in self.names(directory)
        assert "table.sqlite" in self.names(directory)

    def test_somebody_else_founded_meanwhile(self) -> None:
        """On a shared file another server was quicker after the crash: its farm is the one, and ours goes."""
        directory = self.make_directory()
        assert discard_unrecorded(directory, OTHER)
        assert self.names(directory) == {"server.id"}

    def test_no_marker(self) -> None:
        """Without a marker nothing was half-done, whatever the file names."""
        directory = self.make_directory(None)
        for recorded in ("", MADE, OTHER):
            assert not discard_unrecorded(directory, recorded)
        assert "table.sqlite" in self.names(directory)

    def test_killed_while_discarding(self) -> None:
        """The marker goes last, so that the next start goes on where this one stopped."""
        directory = self.make_directory()
        (directory / "table.sqlite").unlink()
        assert discard_unrecorded(directory, "")
        assert self.names(directory) == {"server.id"}

    def test_a_marker_that_says_nothing(self) -> None:
        """It does not say which farm was made, so a recorded one is left alone."""
        directory = self.make_directory("")
        assert not discard_unrecorded(directory, MADE)
        assert "table.sqlite" in self.names(directory)

    def test_removing_twice(self) -> None:
        """Taking the marker away is harmless where there is none."""
        directory = self.make_directory()
        remove_marker(directory)
        remove_marker(directory)
        assert MARKER not in self.names(directory)
