"""The tutorial, typed line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import frozen

from tests.slow.farm_case import FarmTestCase
from tests.slow.real_farm import CLI, ROOT, TWISTD, RealFarm

TUTORIAL = ROOT / "docs" / "tutorial.md"
PATIENCE_SECONDS = 90.0
"""The tutorial speaks of seconds, and once of a minute; this is for a machine that is busy with other things."""
AGAIN = re.compile(r"(echo \w+ \| )?chunkfarm (--\S+ \S+ )?(who|servers|status|explain|ls|forget|drain \S+;|put -)")
"""What a reader types again if it is not yet as it is told: a busy machine acknowledges two copies, and makes the third
a moment later."""
VARIES = re.compile(
    r"""\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+Z)?  # times
    | \d+(\.\d+)?[ ][KMGT]?i?B\b  # sizes
    | \b[A-Z2-7]{16}\b  # key ids
    """,
    re.VERBOSE,
)


@frozen
class Typed:
    """A command, and the lines that are told to follow."""

    command: str
    told: tuple[str, ...]

    def is_answered_by(self, output: str) -> bool:
        """Whether that is what is told, but for what differs each time; `...` stands for any lines."""
        pattern = "".join("(.*\n)*?" if line == "..." else _pattern(line) + "\n" for line in self.told)
        return re.fullmatch(pattern, output) is not None


def _pattern(line: str) -> str:
    """An expression for a line, whose columns may be of another width."""
    fixed = VARIES.sub("\0", line)
    words = [r".+?".join(re.escape(part) for part in word.split("\0")) for word in fixed.split()]
    return r"\s*" + r"\s+".join(words) + r"\s*?"


def typed_lines(text: str) -> list[Typed]:
    """All that the tutorial has typed into a shell, in order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            first, *told = command.rstrip("\n").split("\n")
            found.append(Typed(first, tuple(told)))
    return found


@pytest.mark.slow
class TutorialTests(FarmTestCase):
    """What a newcomer types does what the tutorial says."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        (self.folder / "config.ini").write_text((ROOT / "config.ini").read_text())
        self.commands = self.folder / "bin"
        self.commands.mkdir()
        farm = RealFarm(self.folder / "ports")
        self.addCleanup(farm.close)
        self.bases = {410 + number: farm.server(f"s{number}").base for number in range(4)}
        for name, words in {"twistd": TWISTD, "chunkfarm": CLI}.items():
            quoted = " ".join(f"'{word}'" for word in words)
            (self.commands / name).write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
            (self.commands / name).chmod(0o755)
        self.addCleanup(self.end_servers)

    def end_servers(self) -> None:
        """Leave no server behind."""
        for path in self.folder.glob("*/twistd.pid"):
            with_pid = path.read_text().strip()
            if with_pid.isdigit() and "chunkfarm" in Path(f"/proc/{with_pid}/cmdline").read_text(errors="replace"):
                os.kill(int(with_pid), 9)

    def with_ports(self, text: str) -> str:
        """The same with ports that are free here, also for the first server, which needs no option otherwise."""
        if "twistd chunkfarm" in text and "--ports" not in text:
            text += " --ports 4100"
        return re.sub(r"\b(41[0-3])(\d)\b", lambda match: str(self.bases[int(match[1])] + int(match[2])), text)

    def run_line(self, command: str) -> str:
        """What is seen after a line was typed."""
        path = f"{self.commands}{os.pathsep}{os.environ['PATH']}"
        run = subprocess.run(
            ["/bin/bash", "-c", self.with_ports(command)],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return run.stdout.decode()

    def test_typed(self) -> None:
        """Each line is answered as it is told, at the latest when it is typed again."""
        for line in typed_lines(TUTORIAL.read_text()):
            told = Typed(line.command, tuple(self.with_ports(row) for row in line.told))
            until = time.monotonic() + PATIENCE_SECONDS
            seen = self.run_line(line.command)
            while not told.is_answered_by(seen) and AGAIN.match(line.command) and time.monotonic() < until:
                time.sleep(0.5)
                seen = self.run_line(line.command)
            assert told.is_answered_by(seen), (
                f"{line.command}\n--- told:\n" + "\n".join(told.told) + f"\n--- seen:\n{seen}"
            )
