"""How a command ends that is interrupted, or that nobody reads; and what every command has."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import click
from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits
from chunkfarm.cli.commands import chunkfarm
from chunkfarm.cli.download import NewFile
from chunkfarm.errors import FarmError
from tests.cli.world import World
from tests.manual_pages import every_command

IN_WORDS = {"completion", "get", "init", "invite", "key add", "key disable", "key enable", "key remove", "rm"}
"""Commands that print no table."""


class EndingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        (self.world.directory / "a").write_bytes(b"hello")
        assert self.world.run("put", "a").exit_code == 0

    def test_interrupted(self) -> None:
        """Ctrl-C while a server is asked: exit status 130, one word, and no half a file."""
        before = sorted(os.listdir(self.world.directory))
        # The reactor stops before anything has come of it.
        self.world.react = lambda main: None  # type: ignore[method-assign]
        for arguments in (("get", "home/a", "b"), ("put", "a"), ("ls",), ("watch",)):
            result = self.world.run(*arguments)
            assert (result.exit_code, result.stderr) == (exits.INTERRUPTED, "chunkfarm: interrupted\n"), arguments
        assert sorted(os.listdir(self.world.directory)) == before

    def raising(self, error: BaseException) -> Result:
        """The end of a command that raises this."""

        @click.group(cls=exits.Commands)
        def group() -> None:
            pass

        @group.command()
        def fails() -> None:
            raise error

        return CliRunner().invoke(group, ["fails"])

    def test_what_a_server_says(self) -> None:
        """The sentence of an error may be anybody's who answered, and moves no cursor."""
        result = self.raising(FarmError("gone\x1b[2J\r\x9b1m"))
        assert result.exit_code == exits.FAILED
        assert result.stderr == "chunkfarm: gone\N{REPLACEMENT CHARACTER}[2J" + 2 * "\N{REPLACEMENT CHARACTER}" + "1m\n"

    def test_interrupted_elsewhere(self) -> None:
        """The same while a file is looked through, or at a question; an answer of no is no interruption."""
        at_a_question = click.Abort()
        at_a_question.__context__ = KeyboardInterrupt()
        for error in (KeyboardInterrupt(), at_a_question):
            result = self.raising(error)
            assert (result.exit_code, result.stderr) == (exits.INTERRUPTED, "chunkfarm: interrupted\n")
        unanswered = click.Abort()
        unanswered.__context__ = EOFError()
        for error in (click.Abort(), unanswered):
            result = self.raising(error)
            assert (result.exit_code, result.stderr) == (exits.FAILED, "chunkfarm: nothing was done\n")

    def test_nobody_reads(self) -> None:
        """Who pipes into `head` is not told that it has read enough."""
        broken = BrokenPipeError(errno.EPIPE, "Broken pipe")
        result = self.raising(broken)
        assert (result.exit_code, result.output) == (exits.NOBODY_READS, "")
        # In the middle of the bytes of a file.
        with mock.patch("chunkfarm.cli.download.Download._take", side_effect=broken):
            result = self.world.run("get", "home/a", "-")
        assert (result.exit_code, result.output) == (exits.NOBODY_READS, "")

    def test_output_to_a_full_disk(self) -> None:
        """`ls > list` on a disk that is full says so in a sentence, and so does every other command, and --help."""
        full = OSError(errno.ENOSPC, "No space left on device")
        result = self.raising(full)
        sentence = "chunkfarm: the standard output: No space left on device\n"
        assert (result.exit_code, result.stderr) == (exits.FAILED, sentence)
        for arguments in (("--help",), ("ls", "--help"), ("key", "--help"), ("key", "list", "--help")):
            with mock.patch("click.decorators.echo", side_effect=full):
                result = self.world.run(*arguments)
            assert (result.exit_code, result.stderr) == (exits.FAILED, sentence), arguments
        closed = OSError(errno.EBADF, "Bad file descriptor")
        assert self.raising(closed).stderr == "chunkfarm: the standard input or output: Bad file descriptor\n"
        fault = OSError(errno.EINVAL, "Invalid argument")
        assert self.raising(fault).exception is fault, "a fault of the program shows where it is"

    def test_a_file_on_a_full_disk(self) -> None:
        """The complaint names the file, for it might be the farm that is full; nothing unfinished stays behind."""
        before = sorted(os.listdir(self.world.directory))
        full = OSError(errno.ENOSPC, "No space left on device")
        for name, shown in (("b", "b"), ("-", "the standard output")):
            with mock.patch("chunkfarm.cli.download.Download._take", side_effect=full):
                result = self.world.run("get", "home/a", name)
            assert (result.exit_code, result.stderr) == (1, f"chunkfarm: {shown}: No space left on device\n")
        with mock.patch("chunkfarm.cli.upload.Upload._load", side_effect=OSError(errno.EIO, "Input/output error")):
            assert self.world.run("put", "a").stderr == "chunkfarm: a: Input/output error\n"
        path = self.world.directory / "c"
        target = NewFile(path)
        target.stream.close()
        target.stream = open("/dev/full", "wb")  # noqa: SIM115 - `drop` closes it
        target.stream.write(b"what the buffer holds until it is closed")
        target.drop()
        assert sorted(os.listdir(self.world.directory)) == before

    def test_a_device(self) -> None:
        """What is no ordinary file is written to and not replaced; a link keeps pointing to what it points to."""
        assert self.world.run("get", "home/a", "/dev/null").exit_code == 0
        assert not os.path.isfile("/dev/null")
        link, target = self.world.directory / "link", self.world.directory / "target"
        link.symlink_to(target)
        for _ in range(2):
            assert self.world.run("get", "home/a", str(link)).exit_code == 0
            assert link.is_symlink() and target.read_bytes() == b"hello"
        fifo = self.world.directory / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert self.world.run("get", "home/a", str(fifo)).exit_code == 0
            assert os.read(reader, 100) == b"hello"
        finally:
            os.close(reader)
        result = self.world.run("get", "home/a", "/dev/stdout")
        assert result.stdout == "hello"

    def test_a_folder_that_is_not_there(self) -> None:
        """The complaint names the file that was wanted."""
        path = self.world.directory / "none" / "b"
        with self.assertRaises(FileNotFoundError) as caught:
            NewFile(path)
        assert caught.exception.filename == str(path)


