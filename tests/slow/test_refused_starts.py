"""Starts that must fail: one clear sentence, exit status 1, and the disk as it was."""

from __future__ import annotations

import socket

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import RealFarm, hash_of_folder

pytestmark = pytest.mark.slow

MOVING = ("*.log", "twistd.pid", "lock", "config.ini.lock", "*-shm", "*-wal")
"""What any process leaves in its folders."""


def one_sentence(logged: str) -> str:
    """The only line that says what is wrong."""
    assert "Traceback" not in logged, logged
    told = [line for line in logged.splitlines() if "chunkfarm: " in line or "cannot start" in line.lower()]
    assert len(told) == 1, logged
    return told[0]


class BadConfigTests(FarmTestCase):
    """Each of these ends before anything is made, the data directory included."""

    def refused(self, text: str | bytes, *expected: str) -> None:
        farm = self.make_farm()
        content = text.encode() if isinstance(text, str) else text
        farm.config_path.write_bytes(content)
        before = hash_of_folder(farm.directory)

        logged = farm.fails_to_start("alpha")

        told = one_sentence(logged)
        for words in (str(farm.config_path), *expected):
            assert words in told, f"{words!r} is not in: {told}"
        assert hash_of_folder(farm.directory, but=["*.log"]) == before
        assert not (farm.directory / "alpha").exists()

    def test_unknown_option(self) -> None:
        """An option that does not exist is an error that names its line."""
        self.refused("[farm]\nchunksize = 8M\nname = lab\nreplica = 3\n", "line 4", "replica")

    def test_unknown_section(self) -> None:
        """So is a section that does not exist."""
        self.refused("[farm]\nchunksize = 8M\n[sever]\ndata = ./data\n", "line 3", "[sever]")

    def test_bad_size(self) -> None:
        """A size that is none is an error that says what was expected."""
        self.refused("[farm]\nchunksize = 8 megabytes\nname = lab\n", "line 2", "chunksize", "8 megabytes")

    def test_half_written(self) -> None:
        """A config that ends in the middle of a line is refused, not read as far as it goes."""
        self.refused("[farm]\nchunksize = 8M\nname = lab\nrepli", "line 4", "repli")

    def test_not_text(self) -> None:
        """A file that is no text is refused with the line where it stops being text."""
        self.refused(b"[farm]\nchunksize = 8M\nname = \xff\xfe\n", "line 3", "UTF-8")

    def test_unreadable(self) -> None:
        """A config that cannot be read, here a directory, is refused."""
        farm = self.make_farm()
        farm.config_path.unlink()
        farm.config_path.mkdir()
        told = one_sentence(farm.fails_to_start("alpha"))
        assert str(farm.config_path) in told and "directory" in told
        assert not (farm.directory / "alpha").exists()

    def test_absent(self) -> None:
        """Without a config nothing is founded."""
        farm = self.make_farm()
        farm.config_path.unlink()
        told = one_sentence(farm.fails_to_start("alpha"))
        assert str(farm.config_path) in told
        assert hash_of_folder(farm.directory, but=["*.log"]) == {}


class TakenPortTests(FarmTestCase):
    def test_each_of_the_three(self) -> None:
        """A port that is taken, whichever it is, ends the start of a new server and makes no farm."""
        for offset, name in enumerate(("client", "peer", "file")):
            farm = self.make_farm()
            base = farm.server("alpha").base
            before = hash_of_folder(farm.directory)
            with socket.create_server(("", base + offset)):
                told = one_sentence(farm.fails_to_start("alpha"))
            assert f"the {name} port" in told and str(base + offset) in told, told
            assert hash_of_folder(farm.directory, but=["*.log"]) == before, "it left something behind"
            farm.start_serving("alpha")

    def test_of_a_server_that_joins(self) -> None:
        """A port that is taken leaves the farm without a row for the server that could not start."""
        farm = self.make_farm("alpha")
        table = farm.ask("alpha", "SERVERS").rows
        for offset, name in enumerate(("client", "peer", "file")):
            config = farm.config_path.read_bytes()
            with socket.create_server(("", farm.server("beta").base + offset)):
                told = one_sentence(farm.fails_to_start("beta"))
            assert f"the {name} port" in told
            assert farm.config_path.read_bytes() == config
            assert [row["name"] for row in farm.rows("alpha")] == ["alpha"], table

    def test_of_a_server_with_data(self) -> None:
        """A port that is taken leaves the data of a server that had joined as they were."""
        farm = self.make_farm("alpha")
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 10)
        before = hash_of_folder(farm.directory, but=MOVING)
        for offset, name in enumerate(("client", "peer", "file")):
            with socket.create_server(("", farm.server("alpha").base + offset)):
                told = one_sentence(farm.fails_to_start("alpha"))
            assert f"the {name} port" in told
            assert hash_of_folder(farm.directory, but=MOVING) == before
        farm.start_serving("alpha")

    def test_data_of_a_running_server(self) -> None:
        """A second process on the data directory of the first is refused, and the first goes on."""
        farm = self.make_farm("alpha")
        twin = farm.server("twin")
        twin.data = farm.server("alpha").data
        told = one_sentence(farm.fails_to_start("twin"))
        assert "in use" in told
        farm.ask("alpha", "PING")


