"""The command line of `twistd chunkfarm`."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm import farm, tap
from chunkfarm.data_directory import DataDirectory
from chunkfarm.drill.ports import ReservedPorts
from chunkfarm.startup import Wish
from chunkfarm.tap import Options
from chunkfarm.trust.private import write_private
from tests.trust.test_invitation import make_invitation

CONFIG = "[farm]\nchunksize = 8M\n\n[servers]\n\n[server]\ndata = ./data\nhost = 127.0.0.1\n"


class Parent(usage.Options):
    """What twistd's own options are to ours."""

    def __init__(self, **values: object) -> None:
        super().__init__()
        self.update({"pidfile": "twistd.pid", "nodaemon": False, "logfile": None, "syslog": False})
        self.update(values)


class OptionsTests(SynchronousTestCase):
    """Mistakes end before anything starts; twistd's files lie with the data."""

    def make_options(
        self, *arguments: str, config: str = CONFIG, look_at_ports: bool = False, **parent: object
    ) -> Options:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        if not look_at_ports:
            # The ports of the default may well be those of a farm that runs on this machine.
            self.patch(tap, "why_taken", lambda place: None)
        (self.folder / "config.ini").write_text(config)
        self.parent = Parent(**parent)
        options = Options()
        options.parent = self.parent
        self.options = options
        options.parseOptions(["--config", os.fspath(self.folder / "config.ini"), *arguments])
        return options

    def refusal(self, *arguments: str, config: str = CONFIG, look_at_ports: bool = False) -> str:
        with self.assertRaises(SystemExit) as caught:
            self.make_options(*arguments, config=config, look_at_ports=look_at_ports)
        assert isinstance(caught.exception.code, str)
        assert "\n" not in caught.exception.code
        assert sorted(os.listdir(self.folder)) == ["config.ini"]
        return caught.exception.code

    def test_the_command_line_overrides(self) -> None:
        """What is given there is handed on, the data directory from where the person stands."""
        options = self.make_options("--data", "elsewhere", "--ports", "5000", "--zone", "attic", "--found")
        assert options.overrides["data"] == os.path.abspath("elsewhere")
        assert options.overrides["ports"] == "5000"
        assert options.overrides["zone"] == "attic"
        assert options.overrides["weight"] is None
        assert options["found"]

    def test_twistds_files_lie_with_the_data(self) -> None:
        """Three servers of one folder get a pid file and a log each."""
        self.make_options("--data", "d2")
        assert self.parent["pidfile"] == os.path.abspath("d2/twistd.pid")
        assert self.parent["logfile"] == os.path.abspath("d2/twistd.log")

    def test_a_persons_choice_stays(self) -> None:
        """A pid file or a log that twistd was told of is not moved, and -n writes to the terminal."""
        self.make_options("--data", "d3", pidfile="", nodaemon=True)
        assert self.parent["pidfile"] == ""
        assert self.parent["logfile"] is None

    def test_a_number_left_by_a_kill(self) -> None:
        """A pid file of a process that has the data no more is taken away."""
        Path("d4").mkdir()
        Path("d4/twistd.pid").write_text("1")
        self.make_options("--data", "d4")
        assert not Path("d4/twistd.pid").exists()

    def test_data_in_use(self) -> None:
        """A second process on the same data is told so before it detaches."""
        data = DataDirectory.open(Path("d5"), UUID(int=1))
        self.addCleanup(data.close)
        assert "in use by another chunkfarm process" in self.refusal("--data", "d5")

    def test_a_port_that_is_taken(self) -> None:
        """It is named before the server detaches, and nothing has been made for it."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            reserved = ReservedPorts(random.Random())
            self.addCleanup(reserved.close)
            port, (free,) = taken.getsockname()[1], reserved.take(1, ["127.0.0.1"])
            for option, name in (("client", "client"), ("peer", "peer"), ("files", "file")):
                ports = {"client": free, "peer": free + 1, "files": free + 2, option: port}
                lines = "".join(f"{key} = tcp:{value}:interface=127.0.0.1\n" for key, value in ports.items())
                told = self.refusal(config=CONFIG + lines, look_at_ports=True)
                assert f"the {name} port tcp:{port}" in told
                assert "Address already in use" in told

    def test_a_certificate_of_ones_own(self) -> None:
        """One that is not there, or is none, is refused before the server goes to the background."""
        assert "nothing.pem does not exist" in self.refusal(config=CONFIG + "certificate = nothing.pem\n")
        path = Path("own.pem").absolute()
        path.write_text("no certificate")
        path.chmod(0o600)
        assert "holds no certificate" in self.refusal(config=CONFIG + f"certificate = {path}\n")
        path.chmod(0o644)
        assert "chmod 600" in self.refusal(config=CONFIG + f"certificate = {path}\n")

    def test_a_join_key_that_was_copied(self) -> None:
        """One that others can read, as a copy often is, is refused at once; who has joined needs it no more."""
        self.make_options()
        join, config = self.folder / "farm.join", os.fspath(self.folder / "config.ini")
        join.write_text("0" * 64 + "\n")
        join.chmod(0o644)
        with self.assertRaises(SystemExit) as caught:
            Options().parseOptions(["--config", config])
        assert f"run chmod 600 {join}" in str(caught.exception.code)
        join.chmod(0o600)
        Options().parseOptions(["--config", config])
        join.write_text("")
        with self.assertRaises(SystemExit):
            Options().parseOptions(["--config", config])
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "data" / "server.pem").write_text("joined")
        Options().parseOptions(["--config", config])

    def test_mistakes(self) -> None:
        """One sentence, naming the file and the line or the option; nothing is written."""
        assert "config.ini, line 2" in self.refusal(config="[farm]\nchunksize = huge\n")
        assert "colour" in self.refusal(config="[farm]\ncolour = blue\n")
        assert "--ports" in self.refusal("--ports", "many")
        assert "--weight" in self.refusal("--weight", "-3")


class ServiceTests(SynchronousTestCase):
    def test_threads_take_turns(self) -> None:
        """Whoever waits for an answer does not wait for a thread that hashes somebody else's chunk."""
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        self.patch(farm, "make_farm", lambda wish, logs, has_terminal: wish)
        wish: Any = tap.makeService(Options())
        assert isinstance(wish, Wish) and sys.getswitchinterval() == pytest.approx(tap.SWITCH_SECONDS)