class StreamTests(SynchronousTestCase):
    def after(self, redirection: str, code: str) -> str:
        """What this code writes to the third stream or a file `out`, started so."""
        script = f"import errno, os, sys\nfrom chunkfarm.cli import _have_streams\n_have_streams()\n{code}"
        command = ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, script]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def test_closed(self) -> None:
        """No file or connection gets the number of a stream that is closed; using that stream fails, and says so."""
        code = "number = os.open(os.devnull, os.O_RDONLY)\nsys.stderr.write(str(number > 2))\n"
        for redirection in ("<&-", ">&-", "<&- >&-"):
            assert self.after(redirection, code) == "True", redirection
        reading = "try: sys.stdin.buffer.raw.read()\nexcept OSError as error: sys.stderr.write(str(error.errno))"
        assert self.after("<&-", reading) == str(errno.EBADF)
        writing = (
            "try: print('x', flush=True)\nexcept OSError as error: sys.stderr.write(str(error.errno))\nos._exit(0)"
        )
        assert self.after(">&-", writing) == str(errno.EBADF)

    def test_complaints_for_nobody(self) -> None:
        """Who wants no complaints gets none, and all else goes on."""
        path = os.path.abspath(self.mktemp())
        code = f"assert not sys.stderr.isatty()\nprint('x', file=sys.stderr)\nopen({path!r}, 'w').write('done')"
        assert self.after("2>&-", code) == ""
        with open(path) as file:
            assert file.read() == "done"


class EveryCommandTests(SynchronousTestCase):
    def test_json(self) -> None:
        """Whatever prints a table prints JSON if it is asked to."""
        for path, command in every_command(chunkfarm):
            has: Any = [parameter for parameter in command.params if "--json" in parameter.opts]
            if not isinstance(command, click.Group) and " ".join(path) not in IN_WORDS:
                assert has, path
                assert "errors are a sentence" in has[0].help, path

    def test_statuses(self) -> None:
        """Every exit status is told in words, each once."""
        assert sorted(exits.MEANINGS) == [0, 1, 2, 3, 4, 5, 6, 130, 141]
        assert all(str(status) in (chunkfarm.help or "") for status in (*range(7), 130))
