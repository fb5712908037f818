"""config.ini: everything that an editor may leave behind, read, written anew, and read again."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

from attrs import evolve

from chunkfarm.config import Config, ConfigFile, Listed, parse_config, render
from chunkfarm.config_render import differences, row_differences
from chunkfarm.config_text import scan
from chunkfarm.config_values import ConfigError
from chunkfarm.errors import FarmError
from chunkfarm.model import FarmOptions, Server
from chunkfarm.said import row_of
from chunkfarm.settings import changed_farm, changed_server
from tests.builders import make_server, server_id
from tests.fuzz.mutations import Mutations
from tests.fuzz.promises import nothing_severe, promise

PATH = "/srv/config.ini"
HOST = "Some-Host.example"
ON_DISK = 16
"""Every so many inputs one goes by a real file, which takes longer."""
_LINE = re.compile(rf"{PATH}, line [0-9]+: .|{PATH}: .|--[a-z]+ .", re.DOTALL)

TEXT, LOCK, ROW, SETTINGS = range(4)


class ConfigTarget:
    """The file, the rows that servers give of themselves, and what an admin may set: all of it comes to stand in it."""

    name = "config"
    modules = (
        "chunkfarm.config_text",
        "chunkfarm.config_values",
        "chunkfarm.config_render",
        "chunkfarm.config_file",
        "chunkfarm.said",
        "chunkfarm.settings",
        "chunkfarm.model",
    )
    separator = b"\n"

    def __init__(self) -> None:
        self.seeds = _seeds()
        self.tokens = _tokens()

    def run(self, data: bytes) -> None:
        """Nothing but a `FarmError` comes out, and it says where; what is read means the same when it is written."""
        what, rest = (data[0] % 4, data[1:]) if data else (TEXT, b"")
        with nothing_severe():
            if what == LOCK:
                _lock_file(rest)
            elif what == ROW:
                _row(rest)
            elif what == SETTINGS:
                _settings(rest)
            else:
                _text(rest)
                if crc32(data) % ON_DISK == 0:
                    _on_disk(rest)

    def live(self, data: bytes) -> None:
        self.run(data)

    def end(self) -> None:
        """The servers of `live` hold nothing."""

    def changed(self, data: bytes, mutations: Mutations) -> bytes | None:
        """Another value for one option, or one more line in some section."""
        random = mutations.random
        if not data or data[0] % 4 != TEXT:
            return None
        lines = data.split(b"\n")
        at = random.randrange(len(lines))
        if random.random() < 0.3:
            lines.insert(at, random.choice(_OPTIONS) + b" = " + mutations.token())
            return b"\n".join(lines)
        name, equals, value = lines[at].partition(b"=")
        if not equals:
            return None
        value = mutations.of_word(value) if random.random() < 0.6 else b" " + mutations.token()
        lines[at] = name + equals + value
        return b"\n".join(lines)


def _parsed(text: str, path: str = PATH) -> Config | None:
    """What the text means; None if it is refused, in the way it should be."""
    try:
        return parse_config(text, path, {}, HOST)
    except ConfigError as error:
        lines = text.count("\n") + 1
        promise(_LINE.match(error.sentence), f"an error that does not say where: {error.sentence!r}")
        promise(0 <= error.line <= lines, f"line {error.line} of {lines}")
        promise(not error.line or f"line {error.line}:" in error.sentence, f"another line: {error.sentence!r}")
        promise("\n" not in error.sentence and "\r" not in error.sentence, f"an error of two lines: {error.sentence!r}")
        return None


def _text(data: bytes) -> None:
    config = _parsed(data.decode("utf-8", "surrogateescape"))
    if config is None:
        return
    text = data.decode("utf-8", "surrogateescape")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    servers = [_server(row, number) for number, row in enumerate(config.servers, 1)]
    if len({server.id for server in servers}) == len(servers):
        _rewritten(text, config, servers)
    _rewritten(text, config, [make_server(1), make_server(2, state="down")], same_rows=False)


def _server(row: Listed, number: int) -> Server:
    """The server of the table that a row stands for."""
    return Server(
        id=row.id or server_id(number),
        name=row.name,
        host=row.host,
        client=row.client,
        peer=row.peer,
        files=row.files,
        joined=row.joined or 0,
        seniority=number,
        state=row.state or "up",
        draining=row.state == "draining",
    )


def _rewritten(text: str, before: Config, servers: list[Server], same_rows: bool = True) -> None:
    generation = before.generation + 1
    written = render(text, before.farm, generation, servers)
    after = _parsed(written)
    promise(after is not None, f"what was written cannot be read: {written!r}")
    assert after is not None
    promise(after.farm == before.farm, f"other options of the farm: {before.farm} became {after.farm} in {written!r}")
    promise(after.generation == generation, f"another generation in {written!r}")
    promise(after.server == before.server, f"other options of this server: {before.server} became {after.server}")
    rows = {row.id: row for row in after.servers}
    for server in servers:
        promise(rows.get(server.id) == Listed.of(server), f"another row of {server.name} in {written!r}")
    promise(len(rows) == len(servers) == len(after.servers), f"{len(after.servers)} rows in {written!r}")
    if same_rows:
        names = [row.name for row in before.servers]
        promise(sorted(names) == sorted(row.name for row in after.servers), "a row has gone")
    document = scan(written, PATH)
    promise(not differences(document, before.farm, generation), "what was just written differs from the farm")
    promise(not row_differences(document, servers), "a row that was just written differs from the farm")
    again = render(written, before.farm, generation, servers)
    promise(again == written, f"written again it is another file:\n{written!r}\n{again!r}")


@contextmanager
def _folder() -> Iterator[Path]:
    directory = tempfile.mkdtemp(prefix="chunkfarm-fuzz-")
    try:
        with patch.object(os, "fsync", lambda descriptor: None):
            yield Path(directory)
    finally:
        shutil.rmtree(directory)


def _on_disk(data: bytes) -> None:
    """The same by the file itself."""
    with _folder() as folder:
        path = folder / "config.ini"
        path.write_bytes(data)
        file = ConfigFile(os.fspath(path))
        farm = FarmOptions(name="lab", id="fa" * 16)
        try:
            before = file.read({}, HOST)
            farm = before.farm if before.farm.id else evolve(before.farm, id=farm.id)
        except ConfigError as error:
            promise(error.sentence.startswith(os.fspath(path)), f"an error that names no file: {error.sentence!r}")
        try:
            written = file.write_if_newer(10**11, farm, [make_server(1)], server_id(1))
        except FarmError as error:
            promise(path.read_bytes() == data, f"refused, and yet written: {error.sentence!r}")
            return
        if written:
            after = file.read({}, HOST) if _readable(file) else None
            promise(after is None or after.generation == 10**11, "another generation")
            promise(file.reached(server_id(1)) == 10**11, "it is not remembered how far the file was brought")
            promise((folder / "config.ini.1").read_bytes() == data, "the version before is not kept")


def _readable(file: ConfigFile) -> bool:
    try:
        file.read({}, HOST)
    except ConfigError:
        # A section that the farm does not touch is as wrong as before.
        return False
    return True


def _lock_file(data: bytes) -> None:
    """Whatever stands in the lock file, the file can be read and written."""
    with _folder() as folder:
        path = folder / "config.ini"
        path.write_text("[farm]\n")
        lock = folder / "config.ini.lock"
        lock.write_bytes(data)
        file = ConfigFile(os.fspath(path))
        reached = file.reached(server_id(1))
        promise(reached is None or reached >= 0, f"reached {reached}")
        file.write_if_newer(3, FarmOptions(name="lab", id="fa" * 16), [make_server(1)], server_id(1))
        promise(file.reached(server_id(1)) == 3, "it is not remembered how far the file was brought")


def _row(data: bytes) -> None:
    """A row that a server gives of itself can stand in every file."""
    text = data.decode("utf-8", "replace")
    try:
        row = row_of(text)
    except ValueError:
        return
    _written_row(row)


def _written_row(row: Server) -> None:
    value = Server.from_value(row.to_value(), row.seniority)
    promise(value == row, f"the table gives another row back: {row} became {value}")
    written = render("", FarmOptions(name="lab", id="fa" * 16), 1, [row])
    after = _parsed(written)
    promise(after is not None and after.servers == (Listed.of(row),), f"a row that cannot be read back: {written!r}")


def _settings(data: bytes) -> None:
    """What an admin may set can stand in the file: `<field>=<value>` lines."""
    farm, server = FarmOptions(name="lab", id="fa" * 16), make_server(1)
    for line in data.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition("=")
        with suppress(FarmError):
            farm = changed_farm(farm, {name: value})
        with suppress(FarmError):
            server = changed_server(server, {name: value}, {"s2"})
    written = render("", farm, 1, [server])
    after = _parsed(written)
    promise(after is not None and after.farm == farm, f"{farm} cannot be read back from {written!r}")
    promise(after is not None and after.servers == (Listed.of(server),), f"{server} cannot be read from {written!r}")


_ID, _OTHER = server_id(1), server_id(2)
_FULL = f"""\
# a farm
[farm]
chunksize = 4M        ; how large a chunk is
name = lab
id = {"fa" * 16}
generation = 7
ca = sha256:{"0a" * 32}
replicas = 2
table = embedded
master_grace = 10s
repair_after = 10m
forget_after = 7d
collect_grace = 24h
two_server_takeover = manual

