"""`chunkfarm init`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.cli import init as initial
from chunkfarm.cli.commands import chunkfarm
from chunkfarm.config import Config, read_config
from chunkfarm.model import Address
from chunkfarm.trust.private import TrustError
from chunkfarm.trust.proof import read_join_key


class InitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.config = self.folder / "config.ini"
        self.join = self.folder / "farm.join"

    def init(self, *hosts: str) -> Result:
        return CliRunner().invoke(chunkfarm, ["--config", str(self.config), "init", *hosts])

    def written(self) -> Config:
        return read_config(str(self.config), {})

    def refused(self, *hosts: str) -> str:
        result = self.init(*hosts)
        assert result.exit_code == exits.USAGE, result.output
        assert os.listdir(self.folder) == []
        return result.stderr

    def test_a_list(self) -> None:
        """A config.ini that any server of the list can start with, and a join key that nobody else may read."""
        result = self.init("alpha.example.org", "10.0.0.2:5000", "alpha.example.net")
        assert result.exit_code == exits.DONE, result.output
        assert "twistd chunkfarm" in result.stdout
        config = self.written()
        assert [(row.name, row.host, row.client, row.peer, row.files) for row in config.servers] == [
            ("alpha", "alpha.example.org", 4100, 4101, 4102),
            ("10.0.0.2", "10.0.0.2", 5000, 5001, 5002),
            ("alpha-2", "alpha.example.net", 4100, 4101, 4102),
        ]
        assert (config.farm.id, config.generation, config.server.host) == ("", 0, None)
        assert len(read_join_key(self.join)) == 32
        assert stat.S_IMODE(self.join.stat().st_mode) == 0o600
        assert stat.S_IMODE(self.config.stat().st_mode) == 0o644
        assert sorted(os.listdir(self.folder)) == ["config.ini", "farm.join"]

    def test_chunksize_first(self) -> None:
        """chunksize is the first option of the file."""
        self.init("alpha")
        options = [line for line in self.config.read_text().splitlines() if "=" in line and not line.startswith(";")]
        assert options[0].startswith("chunksize = 8M")

    def test_one_machine(self) -> None:
        """Several servers on this machine: they advertise what the list says."""
        assert self.init("127.0.0.1", "127.0.0.1:4110").exit_code == exits.DONE
        assert [row.name for row in self.written().servers] == ["127.0.0.1", "127.0.0.1-2"]
        assert self.written().server.host == "127.0.0.1"

    def test_ipv6(self) -> None:
        """An IPv6 address stands in brackets if a port follows it."""
        assert self.init("[fd00::1]:4200", "fd00::2", "[::1]").exit_code == exits.DONE
        assert [(row.name, row.host, row.client) for row in self.written().servers] == [
            ("fd00--1", "fd00::1", 4200),
            ("fd00--2", "fd00::2", 4100),
            ("1", "::1", 4100),
        ]

    def test_nothing_is_overwritten(self) -> None:
        """Neither file is touched if one of them is there, and the other is not made."""
        for there, other in ((self.config, self.join), (self.join, self.config)):
            there.write_text("mine")
            result = self.init("alpha")
            assert result.exit_code == exits.FAILED
            assert result.stderr == f"chunkfarm: {there} exists already, so nothing was written\n"
            assert there.read_text() == "mine" and not other.exists()
            there.unlink()
        self.config.symlink_to("nowhere")
        assert self.init("alpha").exit_code == exits.FAILED
        assert os.listdir(self.folder) == ["config.ini"]

    def test_both_or_neither(self) -> None:
        """If config.ini cannot be written, there is no join key left without it."""

        def fails(*arguments: object, **more: object) -> None:
            raise TrustError("the disk is full")

        self.patch(initial, "write_public", fails)
        result = self.init("alpha")
        assert (result.exit_code, result.stderr) == (exits.FAILED, "chunkfarm: the disk is full\n")
        assert os.listdir(self.folder) == []

    def test_no_such_folder(self) -> None:
        """A folder that is not there is an error with a sentence."""
        self.config = self.folder / "none" / "config.ini"
        result = self.init("alpha")
        assert result.exit_code == exits.FAILED
        assert result.stderr.startswith("chunkfarm: cannot write ")

    def test_bad_hosts(self) -> None:
        """What is no address is a usage error that says what was expected."""
        assert "expected a host name or an IP address" in self.refused("10.0.0.256")
        assert "expected a port number from 1 to 65533" in self.refused("alpha:65534")
        assert "expected a port number from 1 to 65533" in self.refused("alpha:")
        self.refused("[::1]:")
        assert "expected an IPv6 address as [address]" in self.refused("[::1")
        self.refused("0.0.0.0")
        self.refused("alpha:x")
        self.refused("al pha")
        self.refused("")
        self.refused()
        assert "share a port" in self.refused("alpha", "alpha")
        assert "share a port" in self.refused("alpha:4100", "alpha:4102")

    @given(st.text(alphabet="a1.:[]-% ", max_size=12))
    @example("fe80::1%eth0")
    def test_any_text(self, text: str) -> None:
        """An address is understood, or is an error that says what was expected."""
        try:
            address = initial.read_address(text)
        except ValueError as error:
            assert "expected" in str(error)
        else:
            assert isinstance(address, Address)
            initial.render(initial.make_list([address]))
