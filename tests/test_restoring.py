"""The table back from an export: what is found, what is written, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import ConfigError
from chunkfarm.data_directory import DataDirectoryError
from chunkfarm.exports.form import EXPORT_KEY, read_kept
from chunkfarm.history import NOTE, Memory
from chunkfarm.model import EPOCH_KEY, GENERATION_KEY, LINES_KEY, ROTATION_WANTED_KEY, SERVERS, Server
from chunkfarm.restoring import GENERATION_LEAP, REVISION_LEAP, CannotRestore
from chunkfarm.table.journal import Journal
from chunkfarm.table.journal_file import JournalError
from chunkfarm.table.lines import TERM_LEAP, Fork, read_chain
from chunkfarm.table.records import Configuration
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.seal import SealKey
from tests.builders import make_server, server_id
from tests.survivor import FARM, ME, NOW, Survivor

X = Fork("1" * 32, 300, 2)


class RestoringTestCase(SynchronousTestCase):
    def make(self) -> Survivor:
        return Survivor(self.mktemp())

    def refused(self, survivor: Survivor, *more: Path, force: bool = False) -> str:
        return str(self.assertRaises(CannotRestore, survivor.plan, *more, force=force))

    def servers(self, survivor: Survivor) -> dict[str, Server]:
        """The server rows that were restored, by name."""
        rows = [row for key, row in survivor.restored().items() if key.startswith(SERVERS)]
        return {server.name: server for server in (Server.from_value(row.value, row.revision) for row in rows)}


class FindingTests(RestoringTestCase):
    def test_by_looking(self) -> None:
        """Exports are found among all chunks by their first bytes, the newest first; other farms' are passed over."""
        survivor = self.make()
        survivor.export(revision=100)
        kept = survivor.export()
        survivor.export(revision=900, farm="0b" * 16)
        found = survivor.found()
        assert [one.head.revision for one in found] == [500, 100]
        assert found[0].digest == kept.digest and all(one.is_whole for one in found)

    def test_a_missing_chunk(self) -> None:
        """It is said which one; with another directory that has it, the export is whole."""
        survivor = self.make()
        survivor.export(lose=0)
        (found,) = survivor.found()
        assert found.missing == found.head.digests[:1]
        said = self.refused(survivor)
        assert found.missing[0].hex() in said and "--from" in said
        other = survivor.directory / "other"
        survivor.export(chunks=other / "chunks")
        for more in (other, other / "chunks"):
            assert survivor.found(more)[0].is_whole
        # Whatever is looked into stays as it was.
        assert {path.name for path in other.iterdir()} <= {"chunks", "index.sqlite"}

    def test_a_damaged_chunk(self) -> None:
        """What rotted is missing."""
        survivor = self.make()
        survivor.export()
        (pack,) = (survivor.data / "chunks" / "packs").glob("*.pack")
        data = bytearray(pack.read_bytes())
        data[2000] ^= 1
        pack.write_bytes(data)
        assert "not whole" in self.refused(survivor)

    def test_damage_on_a_disk_that_is_only_read(self) -> None:
        """A damaged chunk that cannot even be put aside costs itself, and no look at all the others."""
        survivor = self.make()
        survivor.export()
        digest = bytes(range(32))
        path = survivor.data / "chunks" / "00" / f"{digest.hex()}.chunk"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no chunk at all")

        def refusing(source: str, to: str) -> None:
            raise OSError(errno.EROFS, "Read-only file system", source)

        with mock.patch("os.rename", refusing):
            assert [one.is_whole for one in survivor.found()] == [True]
            restoring = survivor.open()
            self.addCleanup(restoring.close)
            assert restoring.pieces.read(digest) is None

    def test_noted(self) -> None:
        """What the server wrote down of its exports saves looking at every chunk."""
        survivor = self.make()
        survivor.export(noted=True)
        restoring = survivor.open()
        self.addCleanup(restoring.close)
        assert [one.head.revision for one in restoring.pieces.noted(FARM)] == [500]
        assert restoring.pieces.noted("0b" * 16) == []


