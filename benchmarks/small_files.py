"""One client in a process of its own: small files one after the other, over one kept TLS connection or on a mount.

Prints JSON: `seconds` for all, and `each`, the milliseconds of every file. A request is written and an answer is
read by hand: what the client costs itself is some 0.1 ms a request, so that it hides little of a server. On a mount
a file is put by open, write, fsync and close, and got by open, read and close.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

RECEIVED_AT_ONCE = 256 * 1024
FOLDER_FILES = 1_000


class Connection:
    """One connection, one request at a time, HTTP/1.1."""

    def __init__(self, port: int, ca: str | None, key: str) -> None:
        plain = socket.create_connection(("127.0.0.1", port), 60)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
            context.check_hostname = False
            self._socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self._fields = f"Host: 127.0.0.1:{port}\r\n".encode()
        if key:
            self._fields += b"Authorization: Basic %b\r\n" % base64.b64encode(key.encode())

    def ask(self, verb: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One request; its status, and the body of the answer."""
        length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
        self._socket.sendall(b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (
            verb.encode(), path.encode(), self._fields, length, body or b""))  # fmt: skip
        told = bytearray()
        while (end := told.find(b"\r\n\r\n")) < 0:
            told += self._receive()
        head = bytes(told[:end]).lower()
        _, _, length_on = head.partition(b"\r\ncontent-length:")
        if b"\r\ntransfer-encoding: chunked" in head:
            # A short answer in one chunk, as Tahoe-LAFS tells what a file is read by.
            while not told.endswith(b"\r\n0\r\n\r\n"):
                told += self._receive()
            return int(head[9:12]), bytes(told[end + 4 :]).split(b"\r\n")[1]
        whole = end + 4 + int(length_on.split(b"\r\n", 1)[0] or 0)
        while len(told) < whole:
            told += self._receive()
        return int(head[9:12]), bytes(told[end + 4 :])

    def _receive(self) -> bytes:
        received = self._socket.recv(RECEIVED_AT_ONCE)
        assert received, "the connection was closed"
        return received


class Requests:
    """Files by name over HTTP."""

    def __init__(self, connection: Connection, prefix: str, in_folders: bool = False) -> None:
        self._connection = connection
        self._prefix = prefix
        self._in_folders = in_folders
        # The handshake, and what a first request does once, are not what is measured.
        connection.ask("GET", f"{prefix}none")

    def put(self, number: int, body: bytes) -> None:
        """Store a file."""
        status, _ = self._connection.ask("PUT", self._path(number), body)
        assert status in (200, 201, 204), status

    def get(self, number: int) -> int:
        """Read a file; its bytes."""
        status, body = self._connection.ask("GET", self._path(number))
        assert status == 200, status
        return len(body)

    def _path(self, number: int) -> str:
        folder = f"-{number // FOLDER_FILES}/" if self._in_folders else ""
        return f"{self._prefix}{folder}{number}"

    def end(self) -> None:
        """Nothing is kept."""


class Capabilities:
    """Files of Tahoe-LAFS, which are read by what a put has answered; that is kept in a file for the next run."""

    def __init__(self, connection: Connection, kept: Path) -> None:
        self._connection = connection
        self._kept = kept
        self._known: list[str] = kept.read_text().split() if kept.exists() else []

    def put(self, number: int, body: bytes) -> None:
        """Store a file; they come in order."""
        status, told = self._connection.ask("PUT", "/uri", body)
        assert status in (200, 201), status
        self._known[number:] = [told.decode()]

    def get(self, number: int) -> int:
        """Read a file; its bytes."""
        status, body = self._connection.ask("GET", f"/uri/{self._known[number]}")
        assert status == 200, status
        return len(body)

    def end(self) -> None:
        """Keep what was answered."""
        self._kept.write_text("\n".join(self._known))


class Mounts:
    """Files below two mounts of the same store: written on one, read on the other, which has not cached them."""

    def __init__(self, write: str, read: str, prefix: str) -> None:
        name = prefix.strip("/").replace("/", "-")
        self._write = f"{write}/{name}"
        self._read = f"{read}/{name}"

    def put(self, number: int, body: bytes) -> None:
        """Store a file."""
        descriptor = os.open(f"{self._write}{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        assert os.write(descriptor, body) == len(body)
        os.fsync(descriptor)
        os.close(descriptor)

    def get(self, number: int) -> int:
        """Read a file; its bytes."""
        descriptor = os.open(f"{self._read}{number}", os.O_RDONLY)
        length = 0
        while part := os.read(descriptor, RECEIVED_AT_ONCE):
            length += len(part)
        os.close(descriptor)
        return length

    def end(self) -> None:
        """Nothing is kept."""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("verb", choices=["PUT", "GET"])
    options.add_argument("--port", type=int)
    options.add_argument("--prefix", required=True, help="what the names begin with")
    options.add_argument("--count", type=int, required=True)
    options.add_argument("--size", type=int, required=True)
    options.add_argument("--ca", help="without it the connection is not encrypted")
    options.add_argument("--key", help="file with the key: <key id> <secret>")
    options.add_argument("--seconds", type=float, help="go on for so long, with the same files again; only GET")
    options.add_argument("--pace", type=float, default=0.0, help="so many a second at most")
    options.add_argument("--folders", action="store_true", help="a folder for every thousand")
    options.add_argument("--mounts", nargs=2, help="two folders to write to and read from, and no connection")
    options.add_argument("--tahoe", type=Path, help="Tahoe-LAFS; what it answers is kept there")
    chosen = options.parse_args()
    key = ":".join(Path(chosen.key).read_text().split()) if chosen.key else ""
    files: Requests | Capabilities | Mounts
    if chosen.mounts:
        write, read = chosen.mounts
        files = Mounts(write, read, chosen.prefix)
    elif chosen.tahoe:
        files = Capabilities(Connection(chosen.port, None, ""), chosen.tahoe)
    else:
        files = Requests(Connection(chosen.port, chosen.ca, key), chosen.prefix, chosen.folders)
    do: Callable[[int], None]
    if chosen.verb == "PUT":
        bodies = [os.urandom(chosen.size) for _ in range(chosen.count)]

        def do(number: int) -> None:
            files.put(number, bodies[number])
    else:

        def do(number: int) -> None:
            length = files.get(number)
            assert length == chosen.size, length

    each: list[float] = []
    begin = time.perf_counter()
    while (len(each) < chosen.count) if chosen.seconds is None else (time.perf_counter() - begin < chosen.seconds):
        number = len(each)
        if chosen.pace:
            time.sleep(max(0.0, begin + number / chosen.pace - time.perf_counter()))
        before = time.perf_counter()
        do(number % chosen.count)
        each.append((time.perf_counter() - before) * 1000)
    print(json.dumps({"seconds": time.perf_counter() - begin, "each": each}))
    files.end()


if __name__ == "__main__":
    main()
