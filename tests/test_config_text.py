"""Reading `config.ini`: what each option means, and one clear sentence for each thing that can be wrong."""

from __future__ import annotations

from pathlib import Path

from attrs import fields
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import (
    Config,
    ConfigError,
    ListenDescription,
    clean_name,
    format_duration,
    format_size,
    parse_config,
    parse_duration,
    parse_size,
    read_farm_option,
)
from chunkfarm.model import MIB, FarmOptions

ID = "0123456789abcdef0123456789abcdef"
CA = "sha256:" + "3a" * 32

WHOLE = f"""\
; the file of the lab
[farm]
chunksize = 4M                ; first option
name = lab
id = {ID}
generation = 7
ca = {CA}
replicas = 2
table = embedded
master_grace = 20s
repair_after = 5m
forget_after = 2d
collect_grace = 2h
two_server_takeover = manual

[servers]
alpha = 2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up {"a" * 32}
beta = 2026-11-22T10:00:01.000Z fd00::2 4200 4301 4402 down {"b" * 32}   # the one in the cellar
gamma = gamma.example 4100

[server]
name = delta
host = 10.0.0.4
data = ./here
client = tcp:5100:interface=10.0.0.4
peer = tcp6:5101
files = systemd:domain=INET:name=files
weight = 0
zone = cellar
master = no
reserve = 5G
repair_rate = 20M
drain_timeout = 1m
certificate = tls/own.pem
names = files.example, 10.0.0.99
log_level = debug
log_format = json
"""


def parse(text: str, **overrides: str | None) -> Config:
    return parse_config(text, "/etc/farm/config.ini", overrides, "Zeta.example")