class RestoreTests(RestoringTestCase):
    def test_the_rows(self) -> None:
        """All rows are there as they were, with their revisions, and this server votes alone."""
        survivor = self.make()
        kept = survivor.export()
        before = {row.key: row for row in survivor.rows()}
        plan = survivor.restore()
        after = survivor.restored()
        changed = {GENERATION_KEY, LINES_KEY, EXPORT_KEY, EPOCH_KEY}
        for key, row in before.items():
            if key not in changed and not key.startswith(SERVERS):
                assert after[key] == row
        assert after.keys() - before.keys() == {LINES_KEY, EXPORT_KEY, EPOCH_KEY} and plan.rows == len(before)
        assert read_kept(after[EXPORT_KEY].value) == (kept,), "or its chunks would be collected"
        assert after[EPOCH_KEY].revision == plan.index, "or chunks that were collected since could be relied on"
        journal = survivor.journal()
        self.addCleanup(journal.close)
        loaded = journal.load()
        assert loaded.snapshot.index == loaded.applied == journal.applied == 500 + REVISION_LEAP
        assert loaded.snapshot.configuration == Configuration(voters=(server_id(ME),))
        assert loaded.hard_state.term == 3 + TERM_LEAP and loaded.caught_up and not loaded.entries
        assert journal.farm_id == FARM

    def test_the_servers(self) -> None:
        """This server is up, all others are down until they come back, and nobody's place in the line changes."""
        survivor = self.make()
        survivor.export()
        survivor.restore()
        servers = self.servers(survivor)
        assert {name: server.state for name, server in servers.items()} == {
            "s1": "down",
            "s2": "down",
            "s3": "down",
            "s4": "up",
            "s5": "down",
        }
        assert {server.seniority for server in servers.values()} == {1, 2, 3, 4, 5}
        assert servers["s1"].since == NOW + 5

    def test_who_came_and_went_since(self) -> None:
        """A config.ini that is newer than the export says who belongs: who joined is there, who was put out is not."""
        survivor = self.make()
        survivor.export()
        here = [survivor.servers[0], *survivor.servers[2:], make_server(6)]
        survivor.write_config(generation=9, servers=here)
        plan = survivor.restore()
        servers = self.servers(survivor)
        assert set(servers) == {"s1", "s3", "s4", "s5", "s6"}
        assert servers["s6"].seniority > servers["s5"].seniority and servers["s6"].peer == 4161
        assert any("s2 left the farm" in note for note in plan.notes)
        assert int(survivor.restored()[GENERATION_KEY].value) == 9 + GENERATION_LEAP

    def test_an_older_list(self) -> None:
        """A config.ini that is older than the export puts nobody out."""
        survivor = self.make()
        survivor.export()
        survivor.write_config(generation=5, servers=survivor.servers[:3])
        survivor.restore()
        assert set(self.servers(survivor)) == {"s1", "s2", "s3", "s4", "s5"}
        assert int(survivor.restored()[GENERATION_KEY].value) == 7 + GENERATION_LEAP

    def test_who_joined_after_the_export(self) -> None:
        """The server that goes on need not be in the export itself."""
        survivor = self.make()
        survivor.servers = survivor.servers[:3]
        survivor.export()
        plan = survivor.restore()
        assert self.servers(survivor)["s4"].state == "up" and plan.server == "s4"

    def test_the_line(self) -> None:
        """A new line of the farm's history leaves the old one at the export; takeovers known here stay in it."""
        survivor = self.make()
        survivor.export(survivor.rows(lines=(X,)))
        survivor.restore()
        chain = read_chain(json.loads(survivor.restored()[LINES_KEY].value))
        assert chain[0] == X and (chain[1].index, chain[1].term) == (500, 3)
        journal = survivor.journal()
        self.addCleanup(journal.close)
        assert Memory.from_text(journal.note(NOTE)).chain == chain

    def test_a_takeover_after_the_export(self) -> None:
        """This server had heard of it, so it is of the line that was left, too."""
        survivor = self.make()
        survivor.export()
        journal = survivor.journal()
        journal.set_note(NOTE, Memory(chain=(Fork(X.line, 600, 4),)).to_text())
        journal.set_note("withheld", "for some reason")
        journal.close()
        survivor.restore()
        chain = read_chain(json.loads(survivor.restored()[LINES_KEY].value))
        assert [fork.index for fork in chain] == [600, 500]
        journal = survivor.journal()
        self.addCleanup(journal.close)
        assert journal.note("withheld") == "", "what this journal had to wait for is gone with it"

    def test_over_an_older_table(self) -> None:
        """A server that held the table once, and has an older one, is as good as any."""
        survivor = self.make()
        survivor.export()
        journal = survivor.journal()
        journal.restore(server_id(ME), 9, 400, survivor.rows()[:3], {"farm": FARM})
        journal.close()
        survivor.restore()
        journal = survivor.journal()
        self.addCleanup(journal.close)
        assert journal.load().hard_state.term == 9 + TERM_LEAP and journal.applied == 500 + REVISION_LEAP

    def test_killed_in_the_middle(self) -> None:
        """Whenever it ends, there is the old table as it was or the new one as a whole, and it may be said again."""
        survivor = self.make()
        survivor.export()
        journal = survivor.journal()
        journal.restore(server_id(ME), 9, 400, survivor.rows()[:3], {"farm": FARM})
        journal.close()
        before = survivor.restored()
        for step in range(1, 60):
            shutil.copytree(survivor.data, survivor.directory / "saved")
            with mock.patch("chunkfarm.table.journal_file.Files.sync", Dying(step)):
                try:
                    survivor.restore()
                except Killed:
                    pass
                else:
                    break
            # The process is gone: what it had open is closed, and nothing was tidied up.
            after = survivor.restored()
            assert after == before or len(after) > 300, step
            shutil.rmtree(survivor.data)
            (survivor.directory / "saved").rename(survivor.data)
        assert step > 3
        assert len(survivor.restored()) > 300


