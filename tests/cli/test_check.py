"""`chunkfarm check`."""

from __future__ import annotations

import json

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import check as checking
from chunkfarm.cli import exits, screen
from tests.cli.world import World
from tests.ports.fakes import OTHER_ID


class CheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        data = b"".join(bytes([number]) * 4096 for number in range(4)) + b"rest"
        self.file = self.world.catalog.add("lab/a", data)
        self.world.catalog.add("lab/b", b"whole")
        self.world.catalog.add("other/c", b"whole too")
        self.transfer = self.world.catalog.transfer

    def test_all_whole(self) -> None:
        """Every file is gone through, and one line says so."""
        result = self.world.run("check")
        assert (result.exit_code, result.stdout) == (0, "3 files, 7 chunks, 16.0 KiB read: all whole\n")
        result = self.world.run("check", "--quick", "lab/")
        assert result.stdout == "2 files, 6 chunks, 16.0 KiB asked about: all whole\n"

    def test_no_such_files(self) -> None:
        """Nothing is whole of which there is nothing: a prefix was mistyped, most likely."""
        result = self.world.run("check", "lba/")
        assert (result.exit_code, result.stdout) == (exits.NOT_FOUND, "")
        assert "no file has a name that begins with 'lba/'" in result.stderr

    def test_what_is_wrong(self) -> None:
        """Each file that is not whole is told with its damage, and the exit status says that something is wrong."""
        self.transfer.damaged.add(self.file.digests[1])
        self.transfer.only.add(self.file.digests[2])
        del self.world.chunks[self.file.digests[3]]
        result = self.world.run("check")
        assert result.exit_code == exits.FAILED
        assert result.stdout.splitlines() == [
            "lab/a: 1 chunk damaged on beta; 2 chunks with 1 of 2 copies; 1 chunk lost",
            "3 files, 7 chunks, 16.0 KiB read: 1 file not whole",
        ]

    def test_how_it_was(self) -> None:
        """Where the masters do not answer, files may have come and gone: that what is told is old is said."""
        self.world.catalog.stale = 134
        result = self.world.run("check", "--json")
        assert (result.exit_code, json.loads(result.stdout)["stale"]) == (0, 134)
        assert result.stderr == "chunkfarm: the masters do not answer; this is how things stood at revision 134\n"

    def test_json(self) -> None:
        """The same for programs."""
        self.transfer.damaged.add(self.file.digests[1])
        told = json.loads(self.world.run("check", "--json").stdout)
        assert (told["files"], told["chunks"]) == (3, 7)
        digest = self.file.digests[1].hex()
        assert told["wrong"] == [
            {
                "name": "lab/a",
                "wanted": 2,
                "damaged": [{"digest": digest, "server": OTHER_ID}],
                "short": [{"digest": digest, "copies": 1}],
                "silent": [],
            }
        ]

    def test_repair(self) -> None:
        """It waits until the farm has mended everything, reads what was damaged once more, and is content."""
        self.transfer.damaged.add(self.file.digests[1])
        self.world.on_idle += [lambda: None] * 3 + [self.transfer.only.clear]
        result = self.world.run("check", "--repair")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[0] == "lab/a: 1 chunk damaged on beta; 1 chunk with 1 of 2 copies"
        assert result.stdout.splitlines()[-1] == "3 files, 7 chunks, 16.0 KiB read: all whole"

    def told(self) -> list[str]:
        """What is told to who watches a terminal, from now on."""
        told: list[str] = []
        self.patch(screen, "progress", told.append)
        return told

    def test_a_pipe(self) -> None:
        """What is left to be done is told on terminals only."""
        self.transfer.only.add(self.file.digests[2])
        result = self.world.run("--timeout", "11", "check", "--repair")
        assert (result.exit_code, result.stderr) == (exits.FAILED, "")

    def test_repair_in_vain(self) -> None:
        """What nobody has cannot be mended: without progress it gives up, and says what is left."""
        del self.world.chunks[self.file.digests[3]]
        told = self.told()
        result = self.world.run("--timeout", "5", "check", "--repair")
        assert result.exit_code == exits.FAILED
        assert told[0] == "2 copies in 1 file left"
        assert "lab/a: 1 chunk lost" in result.stdout
        assert 5 <= self.world.clock.seconds() < 10

    def test_others_come_first(self) -> None:
        """While the farm copies other chunks it does not give up."""
        self.transfer.only.add(self.file.digests[2])
        backend = self.world.servers["alpha"].backend
        done = 0

        def status() -> Deferred[list[tuple[str, str]]]:
            nonlocal done
            done += 1
            if done == 60:
                self.transfer.only.clear()
            return succeed([("repair-done", f"{done}"), ("under-replicated", "9")])

        self.patch(backend, "status", status)
        result = self.world.run("--timeout", "5", "check", "--repair")
        assert result.exit_code == 0 and done >= 60, result.output

    def test_waits_for_a_server(self) -> None:
        """While a server is down that may come back it does not give up, nor before it had time when it is back."""
        self.transfer.only.add(self.file.digests[2])
        rows, told = self.world.servers["alpha"].backend.rows, self.told()
        position = next(number for number, row in enumerate(rows) if row.id == OTHER_ID)
        rows[position] = evolve(rows[position], state="down")
        self.transfer.unheard = frozenset({OTHER_ID})

        def come_back() -> None:
            assert self.world.clock.seconds() > 60
            rows[position] = evolve(rows[position], state="up")
            self.transfer.unheard = frozenset()
            self.world.on_idle += [lambda: None, lambda: None, self.transfer.only.clear]

        def wait() -> None:
            self.world.on_idle.append(wait if self.world.clock.seconds() < 60 else come_back)
            self.world.clock.advance(1.0)

        self.world.on_idle.append(wait)
        result = self.world.run("--timeout", "5", "check", "--repair")
        assert result.exit_code == 0, result.output
        assert told[0] == "1 copy in 1 file left; beta is down, and may come back"
        assert "beta did not answer (it is down): what it has is not counted." in result.stdout

    def test_does_not_wait_for_one_that_is_up(self) -> None:
        """A server that is up, and cannot be reached, is waited for no longer than anything else."""
        self.transfer.only.add(self.file.digests[2])
        self.transfer.unheard = frozenset({OTHER_ID})
        told = self.told()
        result = self.world.run("--timeout", "5", "check", "--quick", "--repair")
        assert result.exit_code == exits.FAILED and 5 <= self.world.clock.seconds() < 10
        assert told[0] == "1 copy in 1 file left; beta is up, and does not answer"

    def test_removed_meanwhile(self) -> None:
        """A file that is removed while it is looked for is no damage; a long one is asked for in runs."""
        self.patch(checking, "PAGE", 2)
        self.transfer.only.add(self.file.digests[4])
        self.world.on_idle += [lambda: None, lambda: self.world.catalog.files.clear()]
        result = self.world.run("check", "--repair")
        assert result.exit_code == 0, result.output
