"""`chunkfarm drill` as a person runs it: all drills pass, and nothing is left of them, also after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.drill.servers import environment
from tests.slow.real_farm import CLI

pytestmark = pytest.mark.slow

DRILL_SECONDS = 240.0
"""For one of them, on a machine that is busy with other things."""
CLEANED_SECONDS = 15.0


class DrillTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.base = Path(self.mktemp()).absolute()
        self.base.mkdir(parents=True)

    def start(self, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        """The command, and the folder in which it makes what is temporary."""
        folder = Path(tempfile.mkdtemp(dir=self.base))
        process = subprocess.Popen(
            [*CLI, "drill", *arguments],
            cwd=folder,
            env={**environment(os.environ), "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, folder

    def passes(self, *drills: str) -> None:
        """Run some of them, and look at what they told."""
        for drill in drills:
            process, folder = self.start(drill, "--json")
            out, told = process.communicate(timeout=DRILL_SECONDS)
            print(told.decode())
            assert process.returncode == 0, told.decode()
            (story,) = json.loads(out)
            assert story["drill"] == drill and story["passed"] and story["seconds"], story
            self.nothing_is_left(folder)

    def nothing_is_left(self, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        assert str(folder) not in Path("/proc/mounts").read_text()
        assert servers_in(folder) == []

    def test_all(self) -> None:
        """Each drill passes; two run at a time, since each waits for clocks most of the time."""
        faults: list[BaseException] = []

        def beside() -> None:
            try:
                self.passes("partition")
            except BaseException as error:
                faults.append(error)

        begun = time.monotonic()
        thread = threading.Thread(target=beside)
        thread.start()
        try:
            self.passes("kill-first", "flip-bit", "fill-disk")
        finally:
            thread.join()
        print(f"all drills took {time.monotonic() - begun:.0f} s")
        if faults:
            raise faults[0]

    def test_interrupted(self) -> None:
        """Ctrl-C in the middle ends all servers; so does a terminal that goes away."""
        started = {number: self.start("partition", "--servers", "3") for number in (signal.SIGINT, signal.SIGHUP)}
        for number, (process, folder) in started.items():
            self.interrupt(process, folder, number)

    def interrupt(self, process: subprocess.Popen[bytes], folder: Path, number: signal.Signals) -> None:
        assert process.stdout is not None and process.stderr is not None
        while b"all of them serve" not in process.stdout.readline():
            assert process.poll() is None
        running = servers_in(folder)
        assert len(running) == 3
        process.send_signal(number)
        _, said = process.communicate(timeout=CLEANED_SECONDS)
        assert process.returncode == 130 and b"interrupted" in said, said
        self.nothing_is_left(folder)
        assert not [pid for pid in running if Path(f"/proc/{pid}").exists()]


def servers_in(folder: Path) -> list[int]:
    """The processes whose config.ini is somewhere in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(folder) + b"/") for word in words):
            found.append(int(entry.parent.name))
    return found
