"""`chunkfarm put`, `get`, `ls`, `rm`, `stat`: files, also while servers die."""

from __future__ import annotations

import json
import os
import stat
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.cli import exits, upload
from chunkfarm.cli.download import NewFile
from chunkfarm.errors import Busy, MissingChunks, NotFound, ReadOnly
from chunkfarm.model import digest_of, etag_of
from tests.cli.world import Server, World
from tests.ports.fakes import OTHER_ID, SERVER_ID

DATA = os.urandom(4096 * 10 + 100)


class FileTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(self.mktemp())
        self.file = self.world.directory / "a b.bin"
        self.file.write_bytes(DATA)

    def written(self, server: str) -> int:
        """How many chunks were sent to a server."""
        return len(self.world.servers[server].transfer.written)

    def fetched(self) -> bytes:
        return (self.world.directory / "out").read_bytes()


class PutTests(FileTestCase):
    def test_put(self) -> None:
        """A file is stored under home/ unless a name is given, and the receipt is shown."""
        result = self.world.run("put", "a b.bin")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == "home/a b.bin: 40.1 KiB, at least 2 copies, on 2 servers\n"
        assert self.world.catalog.content("home/a b.bin") == DATA
        assert self.world.run("put", "a b.bin", "x/y").exit_code == 0
        assert self.world.catalog.content("x/y") == DATA

    def test_sizes(self) -> None:
        """Files of any size around a chunk's are stored whole."""
        for size in (0, 1, 4095, 4096, 4097, 8192):
            self.file.write_bytes(DATA[:size])
            assert self.world.run("put", "a b.bin", f"x/{size}").exit_code == 0
            assert self.world.catalog.content(f"x/{size}") == DATA[:size]

    def test_standard_input(self) -> None:
        """The standard input is stored under a name, which must be given."""
        assert self.world.run("put", "-", "x/y", input=DATA).exit_code == 0
        assert self.world.catalog.content("x/y") == DATA
        assert self.world.run("put", "-").exit_code == exits.USAGE

    def test_json(self) -> None:
        """The receipt can be had as JSON."""
        receipt = json.loads(self.world.run("put", "a b.bin", "--json").stdout)
        assert receipt["size"] == len(DATA)
        assert receipt["name"] == "home/a b.bin"
        assert receipt["chunks"] == 11
        assert receipt["holders"] == [SERVER_ID, OTHER_ID], "a list, as explain --json has it"

    def test_server_dies_in_the_middle(self) -> None:
        """When a server dies the next one goes on, and what was acknowledged is not sent again."""
        self.patch(upload, "IN_FLIGHT_BYTES", 1)
        alpha = self.world.servers["alpha"]
        alpha.transfer.fatal = lambda count: count == 6
        alpha.transfer.on_fatal = alpha.die
        result = self.world.run("put", "a b.bin")
        assert (result.exit_code, result.stderr) == (0, "")
        assert self.world.catalog.content("home/a b.bin") == DATA
        assert self.written("alpha") + self.written("beta") <= 11 + upload.IN_FLIGHT_MIN

    def test_memory(self) -> None:
        """However large the file, only a few chunks are in memory, fewer if they are large."""
        large = DATA * 40
        self.file.write_bytes(large)
        flying: list[int] = []
        alpha = self.world.servers["alpha"]
        done = [0]

        def delay(count: int) -> Deferred[None]:
            flying.append(count - done[0])
            return deferLater(self.world.clock, 0.1)

        alpha.transfer.delay = delay
        acknowledged = upload.Upload.acknowledged

        def count(this: upload.Upload, position: int) -> None:
            done[0] += 1
            acknowledged(this, position)

        self.patch(upload.Upload, "acknowledged", count)
        for limit, most in ((upload.IN_FLIGHT_BYTES, upload.IN_FLIGHT_MAX), (1, upload.IN_FLIGHT_MIN)):
            self.patch(upload, "IN_FLIGHT_BYTES", limit)
            flying.clear()
            alpha.transfer.written.clear()
            done[0] = 0
            self.world.chunks.clear()
            assert self.world.run("put", "a b.bin").exit_code == 0
            assert max(flying) == most

    def test_standard_input_survives(self) -> None:
        """So does what can be read only once."""
        alpha = self.world.servers["alpha"]
        alpha.transfer.fatal = lambda count: count == 6
        alpha.transfer.on_fatal = alpha.die
        assert self.world.run("put", "-", "x/y", input=DATA).exit_code == 0
        assert self.world.catalog.content("x/y") == DATA

    def test_server_falls_silent(self) -> None:
        """A server that answers no more, on no link, is given up, and the next one goes on."""
        self.world.servers["alpha"].transfer.fatal = lambda count: count >= 6
        self.world.servers["alpha"].frozen = True
        result = self.world.run("put", "a b.bin")
        assert (result.exit_code, result.stderr) == (0, "")
        assert self.world.dialled == ["alpha", "beta"]
        assert 5 <= self.world.clock.seconds() <= 7

    def test_server_is_slow(self) -> None:
        """A server that is busy but alive is waited for, and none of its work is done twice."""
        alpha = self.world.servers["alpha"]
        alpha.transfer.delay = lambda count: deferLater(self.world.clock, 18 if count == 6 else 0)
        result = self.world.run("put", "a b.bin")
        assert (result.exit_code, result.stderr) == (0, "")
        assert self.world.dialled == ["alpha"]
        [(_, why)] = self.world.waited
        assert why.endswith("alpha (10.0.0.1:4100) has not answered for 5 s")
        assert len(self.world.probed) == 3
        assert self.written("alpha") == 11

    def test_server_is_too_slow(self) -> None:
        """But not for as long as the timeout: another server may do better."""
        self.world.servers["alpha"].transfer.fatal = lambda count: count >= 6
        assert self.world.run("--timeout", "12", "put", "a b.bin").exit_code == 0
        assert self.world.dialled == ["alpha", "beta"]
        assert 8 <= self.world.clock.seconds() <= 10

    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(0, len(DATA)),
        st.lists(st.tuples(st.sampled_from(["alpha", "beta"]), st.integers(1, 12), st.booleans()), max_size=6),
        st.booleans(),
    )
    def test_any_deaths(self, size: int, deaths: list[tuple[str, int, bool]], as_input: bool) -> None:
        """Whichever server dies when, and comes back or not, a file that is reported as stored is stored whole."""
        world = World(self.mktemp())
        (world.directory / "file").write_bytes(DATA[:size])
        for name, server in world.servers.items():
            when = {count: back for which, count, back in deaths if which == name}
            server.transfer.fatal = when.__contains__

            def die(server: Server = server, when: dict[int, bool] = when) -> None:
                server.die()
                if when[len(server.transfer.written)]:
                    world.clock.callLater(1, setattr, server, "refuses", False)

            server.transfer.on_fatal = die
        result = world.run("--timeout", "5", "put", "-" if as_input else "file", "x/y", input=DATA[:size])
        assert result.exit_code in (exits.DONE, exits.NOBODY_ANSWERED), result.output
        if result.exit_code == exits.DONE:
            assert world.catalog.content("x/y") == DATA[:size]
        else:
            assert all(server.refuses for server in world.servers.values())
            assert world.catalog.files == {}

    def test_resumed(self) -> None:
        """What an earlier run has stored is not sent again."""
        for start in range(0, 5 * 4096, 4096):
            self.world.chunks[digest_of(DATA[start : start + 4096])] = DATA[start : start + 4096]
        assert self.world.run("put", "a b.bin").exit_code == 0
        assert self.written("alpha") == 6
        assert self.world.run("put", "a b.bin", "x/again").exit_code == 0
        assert self.written("alpha") == 6
        assert self.world.catalog.content("x/again") == DATA

    def test_few_copies(self) -> None:
        """Chunks that were there in too few copies are sent after all."""
        for start in range(0, 5 * 4096, 4096):
            self.world.chunks[digest_of(DATA[start : start + 4096])] = DATA[start : start + 4096]
        commit, refusals = self.world.catalog.commit, [MissingChunks("too few copies")]

        def refuse_once(*args: Any, **kwargs: Any) -> Any:
            self.world.catalog.error = refusals.pop() if refusals else None
            return commit(*args, **kwargs)

        self.world.catalog.commit = refuse_once  # type: ignore[method-assign]
        self.world.servers["alpha"].transfer.written.clear()

        result = self.world.run("put", "a b.bin")
        assert (result.exit_code, result.stderr) == (0, "")
        assert self.written("alpha") == 11

    def test_a_holder_that_is_stopped(self) -> None:
        """If a holder of what was stored is stopped before the end it is waited until there are copies enough."""
        refusals = [MissingChunks("too few copies")] * 4
        commit = self.world.catalog.commit

        def refuse(*args: Any, **kwargs: Any) -> Any:
            self.world.catalog.error = refusals.pop() if refusals else None
            return commit(*args, **kwargs)

        self.world.catalog.commit = refuse  # type: ignore[method-assign]
        result = self.world.run("put", "-", "x/y", input=DATA)
        assert (result.exit_code, result.stderr) == (0, "")
        assert self.world.catalog.content("x/y") == DATA
        assert self.written("alpha") == 11

    def test_holders_that_stay_away(self) -> None:
        """If that lasts longer than the timeout it is said."""
        self.world.catalog.error = MissingChunks("the farm does not hold 2 copies")
        result = self.world.run("put", "a b.bin")
        assert result.exit_code == exits.FAILED and "2 copies" in result.stderr
        assert 30 <= self.world.clock.seconds() < 45

    def test_standard_input_that_does_not_wait(self) -> None:
        """A standard input that another process has made not to wait is read to its end, not to its first pause."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with open(reading, "rb", buffering=0) as source, open(writing, "wb", buffering=0) as sink:
            sink.write(b"before")

            def waiting(*lists: Any) -> Any:
                assert lists[0] == [source]
                sink.write(b"behind") if not waited else sink.close()
                waited.append(len(lists))

            waited: list[int] = []
            unused: Any = None
            sending = upload.Upload(unused, source, "x/y", seekable=False, run_in_thread=unused, on_bytes=unused)
            sending._chunk_size = 4096
            with mock.patch("select.select", waiting):
                assert sending._load(0) == (b"beforebehind", digest_of(b"beforebehind"))
            assert len(waited) == 2

    def test_changed_while_read(self) -> None:
        """A file that is written to meanwhile is not stored."""
        alpha = self.world.servers["alpha"]

        def write(count: int) -> bool:
            if count == 3:
                with self.file.open("ab") as stream:
                    stream.write(b"more")
            return False

        alpha.transfer.fatal = write
        result = self.world.run("put", "a b.bin")
        assert result.exit_code == exits.FAILED
        assert "was changed" in result.stderr
        assert self.world.catalog.files == {}

    def test_no_such_file(self) -> None:
        """A local file that is not there is one sentence."""
        result = self.world.run("put", "nothing")
        assert result.exit_code == exits.FAILED
        assert result.stderr == "chunkfarm: nothing: No such file or directory\n"

    def test_no_name_to_take(self) -> None:
        """A file whose name here can be none on the farm is not said to have control characters: it takes a NAME."""
        strange = os.fsencode(self.world.directory) + b"/caf\xe9"
        with open(strange, "wb") as file:
            file.write(b"x")
        for file_name in (os.fsdecode(strange), ""):
            result = self.world.run("put", file_name)
            assert result.exit_code == exits.USAGE and "give a NAME" in result.stderr, result.stderr
        assert "is not UTF-8" in self.world.run("put", os.fsdecode(strange)).stderr
        assert self.world.run("put", os.fsdecode(strange), "home/cafe").exit_code == 0

    def test_names_that_cannot_be(self) -> None:
        """A name that is none is a mistake in usage, and it is told what is wrong with it."""
        for arguments, told in (
            (("a b.bin", os.fsdecode(b"a/\xff\xfe")), "a file name is UTF-8"),
            (("a b.bin", "a/b\nc"), "a file name has no control characters"),
            (("new\nline",), "a file name has no control characters"),
        ):
            (self.world.directory / "new\nline").write_bytes(b"x")
            result = self.world.run("put", *arguments)
            assert result.exit_code == exits.USAGE and told in result.stderr, result.stderr
        result = self.world.run("put", "", "a/b")
        assert (result.exit_code, result.stderr) == (exits.FAILED, "chunkfarm: '': No such file or directory\n")

    def test_no_writes(self) -> None:
        """Without a majority the command says so after the timeout, and scripts can tell."""
        self.world.catalog.error = ReadOnly("no majority of the masters answers")
        result = self.world.run("put", "a b.bin")
        assert result.exit_code == exits.NO_WRITES
        assert "no majority of the masters answers" in result.stderr
        assert result.stderr.count("\n") == 1
        assert 30 <= self.world.clock.seconds() < 40

    def test_waits_for_takeover(self) -> None:
        """If writes are possible again before that, all is well."""
        self.world.catalog.error = Busy("a moment")
        self.world.clock.callLater(12, setattr, self.world.catalog, "error", None)
        assert self.world.run("put", "a b.bin").exit_code == 0

    def test_why_it_waits(self) -> None:
        """Who watches is told, after some seconds and once, why nothing moves; where it soon does, nothing is said."""
        self.world.catalog.error = Busy("a moment")
        self.world.clock.callLater(2.5, setattr, self.world.catalog, "error", None)
        assert self.world.run("put", "a b.bin").exit_code == 0 and self.world.waited == []
        self.world.catalog.error = Busy("a moment")
        began = self.world.clock.seconds()
        self.world.clock.callLater(12, setattr, self.world.catalog, "error", None)
        assert self.world.run("put", "a b.bin").exit_code == 0
        [(at, why)] = self.world.waited
        assert 3 <= at - began < 6
        assert why == (
            "still trying, for 30 s without progress at most: "
            "alpha (10.0.0.1:4100): a moment; beta (10.0.0.2:4100): a moment"
        )


class GetTests(FileTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.world.catalog.add("x/y z", DATA)

    def test_get(self) -> None:
        """A file is fetched to where one says, or under its last part."""
        result = self.world.run("get", "x/y z", "out")
        assert (result.exit_code, result.output) == (0, "")
        assert self.fetched() == DATA
        assert self.world.run("get", "x/y z").exit_code == 0
        assert (self.world.directory / "y z").read_bytes() == DATA
        (self.world.directory / "folder").mkdir()
        assert self.world.run("get", "x/y z", "folder").exit_code == 0
        assert (self.world.directory / "folder" / "y z").read_bytes() == DATA

    def test_long_name(self) -> None:
        """A name as long as a folder takes one is long enough for what it is called meanwhile, too."""
        for name in ("n" * 255, "\u00e4" * 127):
            self.world.catalog.add(f"x/{name}", DATA, chunk_size=4096)
            result = self.world.run("get", f"x/{name}")
            assert (result.exit_code, result.output) == (0, ""), name
            assert (self.world.directory / name).read_bytes() == DATA
        assert not [path for path in self.world.directory.iterdir() if path.name.endswith(".part")]

    def test_standard_output(self) -> None:
        """A file can go to the standard output."""
        assert self.world.run("get", "x/y z", "-").stdout_bytes == DATA

    def test_empty(self) -> None:
        """An empty file is a file."""
        self.world.catalog.add("x/empty", b"")
        assert self.world.run("get", "x/empty", "out").exit_code == 0
        assert self.fetched() == b""

    def test_not_found(self) -> None:
        """A file that is not there has an exit status of its own, and leaves nothing behind."""
        before = sorted(path.name for path in self.world.directory.iterdir())
        result = self.world.run("get", "x/nothing", "out")
        assert result.exit_code == exits.NOT_FOUND
        assert result.stderr == "chunkfarm: there is no file 'x/nothing'\n"
        assert sorted(path.name for path in self.world.directory.iterdir()) == before

    def test_server_dies_in_the_middle(self) -> None:
        """When the bytes break off the next server goes on from there."""
        self.world.catalog.piece = 4096
        self.world.catalog.fails_at = 20000
        download = self.world.catalog.download
        asked: list[int] = []

        def once(file: Any, offset: int = 0, length: int | None = None) -> Any:
            asked.append(offset)
            source = download(file, offset, length)
            self.world.catalog.fails_at = None
            return source

        self.world.catalog.download = once  # type: ignore[method-assign]
        result = self.world.run("get", "x/y z", "out")
        assert (result.exit_code, result.stderr) == (0, "")
        assert self.fetched() == DATA
        assert self.world.dialled == ["alpha", "beta"]
        assert asked == [0, 20000]

    def test_replaced_in_the_middle(self) -> None:
        """A file that is replaced while it is fetched is fetched anew, never mixed."""
        self.world.catalog.piece = 4096
        self.world.catalog.fails_at = 20000
        download = self.world.catalog.download
        other = DATA[::-1]

        def once(file: Any, offset: int = 0, length: int | None = None) -> Any:
            source = download(file, offset, length)
            if self.world.catalog.fails_at is not None:
                self.world.catalog.fails_at = None
                self.world.catalog.add("x/y z", other)
            return source

        self.world.catalog.download = once  # type: ignore[method-assign]
        assert self.world.run("get", "x/y z", "out").exit_code == 0
        assert self.fetched() == other

    def test_replaced_on_standard_output(self) -> None:
        """On the standard output, which cannot begin anew, that is an error."""
        self.world.catalog.piece = 4096
        self.world.catalog.fails_at = 20000
        download = self.world.catalog.download

        def once(file: Any, offset: int = 0, length: int | None = None) -> Any:
            source = download(file, offset, length)
            self.world.catalog.fails_at = None
            self.world.catalog.add("x/y z", DATA[::-1])
            return source

        self.world.catalog.download = once  # type: ignore[method-assign]
        result = self.world.run("get", "x/y z", "-")
        assert result.exit_code == exits.FAILED
        assert "was replaced" in result.stderr

    def test_how_the_file_was(self) -> None:
        """Where the masters do not answer, a file may have been replaced: that it is an old one is said beside it."""
        told = "chunkfarm: the masters do not answer; this is how things stood at revision 134\n"
        self.world.catalog.stale = 134
        for target in ("out", "-"):
            result = self.world.run("get", "x/y z", target)
            assert (result.exit_code, result.stderr) == (0, told), target
        assert (self.fetched(), result.stdout_bytes) == (DATA, DATA)
        for command in (("ls",), ("ls", "--json"), ("stat", "x/y z"), ("stat", "x/y z", "--json")):
            result = self.world.run(*command)
            assert (result.exit_code, result.stderr) == (0, told), command
        assert json.loads(self.world.run("ls", "--json").stdout)[0]["stale"] == 134
        assert json.loads(self.world.run("stat", "x/y z", "--json").stdout)["stale"] == 134
        self.world.catalog.stale = 0
        assert "stale" not in json.loads(self.world.run("ls", "--json").stdout)[0]

    def test_mode_stays(self) -> None:
        """Who may read a file on this machine stays as it was when another one takes its place."""
        for mode in (0o640, 0o600, 0o755):
            (self.world.directory / "out").write_bytes(b"old")
            os.chmod(self.world.directory / "out", mode)
            assert self.world.run("get", "x/y z", "out").exit_code == 0
            assert self.fetched() == DATA
            assert stat.S_IMODE(os.stat(self.world.directory / "out").st_mode) == mode, oct(mode)

    def test_nobody_reads_meanwhile(self) -> None:
        """Nor can anybody read what there is of a secret file before it is whole."""
        (self.world.directory / "out").touch(0o600)
        target = NewFile(self.world.directory / "out")
        try:
            assert stat.S_IMODE(os.fstat(target.stream.fileno()).st_mode) == 0o600
        finally:
            target.drop()

    def test_wrong_bytes(self) -> None:
        """Bytes that are not those of the file are noticed, and nothing is left behind."""
        file = self.world.catalog.files["x/y z"]
        self.world.chunks[file.digests[1]] = b"!" * 4096
        result = self.world.run("get", "x/y z", "out")
        assert result.exit_code == exits.FAILED
        assert not (self.world.directory / "out").exists()

    def test_nobody_has_it(self) -> None:
        """A file whose chunks nobody has who answers is no matter of writing: the status says that nobody answered."""
        self.world.catalog.error = Busy("no server that answers has a chunk of it")
        for command in (
            ("get", "x/y z", "out"),
            ("ls",),
            ("stat", "x/y z"),
            ("explain", "x/y z"),
            ("check", "--quick"),
        ):
            result = self.world.run("--timeout", "3", *command)
            assert result.exit_code == exits.NOBODY_ANSWERED, command
            assert "no server that answers has a chunk of it" in result.stderr
        assert self.world.run("--timeout", "3", "rm", "x/y z").exit_code == exits.NO_WRITES

    def test_old_file_stays(self) -> None:
        """A file that is there already is replaced as a whole or not at all."""
        (self.world.directory / "out").write_bytes(b"old")
        self.world.catalog.error = NotFound("gone")
        assert self.world.run("get", "x/y z", "out").exit_code == exits.NOT_FOUND
        assert self.fetched() == b"old"

    def test_no_such_folder(self) -> None:
        """A target that cannot be written is one sentence."""
        result = self.world.run("get", "x/y z", "nowhere/out")
        assert result.exit_code == exits.FAILED
        assert result.stderr.startswith("chunkfarm: nowhere/") and result.stderr.count("\n") == 1


class NameTests(FileTestCase):
    def test_ls(self) -> None:
        """Files are listed in order, by prefix if wanted, as a table or as JSON."""
        for name in ("b/1", "a/x y", "a/1"):
            self.world.catalog.add(name, b"12")
        assert self.world.run("ls").stdout.splitlines() == [
            "MODIFIED             SIZE  NAME",
            "2026-11-22 10:00:00   2 B  a/1",
            "2026-11-22 10:00:00   2 B  a/x y",
            "2026-11-22 10:00:00   2 B  b/1",
        ]
        listed = json.loads(self.world.run("ls", "a/", "--json").stdout)
        assert [(file["name"], file["size"]) for file in listed] == [("a/1", 2), ("a/x y", 2)]
        assert self.world.run("ls", "nothing/").stdout == "MODIFIED  SIZE  NAME\n"

    def test_ls_of_many(self) -> None:
        """A long list comes in pages, and is shown whole."""
        for number in range(2100):
            self.world.catalog.add(f"a/{number:05}", b"")
        assert len(json.loads(self.world.run("ls", "--json").stdout)) == 2100

    def test_stat(self) -> None:
        """What is known of a file can be had as text and as JSON."""
        file = self.world.catalog.add("a/b", b"12")
        assert file.etag == etag_of(2, 4096, [digest_of(b"12")])
        assert f"etag       {file.etag}\n" in self.world.run("stat", "a/b").stdout
        assert json.loads(self.world.run("stat", "a/b", "--json").stdout)["size"] == 2

    def test_rm(self) -> None:
        """A file can be removed, once."""
        self.world.catalog.add("a/b", b"12")
        assert self.world.run("rm", "a/b").exit_code == 0
        assert self.world.run("rm", "a/b").exit_code == exits.NOT_FOUND

    def test_bad_name(self) -> None:
        """What is no file's name is a mistake in usage, and nobody is asked."""
        for command in ("rm", "stat", "get"):
            result = self.world.run(command, "nobucket")
            assert result.exit_code == exits.USAGE
            assert "expected bucket/path" in result.stderr
        assert self.world.dialled == []
