"""The first server of a farm makes everything that the farm is.

Founding happens under the lock of `config.ini`, in which the file is read again, so that of servers that start
on one shared file exactly one founds. A marker in the data directory stands from before the first step until
the farm is recorded in `config.ini`: a crash between the two leaves a farm of one server and no files that
nobody knows of, and the next start discards it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from attrs import evolve
from twisted.logger import Logger

from chunkfarm.config import HeldConfig
from chunkfarm.data_directory import write_atomically
from chunkfarm.durable import sync_directory
from chunkfarm.errors import FarmError
from chunkfarm.issuer import secret_rows
from chunkfarm.model import Server
from chunkfarm.parts import Parts
from chunkfarm.table.interface import Put
from chunkfarm.trust.authority import Authority, usable_names
from chunkfarm.trust.keys import KeyPair, new_key, write_admin_key, write_netrc
from chunkfarm.trust.private import AlreadyExists, NoSuchFile
from chunkfarm.trust.proof import JOIN_FILE, make_join_key, read_join_key, write_join_key
from chunkfarm.trust.seal import SealKey

MARKER = "founding"
"""In the data directory while a farm is made that `config.ini` does not record yet. It holds that farm's id."""

_log = Logger()


class CannotFound(FarmError):
    """No farm can be made here; the sentence says why."""


def join_file(config_path: str) -> Path:
    """Where the join key lies: beside `config.ini`."""
    return Path(config_path).absolute().parent / JOIN_FILE


def discard_unrecorded(directory: Path, recorded_farm: str) -> bool:
    """Remove what a founder left that crashed before its farm was recorded; says whether there was any.

    Call it before the journal is opened. Nothing is removed if `config.ini` names the very farm that was being made:
    then the crash came after the record, and only the marker is left over.
    """
    marker = directory / MARKER
    try:
        made = marker.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return False
    discarded = not recorded_farm or made not in ("", recorded_farm)
    if discarded:
        for name in ("table.sqlite", "table.sqlite-wal", "table.sqlite-shm", "server.pem", "server.key", "ca.pem"):
            (directory / name).unlink(missing_ok=True)
        for name in ("seal.key", "admin.key", "netrc"):
            (directory / name).unlink(missing_ok=True)
    remove_marker(directory)
    return discarded


def remove_marker(directory: Path) -> None:
    """The farm is recorded. Durable on return: a marker that came back might cost the farm. Blocks for the disk."""
    marker = directory / MARKER
    if marker.exists():
        marker.unlink()
        sync_directory(directory)


def join_key_for_founding(path: Path) -> bytes:
    """The join key that lies there already, or a new one written there. Raises `TrustError`."""
    with contextlib.suppress(NoSuchFile):
        return read_join_key(path)
    key = make_join_key()
    try:
        write_join_key(path, key)
    except AlreadyExists:
        return read_join_key(path)
    return key


async def found(parts: Parts, held: HeldConfig, replaces: str) -> Server:
    """Make the farm, its CA, keys and table, and record it in the locked `config.ini`; returns our row.

    `replaces` is the id of a farm that the file names and that is given up, or empty.
    """
    farm_id = parts.machine.new_id().hex
    directory = parts.data.path
    run = parts.run_in_thread
    join_key = await run(join_key_for_founding, join_file(parts.config_file.path))
    await run(write_atomically, directory / MARKER, farm_id.encode())

    now = parts.now()
    authority = await run(Authority.create, farm_id, now)
    seal = SealKey.create()
    identity = parts.contexts.identity
    assert identity is not None
    identity = identity.signed_by(authority, usable_names(parts.certificate_names()), now)
    await run(identity.save, directory)
    await run(seal.save, directory)
    parts.contexts.replace(identity)
    parts.seal = seal

    row, secret = new_key("admin", created=now, seal=seal)
    pair = KeyPair(row.id, secret)
    await run(write_admin_key, directory, pair)
    await run(write_netrc, directory, [parts.host], pair)

    parts.journal.farm_id = farm_id
    parts.state.farm_id = farm_id
    await parts.embedded.found()
    parts.embedded.start()
    options = evolve(parts.config.farm, id=farm_id, ca=identity.ca_fingerprint)
    also = (*secret_rows(seal, authority, join_key), Put(row.key, row.to_value()))
    server = await parts.registry.found(parts.own_row(), options, also)
    try:
        await run(held.write, 1, options, [server], replaces=replaces)
    except OSError as error:
        raise CannotFound(
            f"the new farm cannot be recorded in {parts.config_file.path}: {error.strerror or error}"
        ) from None
    await run(remove_marker, directory)
    _log.info("This server founded the farm {name}, {farm}.", name=options.name, farm=farm_id)
    return server