class Killed(BaseException):
    """The process was killed."""


class Dying:
    """Stands in for a call; the process is killed at the one of that number."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, path: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class RefusingTests(RestoringTestCase):
    def test_a_newer_table_here(self) -> None:
        """Then `chunkfarm takeover` loses less; whoever insists goes back to the export all the same."""
        survivor = self.make()
        survivor.export()
        journal = survivor.journal()
        journal.restore(server_id(ME), 9, 600, survivor.rows()[:3], {"farm": FARM})
        journal.close()
        said = self.refused(survivor)
        assert "chunkfarm takeover" in said and "600" in said and len(survivor.restored()) == 3
        survivor.restore(force=True)
        assert len(survivor.restored()) > 300
        # And what was restored is not restored twice.
        assert "chunkfarm takeover" in self.refused(survivor)

    def test_a_running_server(self) -> None:
        """Neither its own data directory nor one that is looked into may be in use."""
        survivor = self.make()
        survivor.export()
        running = survivor.open()
        self.assertRaises(DataDirectoryError, survivor.open)
        other = Survivor(self.mktemp())
        other.export()
        assert "runs" in str(self.assertRaises(CannotRestore, other.open, survivor.data))
        running.close()
        survivor.open().close()

    def test_a_newer_table_in_another_directory(self) -> None:
        """Who is only asked for chunks may know more as well."""
        survivor, other = self.make(), self.make()
        survivor.export()
        (other.data / "chunks").mkdir()
        journal = other.journal()
        journal.restore(server_id(5), 9, 600, (), {"farm": FARM})
        journal.close()
        said = self.refused(survivor, other.data)
        assert f"the server of {other.data}" in said and "chunkfarm takeover" in said
        survivor.plan(other.data, force=True)

    def test_a_damaged_table(self) -> None:
        """It is left for whoever wants to look at it; without it the export is restored."""
        survivor = self.make()
        survivor.export()
        (survivor.data / "table.sqlite").write_bytes(b"rotten" * 1000)
        assert "move it away" in str(self.assertRaises(CannotRestore, survivor.open))
        (survivor.data / "table.sqlite").unlink()
        survivor.restore()
        assert len(survivor.restored()) > 300

    def test_somebody_else_s_directory(self) -> None:
        """Files of another user than the server's would be of no use to it."""
        survivor = self.make()
        with mock.patch("chunkfarm.restoring.os.geteuid", lambda: os.getuid() + 1):
            said = str(self.assertRaises(CannotRestore, survivor.open))
        assert f"sudo -u '#{os.getuid()}'" in said

    def test_what_is_no_data_directory(self) -> None:
        """A directory that no server has used, or one whose server never joined, and nothing is made in it."""
        survivor = self.make()
        (survivor.data / "server.pem").unlink()
        assert "never joined" in str(self.assertRaises(CannotRestore, survivor.open))
        shutil.rmtree(survivor.data)
        assert "not the data directory" in str(self.assertRaises(CannotRestore, survivor.open))
        assert not survivor.data.exists()
        os.unlink(survivor.directory / "config.ini")
        self.assertRaises(ConfigError, survivor.open)

    def test_another_farm(self) -> None:
        """config.ini, the data directory and the export are of one farm."""
        survivor = self.make()
        journal = survivor.journal()
        journal.farm_id = "0b" * 16
        journal.close()
        assert "give the one that goes with the other" in str(self.assertRaises(CannotRestore, survivor.open))
        survivor = self.make()
        other = Survivor(self.mktemp())
        survivor.export(other.rows())
        assert "another CA" in self.refused(survivor)

    def test_no_master(self) -> None:
        """A server that may not be a master would have to be one."""
        survivor = self.make()
        survivor.export()
        survivor.write_config(more="master = no")
        assert "master = no" in self.refused(survivor)

    def test_a_head_that_lies(self) -> None:
        """Pages in the wrong order, rows that are missing or newer: nothing is written."""
        for rows, revision in ((5, 500), (309, 9)):
            survivor = self.make()
            survivor.export(rows=rows, revision=revision)
            self.refused(survivor)
        survivor = self.make()
        survivor.files = {f"home/{number:05d}": number for number in range(3_000)}
        survivor.export()
        pages = survivor.found()[0].head.pages
        survivor.export(revision=501, pages=pages[32:] + pages[:32])
        assert "out of order" in self.refused(survivor)
        assert survivor.restored() == {}

    def test_an_export_without_options(self) -> None:
        """One that was made while the farm was being founded is of no use."""
        survivor = self.make()
        survivor.export([row for row in survivor.rows() if not row.key.startswith(b"farm/")])
        assert "options" in self.refused(survivor)


