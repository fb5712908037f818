"""The manual pages say what the program does, and can be read."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib

import click
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli.commands import chunkfarm
from chunkfarm.config_text import SERVER_OPTIONS
from chunkfarm.config_values import FARM_READERS
from chunkfarm.limits import LIMIT_READERS
from tests.manual_pages import ROOT, every_command, pages, roff

FOLDER = ROOT / "docs" / "man"
REWRITE = "CHUNKFARM_REWRITE_DOCUMENTS"


class ManualTests(SynchronousTestCase):
    def test_up_to_date(self) -> None:
        """The pages are those that the definitions make; CHUNKFARM_REWRITE_DOCUMENTS=1 writes them anew."""
        for name, text in pages().items():
            path = FOLDER / name
            if os.environ.get(REWRITE):
                path.write_text(text)
            assert path.read_text() == text, f"{path} is old: {REWRITE}=1 pytest {__file__}"

    def test_examples(self) -> None:
        """The help of every command has an example that begins with it, and stands in the page."""
        page = pages()["chunkfarm.1"]
        for path, command in every_command(chunkfarm):
            if isinstance(command, click.Group):
                continue
            lines = [line.strip() for line in (command.help or "").partition("\b")[2].splitlines()]
            called = " ".join(("chunkfarm", *path))
            examples = [line for line in lines if called in line]
            assert examples, called
            assert all(roff(line) in page for line in examples), called

    def test_options(self) -> None:
        """Every option of config.ini and of the server is in the page of the file."""
        page = pages()["chunkfarm.ini.5"]
        for option in (*FARM_READERS, "generation", *SERVER_OPTIONS, *LIMIT_READERS):
            assert f"\n\\fB{option} =\\fR\n" in page, option

    def test_each_for_itself(self) -> None:
        """What an option means stands below its own name, with its default, and not what another one means."""
        page = pages()["chunkfarm.ini.5"]
        limits = page.partition(".SH [limits]\n")[2].partition("\n.SH ")[0]
        assert limits.count(".TP\n") == len(LIMIT_READERS) == limits.count(" Default: ")
        shared = [line for line in page.splitlines() if "ertificate" in line and page.count(f"\n{line}\n") > 1]
        assert shared == []

    def test_lines_that_go_on(self) -> None:
        """What a line of a list goes on with stands below its text, as in the help."""
        shown = pages()["chunkfarm.1"].splitlines()
        first = next(number for number, line in enumerate(shown) if line.startswith("kill\\-first   the first"))
        assert shown[first + 1].startswith(" " * len("kill-first   ") + "and how long")

    def test_installed(self) -> None:
        """The wheel takes each page to where `man` looks for it."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
        for name in pages():
            assert shared[f"docs/man/{name}"] == f"share/man/man{name[-1]}/{name}"

    def test_rendered(self) -> None:
        """groff and mandoc have nothing to complain about."""
        for name in pages():
            for checker in (["groff", "-man", "-ww", "-z", "-Tutf8"], ["mandoc", "-Tlint", "-Wwarning"]):
                if shutil.which(checker[0]) is not None:
                    done = subprocess.run([*checker, str(FOLDER / name)], capture_output=True, text=True, timeout=60)
                    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0), checker
