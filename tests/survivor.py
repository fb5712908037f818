"""A data directory of a server that is stopped, with an export among its chunks, and the `config.ini` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from attrs import evolve

from chunkfarm.config import ConfigFile
from chunkfarm.data_directory import DataDirectory
from chunkfarm.exports.form import Head, Kept, pages_of, write_kept
from chunkfarm.exports.keeper import EXPORTS_FILE
from chunkfarm.issuer import secret_rows
from chunkfarm.model import GENERATION_KEY, LINES_KEY, OPTIONS_KEY, FarmOptions, File, Server, digest_of
from chunkfarm.restoring import Candidate, Plan, Restoring
from chunkfarm.table.interface import Put, Row
from chunkfarm.table.journal import Journal
from chunkfarm.table.lines import Fork
from chunkfarm.trust.authority import Authority
from chunkfarm.trust.identity import Identity
from chunkfarm.trust.keys import new_key
from chunkfarm.trust.seal import SealKey
from tests.builders import make_server, server_id
from tests.chunks.builders import make_store

NOW = 1_795_341_600_123
FARM = "fa" * 16
ME = 4
"""Number of the server that is left."""
CONFIG = """\
[farm]
chunksize = 4M
name = lab
id = {farm}
generation = {generation}
ca = {ca}

[servers]
{servers}

[server]
name = s4
data = data
host = 127.0.0.1
client = tcp:4140
peer = tcp:4141
files = tcp:4142
{more}
"""


class Survivor:
    """Server s4 of a farm of five, whose masters s1 to s3 are lost. `write` what is to be there, then `open`."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True)
        self.data = self.directory / "data"
        self.authority = Authority.create(FARM, NOW)
        self.seal = SealKey.create()
        self.servers = [make_server(number) for number in range(1, 6)]
        self.options = FarmOptions(id=FARM, name="lab", ca=self.authority.fingerprint)
        self.key, self.secret = new_key("admin", created=NOW, seal=self.seal)
        secrets = secret_rows(self.seal, self.authority, b"j" * 32)
        self.secrets = {one.key: one.value for one in secrets if isinstance(one, Put)}
        self.generation = 7
        self.files = {f"home/{number:05d}": number for number in range(300)}
        data = DataDirectory.open(self.data, UUID(int=ME))
        assert data.server_id == server_id(ME)
        data.close()
        identity = Identity.provisional(server_id(ME), NOW)
        identity.signed_by(self.authority, ["127.0.0.1"], NOW).save(self.data)
        self.seal.save(self.data)
        journal = self.journal()
        journal.farm_id = FARM
        journal.close()
        self.write_config()

    def write_config(self, generation: int = 7, servers: list[Server] | None = None, more: str = "") -> None:
        """`config.ini` as the farm wrote it last."""
        rows = "\n".join(
            f"{row.name} = 2026-11-22T10:00:00.123Z {row.host} {row.client} {row.peer} {row.files} {row.state} {row.id}"
            for row in (self.servers if servers is None else servers)
        )
        (self.directory / "config.ini").write_text(
            CONFIG.format(farm=FARM, generation=generation, ca=self.authority.fingerprint, servers=rows, more=more)
        )

    def journal(self) -> Journal:
        return Journal.open(str(self.data / "table.sqlite"))

    def rows(self, lines: tuple[Fork, ...] = ()) -> list[Row]:
        """The table of the farm."""
        values = {
            OPTIONS_KEY: self.options.to_value(),
            GENERATION_KEY: b"%d" % self.generation,
            self.key.key: self.key.to_value(),
        }
        values |= self.secrets
        values |= {server.key: evolve(server, seniority=0).to_value() for server in self.servers}
        for name, number in self.files.items():
            values[b"files/" + name.encode()] = File(name=name, size=0, chunk_size=4096, modified=number).to_value()
        if lines:
            values[LINES_KEY] = json.dumps([fork.as_item() for fork in lines]).encode()
        numbers = {server.key: server.seniority for server in self.servers}
        return [Row(key, values[key], numbers.get(key, 10)) for key in sorted(values)]

    def export(
        self,
        table: list[Row] | None = None,
        *,
        chunks: Path | None = None,
        lose: int | None = None,
        noted: bool = False,
        **head: Any,
    ) -> Kept:
        """Put an export into the chunks of this server, or of another directory, but for the page `lose`."""
        chunks = self.data / "chunks" if chunks is None else chunks
        store = make_store(chunks, index=chunks.parent / "index.sqlite", packed_most=64 * 1024)
        rows = self.rows() if table is None else table
        pages = list(pages_of(rows))
        values: dict[str, Any] = {"farm": FARM, "name": "lab", "revision": 500, "term": 3, "line": "", "time": NOW}
        values |= {"rows": len(rows), "size": sum(map(len, pages)), "pages": b"".join(map(digest_of, pages))}
        made = Head(**values | head)
        for number, page in enumerate(pages):
            if number != lose:
                store.put(None, page)
        store.put(None, made.to_bytes())
        store.put(None, b"chunkfarm export 1\nand then nothing of the kind")
        store.close()
        kept = Kept(revision=made.revision, time=NOW, rows=made.rows, digest=digest_of(made.to_bytes()))
        if noted:
            (self.data / EXPORTS_FILE).write_bytes(write_kept([kept]))
        return kept

    def open(self, *more: Path) -> Restoring:
        return Restoring.open(ConfigFile(str(self.directory / "config.ini")), {}, "machine", more)

    def found(self, *more: Path) -> list[Candidate]:
        """What a look at every chunk finds."""
        restoring = self.open(*more)
        try:
            return restoring.pieces.scan(FARM, lambda done, of: None)
        finally:
            restoring.close()

    def plan(self, *more: Path, force: bool = False) -> Plan:
        restoring = self.open(*more)
        try:
            candidates = restoring.pieces.scan(FARM, lambda done, of: None)
            return restoring.plan(candidates[0], Random(1), NOW + 5, force=force)
        finally:
            restoring.close()

    def restore(self, *more: Path, force: bool = False) -> Plan:
        restoring = self.open(*more)
        try:
            candidates = restoring.pieces.scan(FARM, lambda done, of: None)
            plan = restoring.plan(candidates[0], Random(1), NOW + 5, force=force)
            restoring.write(plan)
            return plan
        finally:
            restoring.close()

    def restored(self) -> dict[bytes, Row]:
        """The rows that this server has now."""
        journal = self.journal()
        try:
            rows: list[Row] = []
            while (page := journal.read(b"", rows[-1].key if rows else b"", 1000)).rows:
                rows += page.rows
            return {row.key: row for row in rows}
        finally:
            journal.close()
