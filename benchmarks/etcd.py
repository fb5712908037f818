"""What the table is measured beside: three members of etcd on this machine, spoken to in its own protocol.

A put goes to etcd as gRPC over HTTP/2, which `Link` speaks as far as a put needs it: no library is wanted,
and the client costs either system about the same. Or it goes to its JSON gateway (`GatewayLink`), which is
what a program without gRPC uses, and a good deal slower. Between its members etcd speaks without encryption here,
which is how it starts unless it is given certificates; a farm encrypts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beside import free_port

MEMBERS = ("one", "two", "three")
START_SECONDS = 30.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WINDOW = 2**31 - 1 - 65_535
"""Bytes that etcd may send before it is told that some were read: more than it ever has to say here."""


def installed() -> bool:
    """Whether there is an etcd to measure beside."""
    return shutil.which("etcd") is not None and shutil.which("etcdctl") is not None


class Etcd:
    """Three members, each a process with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self.ports = {name: free_port() for name in MEMBERS}
        self._peers = {name: free_port() for name in MEMBERS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all members, and wait until one leads."""
        for name in MEMBERS:
            self.start_one(name)
        self.wait_leader()

    def start_one(self, name: str) -> None:
        """Start one member, for the first time or again."""
        peer, client = f"http://127.0.0.1:{self._peers[name]}", f"http://127.0.0.1:{self.ports[name]}"
        cluster = ",".join(f"{one}=http://127.0.0.1:{port}" for one, port in self._peers.items())
        command = ["etcd", "--name", name, "--data-dir", str(self._folder / name)]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--initial-cluster", cluster, "--initial-cluster-state", "new", "--log-level", "error"]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
            )

    def leader(self) -> str:
        """The name of the member that leads; empty while none does, or not all answer."""
        endpoints = ",".join(f"127.0.0.1:{port}" for port in self.ports.values())
        told = subprocess.run(
            ["etcdctl", "--endpoints", endpoints, "endpoint", "status", "-w", "json"],
            env={**_environment(), "ETCDCTL_API": "3"},
            capture_output=True,
            check=False,
        )
        try:
            members = json.loads(told.stdout)
        except ValueError:
            return ""
        if len(members) < len(MEMBERS):
            return ""
        for member in members:
            if member["Status"]["header"]["member_id"] == member["Status"].get("leader"):
                port = int(member["Endpoint"].rpartition(":")[2])
                return next(name for name, one in self.ports.items() if one == port)
        return ""

    def wait_leader(self) -> str:
        """The member that leads, once all three answer."""
        deadline = time.monotonic() + START_SECONDS
        while not (leader := self.leader()):
            assert time.monotonic() < deadline, "etcd has no leader"
            time.sleep(0.1)
        return leader

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    def kill9(self, name: str) -> None:
        """End one member without a warning; does not wait."""
        os.kill(self._processes[name].pid, signal.SIGKILL)

    def start_again(self, name: str) -> None:
        """Start a member that was killed."""
        self._processes[name].wait()
        self.start_one(name)

    def close(self) -> None:
        """End every member; the folder is left to whoever made it."""
        for process in self._processes.values():
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}


# --- as much of gRPC as a put takes -------------------------------------------------------------------------


class Link:
    """One connection to a member, over which puts are sent; answers are told by the number of the put."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", WINDOW))
        )
        self._headers = _headers(f"127.0.0.1:{port}")
        self._stream = -1
        self._bytes = b""
        self._answered: set[int] = set()

    def put(self, key: bytes, value: bytes) -> int:
        """Send a put; returns its number."""
        self._stream += 2
        message = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value)) + value
        data = b"\x00" + struct.pack("!I", len(message)) + message
        self.socket.sendall(
            _frame(HEADERS, END_HEADERS, self._stream, self._headers) + _frame(DATA, END_STREAM, self._stream, data)
        )
        return self._stream

    def answers(self) -> Iterator[tuple[int, bool]]:
        """Read once; the puts that are answered with it, and whether they are done (else refused)."""
        read = self.socket.recv(65_536)
        if not read:
            raise ConnectionResetError("etcd has closed the connection")
        self._bytes += read
        while len(self._bytes) >= 9:
            length = int.from_bytes(self._bytes[:3], "big")
            if len(self._bytes) < 9 + length:
                return
            kind, flags = self._bytes[3], self._bytes[4]
            stream = int.from_bytes(self._bytes[5:9], "big")
            payload, self._bytes = self._bytes[9 : 9 + length], self._bytes[9 + length :]
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == DATA and length:
                # A refusal has no message: what it says stands in its trailer.
                self._answered.add(stream)
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                done = stream in self._answered
                self._answered.discard(stream)
                yield stream, done

    def close(self) -> None:
        self.socket.close()


class GatewayLink:
    """A connection to a member's JSON gateway, HTTP/1.1, on which one put is under way at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"127.0.0.1:{port}"
        self._number = 0
        self._bytes = b""

    def put(self, key: bytes, value: bytes) -> int:
        """Send a put; returns its number."""
        body = json.dumps({"key": b64encode(key).decode(), "value": b64encode(value).decode()})
        head = f"POST /v3/kv/put HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall((head + body).encode())
        self._number += 1
        return self._number

    def answers(self) -> Iterator[tuple[int, bool]]:
        """Read once; the put that is answered with it, and whether it is done."""
        read = self.socket.recv(65_536)
        if not read:
            raise ConnectionResetError("etcd has closed the connection")
        self._bytes += read
        head, _, body = self._bytes.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
        if length is not None and len(body) >= int(length[1]):
            self._bytes = b""
            yield self._number, head.startswith(b"HTTP/1.1 200 ")

    def close(self) -> None:
        self.socket.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(authority: str) -> bytes:
    """The head of a request, each name by its number in HPACK's table or in full, nothing compressed."""

    def text(value: str) -> bytes:
        return bytes((len(value),)) + value.encode()

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text("/etcdserverpb.KV/Put"),
            b"\x01" + text(authority),
            b"\x0f\x10" + text("application/grpc"),
            b"\x00" + text("te") + text("trailers"),
        )
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