class ReadingTests(SynchronousTestCase):
    def wrong(self, text: str, **overrides: str) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, parse, text, **overrides)
        assert "\n" not in str(error)
        return error

    def test_empty(self) -> None:
        """An empty file is a farm and a server with nothing but defaults."""
        config = parse("")
        assert config.farm == FarmOptions()
        assert config.generation == 0
        assert config.servers == ()
        assert config.server.name == "zeta"
        assert config.server.host is None
        assert config.server.weight is None
        assert config.server.data == Path("/etc/farm/data")
        assert [str(config.server.client), str(config.server.peer), str(config.server.files)] == [
            "tcp:4100",
            "tcp:4101",
            "tcp:4102",
        ]

    def test_farm(self) -> None:
        """Every option of the farm is read, durations as seconds and sizes as bytes."""
        config = parse(WHOLE)
        assert config.generation == 7
        assert config.farm == FarmOptions(
            chunksize=4 * MIB,
            name="lab",
            id=ID,
            ca=CA,
            replicas=2,
            table="embedded",
            master_grace=20.0,
            repair_after=300.0,
            forget_after=172800.0,
            collect_grace=7200.0,
            two_server_takeover="manual",
        )

    def test_servers(self) -> None:
        """A row has all the farm wrote; one made by hand has the host and the client port, and the others follow."""
        alpha, beta, gamma = parse(WHOLE).servers
        assert (alpha.name, alpha.joined, alpha.host, alpha.state, alpha.id) == (
            "alpha",
            1795341600123,
            "10.0.0.1",
            "up",
            "a" * 32,
        )
        assert (beta.host, beta.client, beta.peer, beta.files, beta.state) == ("fd00::2", 4200, 4301, 4402, "down")
        assert (gamma.host, gamma.client, gamma.peer, gamma.files) == ("gamma.example", 4100, 4101, 4102)
        assert (gamma.joined, gamma.state, gamma.id) == (None, "", "")

    def test_server(self) -> None:
        """Every option of the machine is read; its paths are relative to the file."""
        server = parse(WHOLE).server
        assert {attribute.name: getattr(server, attribute.name) for attribute in fields(type(server))} == {
            "name": "delta",
            "host": "10.0.0.4",
            "data": Path("/etc/farm/here"),
            "client": ListenDescription("tcp", 5100, "10.0.0.4"),
            "peer": ListenDescription("tcp6", 5101),
            "files": ListenDescription("systemd", 0, "files", "INET"),
            "weight": 0,
            "zone": "cellar",
            "master": False,
            "reserve": 5 * 1024**3,
            "repair_rate": 20 * MIB,
            "drain_timeout": 60.0,
            "certificate": Path("/etc/farm/tls/own.pem"),
            "names": ("files.example", "10.0.0.99"),
            "log_level": "debug",
            "log_format": "json",
        }

    def test_overrides(self) -> None:
        """The command line stands above the file; `--ports` changes the numbers and nothing else."""
        server = parse(WHOLE, data="/srv/d2", name="two", host="10.0.0.5", ports="4110", weight="7", zone="roof").server
        assert (server.data, server.name, server.host, server.weight, server.zone) == (
            Path("/srv/d2"),
            "two",
            "10.0.0.5",
            7,
            "roof",
        )
        assert str(server.client) == "tcp:4110:interface=10.0.0.4"
        assert str(server.peer) == "tcp6:4111"
        assert str(server.files) == "systemd:domain=INET:name=files"

    def test_no_override(self) -> None:
        """What is not given on the command line changes nothing."""
        assert parse(WHOLE, data=None, name=None, ports=None) == parse(WHOLE)

    def test_wrong_override(self) -> None:
        """What is wrong on the command line is named as it was typed there."""
        assert str(self.wrong("", ports="70000")) == "--ports 70000: expected a port number from 1 to 65533"
        assert "--name Zeta" in str(self.wrong("", name="Zeta"))
        assert "--data" in str(self.wrong("", data=""))

    def test_ports_follow_the_client_port(self) -> None:
        """A machine whose client port is elsewhere has its other ports behind it, as a list made by hand says."""
        server = parse("[server]\nclient = tcp:5000\n").server
        assert (server.client.port, server.peer.port, server.files.port) == (5000, 5001, 5002)

    def test_windows(self) -> None:
        """A file that was saved on Windows, with its mark and line ends, reads the same."""
        assert parse("\ufeff" + WHOLE.replace("\n", "\r\n")) == parse(WHOLE)

    def test_comments(self) -> None:
        """A comment begins with white space and `;` or `#`, and a `;` or `#` inside a word is none."""
        config = parse("[farm] ; here\nname = a;b#c\t# so\n# x = y\n   ; z\n[server]  # mine\n")
        assert config.farm.name == "a;b#c"

    def test_structure(self) -> None:
        """What is no INI file of ours is refused with the line, and with what was expected."""
        for text, sentence in (
            ("chunksize = 8M\n", "line 1: chunksize = 8M: expected a section such as [farm] before any option"),
            ("[farm]\n[Farm]\n", "line 2: [Farm]: expected one of [farm], [servers], [server], [limits]"),
            ("[farm\n", "line 1: [farm: expected one of"),
            ("[farm]\n\n[farm]\n", "line 3: [farm] stands here again: expected it once, and line 1 has it"),
            ("[farm]\nname = a\nname = b\n", "line 3: name stands here again: expected it once, and line 2 has it"),
            ("[farm]\nname\n", "line 2: name: expected <option> = <value>"),
            ("[farm]\nname ; = a\n", "line 2: name: expected <option> = <value>"),
            ("[farm]\n= a\n", "line 2: '': expected an option name of one word in lower case"),
            ("[farm]\nName = a\n", "line 2: Name: expected an option name of one word in lower case"),
            ("[farm]\nname = a\0b\n", r"line 2: expected text, found the control character '\x00'"),
            ("[farm]\nname =\n", "line 2: name = : expected a value, or no line at all"),
            ("[farm]\ncolour = red\n", "line 2: colour is not an option of [farm]: expected one of chunksize"),
            ("[server]\nport = 1\n", "line 2: port is not an option of [server]: expected one of name host data"),
        ):
            error = self.wrong(text)
            assert str(error).startswith(f"/etc/farm/config.ini, {sentence}"), error
            assert error.line > 0

    def test_values(self) -> None:
        """A value that cannot be is repeated, with what was expected instead."""
        for section, option, value, expected in (
            ("farm", "chunksize", "9X", "expected a size in bytes such as 8M"),
            ("farm", "chunksize", "1K", "expected a size from 4K to 64M"),
            ("farm", "chunksize", "65M", "expected a size from 4K to 64M"),
            ("farm", "replicas", "0", "expected a whole number from 1 to 16"),
            ("farm", "replicas", "17", "expected a whole number from 1 to 16"),
            ("farm", "replicas", "three", "expected a whole number from 1 to 16"),
            ("farm", "table", "etcd://localhost:2379", "expected embedded"),
            ("farm", "id", "6f0c...", "expected the farm's id of 32 hexadecimal digits"),
            ("farm", "ca", "sha256:3a91", "expected sha256: and 64 hexadecimal digits"),
            ("farm", "generation", "-1", "expected a whole number"),
            ("farm", "master_grace", "soon", "expected a duration such as 10s, 5m, 2h or 7d"),
            ("farm", "master_grace", "2h", "expected a duration from 1s to 1h"),
            ("farm", "forget_after", "1s", "expected no less than repair_after, which is 10m"),
            ("farm", "two_server_takeover", "yes", "expected auto or manual"),
            ("farm", "name", "x" * 64, "expected a name of 1 to 63 printable characters"),
            ("server", "host", "0.0.0.0", "expected a host name or an IP address that other servers can connect to"),
            ("server", "host", "10.0.0.300", "expected a host name or an IP address"),
            ("server", "host", "a b", "expected a host name or an IP address"),
            ("server", "weight", "1.5", "expected a whole number from 0"),
            ("server", "master", "true", "expected yes or no"),
            ("server", "zone", "the cellar", "expected one word"),
            ("server", "data", "~/data", "expected a path"),
            ("server", "name", "-a", "expected at most 63 lower-case letters"),
            ("server", "peer", "systemd:domain=INET:name=peer", "expected tcp: or tcp6:"),
            ("server", "client", "udp:1", "expected an endpoint such as tcp:4100"),
            ("server", "client", "tcp:0", "expected a port number from 1 to 65535"),
            ("server", "client", "tcp:4100:backlog=5", "backlog is not an argument"),
            ("server", "client", "tcp6:4100:interface=::1", r"a colon inside an IPv6 address is written \:"),
            ("server", "client", "tcp:4100:interface=eth0", "expected interface= to be an IPv4 address"),
            ("server", "client", "systemd:domain=INET:index=0", "expected systemd:domain=INET:name="),
            ("server", "client", "tcp:4101", "expected"),
            ("servers", "alpha", "10.0.0.1", "expected <timestamp> <host> <client port>"),
            ("servers", "alpha", "10.0.0.1 65534", "expected a port number from 1 to 65533"),
            ("servers", "Alpha", "10.0.0.1 4100", "expected an option name of one word in lower case"),
            ("servers", "a*b", "10.0.0.1 4100", "as the server's name"),
        ):
            if (option, value) == ("client", "tcp:4101"):
                text = "[server]\nclient = tcp:4101\npeer = tcp:4101\n"
            else:
                text = f"[{section}]\n{option} = {value}\n"
            error = self.wrong(text)
            assert expected in str(error), error
            assert ", line " in str(error)
            assert option in str(error)

    def test_half_written_row(self) -> None:
        """A row that is cut anywhere is refused; half a list is never taken for a list."""
        row = f"2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up {'a' * 32}"
        parse(f"[servers]\nalpha = {row}")
        for length in range(len(row)):
            self.wrong(f"[servers]\nalpha = {row[:length]}")

    def test_wrong_words_of_a_row(self) -> None:
        """Each word of a row is checked on its own."""
        row = f"2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up {'a' * 32}".split()
        for position, word, expected in (
            (0, "2026-13-22T10:00:00.123Z", "expected a timestamp"),
            (2, "0", "expected a port number"),
            (5, "dead", "expected one of up down leaving draining as the sixth word"),
            (6, "a" * 31, "expected a server id of 32 hexadecimal digits as the seventh word"),
        ):
            words = [*row[:position], word, *row[position + 1 :]]
            assert expected in str(self.wrong(f"[servers]\nalpha = {' '.join(words)}\n"))

    def test_one_id_twice(self) -> None:
        """Two rows with one server id are a mistake."""
        row = f"2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up {'a' * 32}"
        error = self.wrong(f"[servers]\nalpha = {row}\nbeta = {row}\n")
        assert "beta has the same server id as line 2" in str(error)

    def test_two_rows_by_hand(self) -> None:
        """Rows without an id are not the same server."""
        assert len(parse("[servers]\na = 10.0.0.1 4100\nb = 10.0.0.1 4110\n").servers) == 2

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Whatever stands in the file, the answer is a config or one sentence."""
        try:
            parse(text)
        except ConfigError as error:
            assert "\n" not in str(error)

    @given(
        st.lists(
            st.sampled_from(
                [*WHOLE.splitlines(), "[farm]", "[servers]", "=", "a =", "a = 1 2", " ;", "client = tcp:1:2:3"]
            ).flatmap(lambda line: st.integers(0, len(line)).map(lambda end: line[:end])),
            max_size=8,
        )
    )
    def test_any_lines(self, lines: list[str]) -> None:
        """Whatever lines of ours come together, cut anywhere, the answer is a config or one sentence."""
        try:
            parse("[server]\n" + "\n".join(lines))
        except ConfigError as error:
            assert "\n" not in str(error)


class ValueTests(SynchronousTestCase):
    def test_sizes(self) -> None:
        """K, M, G and T are powers of 1024."""
        assert [parse_size(text) for text in ("0", "1000", "4K", "8M", "1G", "2T")] == [
            0,
            1000,
            4096,
            8388608,
            1073741824,
            2199023255552,
        ]
        assert [format_size(size) for size in (0, 1000, 1536 * 1024, 8388608)] == ["0", "1000", "1536K", "8M"]
        for text in ("", "M", "8m", "8 M", "-1", "8MB", "1.5M", "٣"):
            self.assertRaises(ConfigError, parse_size, text)

    def test_durations(self) -> None:
        """Seconds may go without a letter."""
        assert [parse_duration(text) for text in ("10", "10s", "5m", "2h", "7d", "0.25")] == [
            10.0,
            10.0,
            300.0,
            7200.0,
            604800.0,
            0.25,
        ]
        assert [format_duration(seconds) for seconds in (0, 0.25, 90, 600, 7200, 604800)] == [
            "0s",
            "0.25s",
            "90s",
            "10m",
            "2h",
            "7d",
        ]
        for text in ("", "s", "-1s", "1e3", "inf", "1w", "1 m"):
            self.assertRaises(ConfigError, parse_duration, text)

    @given(st.integers(0, 10**15 - 1))
    def test_size_and_back(self, size: int) -> None:
        """A size that is written reads as itself."""
        assert parse_size(format_size(size)) == size

    @given(st.integers(0, 10**11))
    def test_duration_and_back(self, milliseconds: int) -> None:
        """A duration that is written reads as itself."""
        assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000

    @given(st.text(max_size=80))
    def test_clean_name(self, host_name: str) -> None:
        """Whatever the host is called, a server can be named after it."""
        name = clean_name(host_name)
        assert parse(f"[server]\nname = {name}\n").server.name == name

    def test_clean_names(self) -> None:
        """The host's own name is recognised in the server's."""
        assert clean_name("Alpha.example.com") == "alpha"
        assert clean_name("my box_1") == "my-box_1"
        assert clean_name("---") == "server"

    def test_endpoints(self) -> None:
        """An endpoint written out is one that reads as itself."""
        for text in (
            "tcp:4100",
            "tcp6:4100",
            "tcp:4100:interface=127.0.0.1",
            r"tcp6:4100:interface=fd00\:\:1",
            "systemd:domain=INET6:name=client",
        ):
            assert str(parse(f"[server]\nclient = {text}\n").server.client) == text

    def test_set_farm(self) -> None:
        """`SET farm` reads an option as the file does, and says the same when it is wrong."""
        assert read_farm_option("replicas", "2") == 2
        error = self.assertRaises(ConfigError, read_farm_option, "replicas", "0")
        assert str(error) == "replicas = 0: expected a whole number from 1 to 16"
        self.assertRaises(ConfigError, read_farm_option, "generation", "9")