class JoinTests(SynchronousTestCase):
    """A new machine with a code and nothing else."""

    def make_options(self, code: str, *more: str) -> Options:
        self.patch(tap, "why_taken", lambda place: None)
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        write_private(self.folder / "code", code.encode() + b"\n")
        options = Options()
        options.parent = Parent()
        options.parseOptions(["--config", str(self.folder / "config.ini"), *more])
        return options

    def test_no_config_needed(self) -> None:
        """A config.ini is made for the farm to write into; one that is there stays as it is."""
        options = self.make_options(make_invitation().to_code(), "--join", make_invitation().to_code())
        assert options.invitation == make_invitation()
        written = (self.folder / "config.ini").read_text()
        assert "[servers]" in written and make_invitation().farm not in written

    def test_from_a_file(self) -> None:
        """The code may lie in a file, so that no list of processes shows it."""
        self.patch(tap, "why_taken", lambda place: None)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        write_private(folder / "code", make_invitation().to_code().encode() + b"\n")
        (folder / "config.ini").write_text(CONFIG)
        options = Options()
        options.parseOptions(["--config", str(folder / "config.ini"), "--join", f"@{folder / 'code'}"])
        assert options.invitation == make_invitation()
        assert (folder / "config.ini").read_text() == CONFIG

    def test_open_to_others(self) -> None:
        """A file with a code that others may read is refused, with the cure, as everything that proves a right is."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        code = folder / "a code"
        write_private(code, make_invitation().to_code().encode())
        for mode in (0o644, 0o640, 0o620):
            code.chmod(mode)
            with self.assertRaises(SystemExit) as caught:
                self.make_options("", "--join", f"@{code}")
            assert str(caught.exception.code) == (
                f"chunkfarm: {code} holds a secret but is open to group or others (mode {mode:04o}): "
                f"run chmod 600 '{code}'"
            )
            assert os.listdir(self.folder) == ["code"]

    def test_from_a_pipe(self) -> None:
        """A code that is handed over by a pipe is nobody's to read there, whatever its mode: `<(pass show code)`."""
        reading, writing = os.pipe()
        os.write(writing, make_invitation().to_code().encode() + b"\n")
        os.close(writing)
        os.fchmod(reading, 0o644)
        try:
            assert self.make_options("", "--join", f"@/dev/fd/{reading}").invitation == make_invitation()
        finally:
            os.close(reading)

    def test_no_code(self) -> None:
        """What is no code, or a file that is not there, is refused, and nothing is made."""
        for given in ("chunkfarm1-x", "@/does/not/exist"):
            with self.assertRaises(SystemExit) as caught:
                self.make_options("", "--join", given)
            assert str(caught.exception.code) != "x" and "\n" not in str(caught.exception.code)
            assert os.listdir(self.folder) == ["code"]