class WrongFarmTests(FarmTestCase):
    """Trust is all or nothing, and what is wrong with it is said on both sides."""

    def joiner_refused(self, farm: RealFarm, *expected: str) -> None:
        """beta must not start, and nothing may change but its own empty data directory."""
        before = hash_of_folder(farm.directory, but=(*MOVING, "alpha/*", "beta/*"))
        told = one_sentence(farm.fails_to_start("beta"))
        for words in expected:
            assert words in told, f"{words!r} is not in: {told}"
        assert hash_of_folder(farm.directory, but=(*MOVING, "alpha/*", "beta/*")) == before
        assert [row["name"] for row in farm.rows("alpha")] == ["alpha"]
        for secret in ("server.pem", "server.key", "seal.key", "admin.key"):
            assert not (farm.server("beta").data / secret).exists(), secret

    def test_other_farm_in_config_than_in_the_data(self) -> None:
        """A config of one farm beside the data of another is refused, with both ids."""
        farm = self.make_farm("alpha")
        farm.sigterm("alpha")
        farm.wait_ended("alpha", 10)
        own = farm.config().farm.id
        other = "0123456789abcdef0123456789abcdef"
        farm.config_path.write_text(farm.config_path.read_text().replace(own, other))
        before = hash_of_folder(farm.directory, but=MOVING)

        told = one_sentence(farm.fails_to_start("alpha"))

        assert own in told and other in told
        assert hash_of_folder(farm.directory, but=MOVING) == before

    def test_wrong_join_key(self) -> None:
        """A server with another join key does not get in."""
        farm = self.make_farm("alpha")
        (farm.directory / "farm.join").write_text("ab" * 32 + "\n")
        self.joiner_refused(farm, "join key", "farm.join")
        assert "wrong join key" in farm.servers["alpha"].logged()

    def test_join_key_that_others_may_read(self) -> None:
        """A join key that others can read is refused, with the cure."""
        farm = self.make_farm("alpha")
        (farm.directory / "farm.join").chmod(0o644)
        self.joiner_refused(farm, "farm.join", "chmod 600")

    def test_no_join_key(self) -> None:
        """Without a join key the sentence says which file to copy from where."""
        farm = self.make_farm("alpha")
        (farm.directory / "farm.join").unlink()
        self.joiner_refused(farm, "farm.join", "copy")

    def test_join_key_that_is_none(self) -> None:
        """A file that holds no join key is refused."""
        farm = self.make_farm("alpha")
        (farm.directory / "farm.join").write_text("please\n")
        self.joiner_refused(farm, "farm.join", "hexadecimal")

    def test_other_ca_in_config(self) -> None:
        """A config that names another CA is a config of another farm: the server does not join."""
        farm = self.make_farm("alpha")
        copy = farm.directory / "machine2"
        copy.mkdir()
        (copy / "farm.join").write_bytes((farm.directory / "farm.join").read_bytes())
        (copy / "farm.join").chmod(0o600)
        text = farm.config_path.read_text().replace(farm.config().farm.ca, "sha256:" + "ab" * 32)
        (copy / "config.ini").write_text(text)

        told = one_sentence(farm.fails_to_start("beta", config=copy / "config.ini"))

        assert "not of the farm" in told, told
        assert (copy / "config.ini").read_text() == text
        assert [row["name"] for row in farm.rows("alpha")] == ["alpha"]

    def test_founder_with_a_join_key_that_others_may_read(self) -> None:
        """A founder does not found with a join key that others can read."""
        farm = self.make_farm()
        (farm.directory / "farm.join").write_text("ab" * 32 + "\n")
        (farm.directory / "farm.join").chmod(0o644)
        config = farm.config_path.read_bytes()
        told = one_sentence(farm.fails_to_start("alpha"))
        assert "farm.join" in told and "chmod 600" in told
        assert farm.config_path.read_bytes() == config
        assert not (farm.server("alpha").data / "admin.key").exists()
