"""Writing the farm's sections anew: what the table says gets in, what people wrote stays."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import ConfigError, Listed, parse_config, render
from chunkfarm.config_render import differences, row_differences
from chunkfarm.config_text import scan
from chunkfarm.membership import in_order
from chunkfarm.model import MIB, SERVER_STATES, FarmOptions, Server

ID = "0123456789abcdef0123456789abcdef"
CA = "sha256:" + "3a" * 32
FARM = FarmOptions(name="lab", id=ID, ca=CA)


def server(letter: str, seniority: int, **changes: str | int) -> Server:
    values: dict[str, object] = {"name": letter, "host": "10.0.0.1", "client": 4100, "peer": 4101, "files": 4102}
    return Server(id=letter * 32, seniority=seniority, joined=1795341600123, **{**values, **changes})  # type: ignore[arg-type]


A, B, C = server("a", 1), server("b", 2), server("c", 3)
ROW = "2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up "

by_hand = """\
; The one file of a farm.

[farm]
chunksize = 8M                ; K M G T are powers of 1024
name = lab
replicas = 3

[servers]
; Empty before the first start.

[server]
data = ./data
; What the others are told.
host = 127.0.0.1"""

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
servers = st.lists(
    st.builds(
        Server,
        id=st.text("0123456789abcdef", min_size=32, max_size=32),
        name=names,
        host=st.one_of(st.sampled_from(("10.0.0.1", "fd00::1", "a.example")), st.ip_addresses(v=4).map(str)).filter(
            lambda host: host != "0.0.0.0" and not host.startswith(tuple(f"{first}." for first in range(224, 240)))
        ),
        client=st.integers(1, 65535),
        peer=st.integers(1, 65535),
        files=st.integers(1, 65535),
        joined=st.integers(0, 253402300799999),
        seniority=st.integers(1, 10**9),
        state=st.sampled_from(SERVER_STATES),
    ),
    max_size=6,
    unique_by=(lambda one: one.id, lambda one: one.name),
)
farms = st.builds(
    FarmOptions,
    chunksize=st.integers(4096, 64 * MIB),
    name=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=63).filter(
        lambda name: name[0] not in ";#\ufeff"
    ),
    id=st.sampled_from(("", ID)),
    ca=st.sampled_from(("", CA)),
    replicas=st.integers(1, 16),
    master_grace=st.integers(1000, 600_000).map(lambda ms: ms / 1000),
    repair_after=st.integers(600, 604800).map(float),
    forget_after=st.integers(604800, 10**7).map(float),
    collect_grace=st.integers(1, 10**6).map(float),
    two_server_takeover=st.sampled_from(("auto", "manual")),
)


def section(name: str, *options: str) -> st.SearchStrategy[list[str]]:
    """A section with some of the options, in any order, and with comments and empty lines among them."""
    some = st.lists(st.sampled_from(options), unique_by=lambda line: line.split("=")[0].strip())
    notes = st.lists(st.sampled_from(("# a note", "  ; another", "", "   ")), max_size=4)
    lines = st.tuples(some, notes).flatmap(lambda both: st.permutations([*both[0], *both[1]]))
    return st.one_of(st.just([]), lines.map(lambda lines: [f"[{name}]", *lines]))


texts = (
    st.tuples(
        section(
            "farm",
            *("chunksize = 8M     ; K M G T", "chunksize=4096K", "name = lab", f"id = {ID}   # do not touch"),
            *("generation = 3", "replicas = 3", "\treplicas = many", "repair_after = 60000 ; long", "ca ="),
        ),
        section(
            "servers",
            *(f"a = {ROW}{'a' * 32}  ; the first", f"\tb =   {ROW}{'b' * 32}", "gamma = 10.0.0.3 4100 # by hand"),
            *("d = half a row", f"delta = {ROW}{'d' * 32}"),
        ),
        section("server", "data = ./data", "host = 127.0.0.1 ; here", "name=x"),
    )
    .flatmap(st.permutations)
    .flatmap(
        lambda parts: st.sampled_from(("\n", "\r\n")).map(
            lambda end: end.join([line for part in parts for line in part])
        )
    )
)


class RenderTests(SynchronousTestCase):
    def test_first_write(self) -> None:
        """The first server's write adds what the farm knows, with chunksize first, and changes nothing else."""
        assert render(by_hand, FARM, 1, [A]) == by_hand.replace(
            "name = lab\n", f"name = lab\nid = {ID}\ngeneration = 1\nca = {CA}\n"
        ).replace("replicas = 3\n", "replicas = 3\ntable = embedded\n").replace(
            "first start.\n", f"first start.\na = {ROW}{A.id}\n"
        )

    def test_from_nothing(self) -> None:
        """A file that is not there yet gets both sections of the farm."""
        assert render("", FARM, 1, [A]) == (
            f"[farm]\nchunksize = 8M\nname = lab\nid = {ID}\ngeneration = 1\nca = {CA}\nreplicas = 3\n"
            f"table = embedded\n\n[servers]\na = {ROW}{A.id}\n"
        )

    def test_only_server_section(self) -> None:
        """The farm's sections go above the machine's, whose comment stays with it."""
        text = "; about the file\n\n; about the machine\n[server]\ndata = x\n"
        assert render(text, FarmOptions(), 0, []) == (
            "; about the file\n\n"
            "[farm]\nchunksize = 8M\nname = farm\ngeneration = 0\nreplicas = 3\ntable = embedded\n\n[servers]\n\n"
            "; about the machine\n[server]\ndata = x\n"
        )

    def test_chunksize_becomes_first(self) -> None:
        """chunksize is the first option, whatever the person who wrote the file began with."""
        text = render("[farm]\n; mine\nname = lab\n; the size\nchunksize = 4M ; small\n", FARM, 1, [])
        assert text.startswith("[farm]\n; mine\nchunksize = 8M ; small\nname = lab\n")
        assert "; the size\n" in text

    def test_comments_keep_their_column(self) -> None:
        """A comment behind a value stays where it was, or moves on as little as it must."""
        text = "[farm]\nchunksize = 8M   ; a\nreplicas = 2;b # c\nname = x ; d\n"
        new = render(text.replace("2;b", "2"), evolve(FARM, chunksize=16 * MIB, name="laboratory"), 1, [])
        assert "chunksize = 16M  ; a\nreplicas = 3 # c\n" in new
        assert "name = laboratory ; d\n" in new

    def test_spelling_stays(self) -> None:
        """A value that is right stays as it was typed."""
        text = render("[farm]\nchunksize = 8192K\nmaster_grace=10\n", FARM, 1, [])
        assert "chunksize = 8192K\n" in text
        assert "master_grace=10\n" in text

    def test_other_than_default(self) -> None:
        """An option that the farm has set is written even if it was not in the file."""
        assert "repair_after = 20m\n" in render(by_hand, evolve(FARM, repair_after=1200.0), 1, [])
        assert "repair_after" not in render(by_hand, FARM, 1, [])

    def test_order_of_rows(self) -> None:
        """Live servers come first, oldest first, then those that are down."""
        text = render(by_hand, FARM, 2, [C, evolve(A, state="down"), B])
        assert [row.name for row in parse_config(text, "x").servers] == ["b", "c", "a"]

    def test_comments_among_rows(self) -> None:
        """A comment follows its server through the list; that of a forgotten server on a line of its own stays."""
        text = render("[servers]\n; top\n", FARM, 1, [A, B, C])
        text = text.replace("a = ", "a   = ").replace(f"{B.id}\n", f"{B.id} ; cellar\n").replace("c = ", "; roof\nc = ")
        moved = render(text, FARM, 2, [B, C, evolve(A, state="down")])
        assert moved.split("[servers]\n")[1] == (
            f"; top\nb = {ROW}{B.id} ; cellar\n; roof\nc = {ROW}{C.id}\na   = {ROW.replace(' up', ' down')}{A.id}\n"
        )
        gone = render(moved, FARM, 3, [A])
        assert gone.split("[servers]\n")[1] == f"; top\na   = {ROW}{A.id}\n; roof\n"

    def test_list_made_by_hand(self) -> None:
        """A row made by hand becomes the server's row, found by its name or else by its address."""
        text = "[servers]\na = 10.0.0.9 4100   ; one\nbox = 10.0.0.1 4100 ; two\nspare = 10.0.0.7 4100\n"
        new = render(text, FARM, 1, [A, server("b", 2, host="10.0.0.1", name="beta")])
        assert new.split("[servers]\n")[1] == f"a = {ROW}{A.id} ; one\nbeta = {ROW}{B.id} ; two\n"

    def test_renamed(self) -> None:
        """A server with another name keeps its line and its comment."""
        text = render(f"[servers]\na = {ROW}{A.id} ; one\n", FARM, 1, [evolve(A, name="a-2")])
        assert text.endswith(f"[servers]\na-2 = {ROW}{A.id} ; one\n")

    def test_two_of_one_name(self) -> None:
        """A table with two servers of one name is never written, since it could not be read again."""
        self.assertRaises(ConfigError, render, "", FARM, 1, [A, evolve(B, name="a")])

    def test_windows(self) -> None:
        """Line ends and the mark of a file from Windows stay."""
        text = "\ufeff" + by_hand.replace("\n", "\r\n")
        new = render(text, FARM, 1, [A])
        assert new.startswith("\ufeff; The one")
        assert new.count("\n") == new.count("\r\n")
        assert new.endswith("host = 127.0.0.1")

    def test_wrong_values_are_replaced(self) -> None:
        """Nonsense in the farm's sections does not stand in the way of the farm's own values."""
        text = render("[farm]\nreplicas = many\nid =\n[servers]\nx = half a row\n", FARM, 4, [A])
        config = parse_config(text, "x")
        assert (config.farm, config.generation, config.servers) == (FARM, 4, (Listed.of(A),))

    def test_not_ours(self) -> None:
        """A file that is no INI file of ours is not written."""
        self.assertRaises(ConfigError, render, "[other]\n", FARM, 1, [])

    @given(texts, farms, st.integers(0, 10**12 - 1), servers)
    def test_what_is_written_is_read(self, text: str, farm: FarmOptions, generation: int, rows: list[Server]) -> None:
        """Whatever the file was, what is written reads as the table, and to write it again changes nothing."""
        new = render(text, farm, generation, rows)
        config = parse_config(new, "x")
        assert (config.farm, config.generation) == (farm, generation)
        assert config.servers == tuple(map(Listed.of, in_order(rows)))
        assert render(new, farm, generation, rows) == new
        assert next(iter(scan(new, "x").options("farm"))) == "chunksize"
        assert differences(scan(new, "x"), farm, generation) == ()
        assert row_differences(scan(new, "x"), rows) == ()

    @given(texts, farms, servers)
    def test_what_is_not_the_farms_stays(self, text: str, farm: FarmOptions, rows: list[Server]) -> None:
        """The machine's section and every comment on a line of its own stay byte for byte."""
        before = scan(text, "x")
        after = scan(render(text, farm, 1, rows), "x")
        for keeps in (
            lambda line: line.section == "server" and line.kind != "comment" and line.text.strip(),
            lambda line: line.kind == "comment",
        ):
            kept = [line.text for line in before.lines if keeps(line)]
            assert sorted(line.text for line in after.lines if keeps(line)) == sorted(kept)
        options = [line.text for line in before.lines if line.section == "server" and line.kind == "option"]
        assert [line.text for line in after.lines if line.section == "server" and line.kind == "option"] == options


class DifferenceTests(SynchronousTestCase):
    def test_edits(self) -> None:
        """An edit is named with what stands in the file and what the farm has."""
        text = render(by_hand, FARM, 5, [A]).replace("replicas = 3", "replicas = 2").replace("= 5", "= 6")
        text = text.replace("name = lab\n", "").replace(CA, CA.replace("3a3a", "3b3a"))
        found = {one.option: one for one in differences(scan(text, "x"), FARM, 5)}
        assert set(found) == {"name", "generation", "ca", "replicas"}
        assert str(found["replicas"]) == "replicas is 2 in the file and 3 in the farm"
        assert str(found["name"]) == "name is absent in the file and lab in the farm"

    def test_absent_default(self) -> None:
        """An option that is not in the file has its default value, and differs if the farm's is another."""
        assert differences(scan("", "x"), FarmOptions(), 0) == ()
        assert [one.option for one in differences(scan("", "x"), FarmOptions(replicas=2), 0)] == ["replicas"]

    def test_rows(self) -> None:
        """A row that was edited, removed or added by hand is a difference."""
        text = render(by_hand, FARM, 5, [A, B]).replace("a = ", "z = ")
        assert [one.option for one in row_differences(scan(text, "x"), [A, B])] == ["a", "z"]