; the oldest first
[servers]
alpha = 2026-11-22T10:00:00.123Z 10.0.0.1 4100 4101 4102 up {_ID}   # in the cellar
beta = 2026-11-22T10:00:01.000Z fe80::1%eth0 4110 4111 4112 draining {_OTHER}

[server]
name = alpha
host = 10.0.0.1
data = ./data
client = tcp:4100
peer = tcp6:4101:interface=\\:\\:1
files = systemd:domain=INET:name=files
weight = 100
zone = cellar
master = yes
reserve = 1G
repair_rate = 10M
drain_timeout = 20s
certificate = /etc/own.pem
names = a.example, b.example
log_level = info
log_format = json
""".encode()


def _seeds() -> tuple[bytes, ...]:
    texts = (
        _FULL,
        b"",
        b"[farm]\n",
        b"[servers]\nalpha = 10.0.0.1 4100\nbeta = host.example 4110 ; by hand\n",
        b"\xef\xbb\xbf[farm]\r\nchunksize = 8M\r\n\r\n[server]\r\ndata = d\r\n",
        b"[server]\ndata = d\n# at the end",
        _FULL.replace(b"\n", b"\r\n"),
    )
    locks = (f"{_ID} 7\n{_OTHER} 9\n".encode(), b"", b"x\n")
    rows = (make_server(1).to_value(), make_server(2, zone="", note="a note", version="1.0").to_value())
    settings = (
        b"name=home\nchunksize=1M\nreplicas=3\nmaster_grace=5s\nrepair_after=60\nforget_after=1d\ncollect_grace=1.5h",
        b"two_server_takeover=auto\nname=s9\nhost=10.0.0.9\nclient=5000\nzone=z\nmaster=no\nweight=3",
    )
    kinds = ((TEXT, texts), (LOCK, locks), (ROW, rows), (SETTINGS, settings))
    return tuple(bytes((kind,)) + one for kind, some in kinds for one in some)


_OPTIONS = tuple(
    b"chunksize name id generation ca replicas table master_grace repair_after forget_after collect_grace "
    b"two_server_takeover host data client peer files weight zone master reserve repair_rate drain_timeout certificate "
    b"names log_level log_format alpha beta".split()
)


def _tokens() -> tuple[bytes, ...]:
    words = [
        "[farm]",
        "[servers]",
        "[server]",
        "[other]",
        "8M",
        "1T",
        "0",
        "00",
        "1",
        "16",
        "17",
        "65535",
        "65536",
        "999999999999",
        "1.5s",
        "10s",
        "5m",
        "2h",
        "7d",
        "0.001s",
        "up",
        "down",
        "leaving",
        "draining",
        "yes",
        "no",
        "auto",
        "manual",
        "embedded",
        "tcp:4100",
        "tcp6:4100",
        "tcp:4100:interface=127.0.0.1",
        "~/x",
        "../x",
        "/",
        ".",
        ":",
        "\\:",
        "%eth0",
        "systemd:domain=INET:name=client",
        "10.0.0.1",
        "::1",
        "fe80::1%25",
        "0.0.0.0",
        "224.0.0.1",
        "localhost",
        "host.example.",
        "-a",
        "a-",
        "a..b",
        "_x",
        "2026-11-22T10:00:00.123Z",
        "9999-12-31T23:59:59.999Z",
        "0001-01-01T00:00:00.000Z",
        "2026-02-30T00:00:00.000Z",
        "json",
        "debug",
    ]
    odd = ("\ufeff", "\u2028", "\u00a0", "\u0085", "\u00e9", "\u0661", "\u212a", "\U0001f600", "\x1c", "\x0b", "\x0c")
    return (
        *(word.encode() for word in words),
        *_OPTIONS,
        *(text.encode() for text in odd),
        b" ; x",
        b" # x",
        b"\t;",
        b";",
        b"#",
        b" = ",
        b"\r",
        b"\r\n",
        b"\n",
        b"\n\n",
        _ID.encode(),
        b'"',
        b"\\ud800",
        b"null",
        b"1e999",
        b"NaN",
        b"true",
        b"[" * 2000,
    )
