"""A client of the client port, written from docs/protocol.md with nothing but the standard library.

It is here to show that the document is enough, so nothing of chunkfarm is imported, and there are no more than
150 lines. It puts, gets, lists and watches over TLS, and trusts a server by the fingerprint of its farm's CA.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

FIELD = re.compile(r'([a-z_]+)=(?:"([^"]*)"|([^ ]*))')
AT_ONCE = 3
"""Chunks on their way at a time."""


class Refused(Exception):
    """The server answered ERR; the text is `<code> <sentence>`."""


class NotOurFarm(Exception):
    """The server showed no certificate with the fingerprint of the farm's CA."""


def fields(line: str) -> dict[str, str]:
    """The fields of a line; one named `value` takes the rest of it, still encoded."""
    head, mark, value = line.partition(" value=")
    found = {name: unquote(sentence or word) for name, sentence, word in FIELD.findall(head)}
    return {**found, "value": value} if mark else found


def encrypt(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect, and say STARTTLS; not a byte is read beyond the OK."""
    link = socket.create_connection((host, port), 10)
    link.sendall(b"STARTTLS\n")
    answer = b""
    while not answer.endswith(b"\n"):
        byte = link.recv(1)
        if not byte:
            raise ConnectionError("the server hung up")
        answer += byte
    if answer.strip() != b"OK":
        raise Refused(answer.decode().strip())
    return context.wrap_socket(link, server_hostname=host)


def find_ca(host: str, port: int, fingerprint: str) -> bytes:
    """The farm's CA (DER), out of the chain that the server shows to a connection on which nothing is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with encrypt(host, port, context) as tls:
        # Python shows the whole chain from version 3.13 on; before that the method is there, but in hiding.
        shown: Any = tls if hasattr(tls, "get_unverified_chain") else tls._sslobj  # type: ignore[attr-defined]
        for link in shown.get_unverified_chain():
            der = link if isinstance(link, bytes) else ssl.PEM_cert_to_DER_cert(link.public_bytes())
            if "sha256:" + hashlib.sha256(der).hexdigest() == fingerprint:
                return der
    raise NotOurFarm(f"{host}:{port} is not of the farm whose CA is {fingerprint}")


class Stranger:
    """One encrypted link, on which the key has been shown."""

    def __init__(self, host: str, port: int, fingerprint: str, key_id: str, secret: str) -> None:
        context = ssl.create_default_context(cadata=find_ca(host, port, fingerprint))
        self.tls = encrypt(host, port, context)
        self.file = self.tls.makefile("rb")
        self.hello = fields(self.ask("HELLO"))
        self.role = fields(self.ask(f"AUTH {key_id} {secret}"))["role"]

    def close(self) -> None:
        self.file.close()
        self.tls.close()

    def say(self, line: str, payload: bytes = b"") -> None:
        self.tls.sendall(line.encode() + b"\n" + payload)

    def line(self) -> str:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the link has ended")
        return line.rstrip(b"\r\n").decode()

    def answer(self) -> str:
        line = self.line()
        if line.startswith("ERR "):
            raise Refused(unquote(line[4:]))
        return line

    def ask(self, line: str, payload: bytes = b"") -> str:
        self.say(line, payload)
        return self.answer()

    def block(self, line: str) -> tuple[str, list[dict[str, str]]]:
        """The header and the rows of a block."""
        header = self.ask(line)
        rows = [fields(self.line()) for _ in range(int(header.split(" ")[1]))]
        assert self.line() == "END"
        return header, rows

    def ls(self, prefix: str = "") -> tuple[int, list[dict[str, str]]]:
        """The revision of the first page, from which one can watch, and all files."""
        revision, files, more = -1, list[dict[str, str]](), True
        while more:
            after = quote(files[-1]["name"]) if files else "-"
            header, rows = self.block(f"LIST {quote(prefix) or '-'} {after} 1000")
            revision = int(fields(header)["revision"]) if revision < 0 else revision
            files += rows
            more = "more" in header.split(" ")
        return revision, files

    def put(self, name: str, data: bytes, chunk_size: int) -> dict[str, str]:
        """Store a file: its chunks, a few on their way at a time, then its name."""
        chunks = [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]
        digests = [hashlib.sha256(chunk).digest() for chunk in chunks]
        for number, (digest, chunk) in enumerate(zip(digests, chunks, strict=True)):
            self.say(f"PUT {digest.hex()} {len(chunk)}", chunk)
            if number >= AT_ONCE:
                self.answer()
        for _ in chunks[:AT_ONCE]:
            self.answer()
        manifest = b"".join(digests)
        return fields(self.ask(f"COMMIT {quote(name)} {len(data)} {chunk_size} {len(manifest)}", manifest))

    def get(self, name: str) -> bytes:
        length = int(self.ask(f"FETCH {quote(name)}").split(" ")[1])
        data = self.file.read(length)
        if len(data) < length:
            raise ConnectionError("the link has ended early; another server has the rest")
        return data

    def watch(self, prefix: str, since: int) -> Iterator[tuple[int, str, dict[str, str], Any]]:
        """Changes after a revision: revision, PUT or DEL, the row, and its value."""
        self.ask(f"WATCH {prefix} {since}")
        parts = b""
        while True:
            _, revision, kind, row = [*self.answer().split(" ", 3), ""][:4]
            told = fields(f" {row}")
            value = parts + unquote_to_bytes(told.pop("value", ""))
            parts = value if kind == "PART" else b""
            if kind in ("PUT", "DEL"):
                yield int(revision), kind, told, json.loads(value) if value else None