class SecretsTests(RestoringTestCase):
    def test_with_the_key(self) -> None:
        """A server with the key to the farm's secrets has nothing more to say of them."""
        survivor = self.make()
        survivor.export()
        assert not any("sealed" in note for note in survivor.plan().notes)

    def test_without_the_key(self) -> None:
        """It is said plainly what does not work."""
        for change in ("gone", "other"):
            survivor = self.make()
            survivor.export()
            (survivor.data / "seal.key").unlink()
            if change == "other":
                SealKey.create().save(survivor.data)
            note = survivor.plan().notes[0]
            assert "no server can join" in note and "seal.key" in note
            survivor.restore()

    def test_an_export_of_before_the_ca_was_changed(self) -> None:
        """It is restored, by a server whose CA that one introduced, and the CA is to be changed again."""
        survivor = self.make()
        survivor.export()
        identity = Identity.load(survivor.data, server_id(ME))
        assert identity is not None
        after = Authority.create(FARM, NOW)
        signed = after.sign(identity.signing_request(), server_id(ME), [], NOW)
        introduction = survivor.authority.introduce(after.certificate)
        identity.certified(signed + introduction, after.certificate_pem).save(survivor.data)
        seal = SealKey.load(survivor.data)
        new = SealKey.create()
        seal.beside(new.material).led_by(new.digest).save(survivor.data)
        assert any("changed its CA after the export" in note for note in survivor.plan().notes)
        survivor.restore()
        assert ROTATION_WANTED_KEY in survivor.restored()

    def test_what_is_told(self) -> None:
        """A person is told what is lost, and what comes back that should not."""
        survivor = self.make()
        survivor.export()
        told = " ".join(survivor.plan().notes)
        assert "stored under a name after the export" in told and "Keys that were removed" in told


class JournalTests(SynchronousTestCase):
    def test_behind_what_is_there(self) -> None:
        """An index at which the journal has something else already is refused."""
        path = os.path.join(self.mktemp())
        os.makedirs(path)
        journal = Journal.open(os.path.join(path, "table.sqlite"))
        self.addCleanup(journal.close)
        journal.restore("a", 1, 50, (), {})
        self.assertRaises(JournalError, journal.restore, "a", 1, 50, (), {})
        assert journal.applied == 50
        journal.set_note("x", "y")
        assert journal.note("x") == "y"
