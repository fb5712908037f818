"""Large files over TLS: our transport beside nginx, and receiving beside sending.

    python benchmarks/transport.py [--mebibytes 256] [--rounds 5]

Needs curl; nginx is left out when it is not installed. Serves one file from 127.0.0.1 with a trivial HTTP
responder on `chunkfarm.wire.transport` (the file as a mmap, pumped as slices of 256 KiB) and with nginx
(sendfile on, defaults otherwise, same certificate), each in a process of its own, and alternates between
them. Absolute figures depend on the machine and its other work: read the ratio of the medians.
"""

from __future__ import annotations

import argparse
import datetime
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

from chunkfarm.config_values import ListenDescription
from chunkfarm.wire.pump import pump
from chunkfarm.wire.transport import listen

PIECE = 256 * 1024

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        root {folder}/www;
        location /put {{ dav_methods PUT; }}
    }}
}}
"""


class MappedFile:
    """The pieces of a file, from the page cache."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._at = 0

    def next(self) -> Deferred[bytes | memoryview | None]:
        piece = self._view[self._at : self._at + PIECE]
        self._at += len(piece)
        return succeed(piece or None)

    def close(self) -> None:
        pass


class Responder(Protocol):
    """Answers GET with the file and swallows PUT; a request head is taken to come in one piece."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._left = 0

    def dataReceived(self, data: bytes) -> None:
        if not self._left:
            head, _, data = data.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                size = os.path.getsize(self._path)
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)  # type: ignore[union-attr]
                pump(MappedFile(self._path), self.transport)
                return
            self._left = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            if b"100-continue" in head:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # type: ignore[union-attr]
        self._left -= len(data)
        if not self._left:
            self.transport.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")  # type: ignore[union-attr]


class Responders(Factory):
    """A responder for each connection."""

    noisy = False

    def __init__(self, path: str) -> None:
        self._path = path

    def buildProtocol(self, addr: IAddress | None) -> Responder:
        return Responder(self._path)


class OneContext:
    """The same TLS context for all connections."""

    def __init__(self, folder: Path) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.clear_mode(0x1)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_alpn_select_callback(choose)
        context.use_certificate_file(str(folder / "certificate.pem"))
        context.use_privatekey_file(str(folder / "key.pem"))
        self._context = context

    def getContext(self) -> SSL.Context:
        return self._context


def choose(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def serve(folder: Path, port: int, plain: bool) -> None:
    """Be the server under test until killed."""
    tls = None if plain else OneContext(folder)
    listen(reactor, ListenDescription("tcp", port, "127.0.0.1"), Responders(str(folder / "www" / "file")), tls)
    reactor.run()


def make_certificate(folder: Path) -> None:
    """A key and a certificate of the farm's kind (P-256)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used, with nginx's worker."""
    pids = [pid]
    for child in Path("/proc").glob("[0-9]*/stat"):
        try:
            if child.read_text().rpartition(")")[2].split()[1] == str(pid):
                pids.append(int(child.parent.name))
        except OSError:
            continue
    ticks = 0
    for each in pids:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def fetch(url: str, *more: str) -> float:
    """Seconds that curl takes."""
    start = time.perf_counter()
    subprocess.run(["curl", "-sSfk", "-o", "/dev/null", *more, url], check=True)
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--mebibytes", type=int, default=256)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--port", type=int, default=18443)
    options.add_argument("--plain", action="store_true", help="our side without TLS")
    options.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.port, chosen.plain)
        return
    folder = Path(tempfile.mkdtemp(prefix="transport-"))
    # nginx gives up root, and its worker must still read the file and write what is put.
    folder.chmod(0o755)
    (folder / "www" / "put").mkdir(parents=True)
    (folder / "www" / "put").chmod(0o777)
    with open(folder / "www" / "file", "wb") as file:
        for _ in range(chosen.mebibytes):
            file.write(os.urandom(1 << 20))
    make_certificate(folder)
    scheme = "http" if chosen.plain else "https"
    servers = {f"{scheme}://127.0.0.1:{chosen.port}": [sys.executable, __file__, "--serve", str(folder)]}
    ours = next(iter(servers))
    servers[ours] += ["--port", str(chosen.port), *(["--plain"] if chosen.plain else [])]
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if nginx:
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=chosen.port + 1))
        servers[f"https://127.0.0.1:{chosen.port + 1}"] = [
            nginx, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"),
        ]  # fmt: skip
    running = {url: subprocess.Popen(command) for url, command in servers.items()}
    try:
        time.sleep(1.5)
        for what, more in (("GET", ["/file"]), ("PUT", ["/put/file", "-T", str(folder / "www" / "file")])):
            times: dict[str, list[float]] = {url: [] for url in servers}
            used: dict[str, list[float]] = {url: [] for url in servers}
            for turn in range(chosen.rounds + 1):
                for url in servers:
                    before = cpu_of(running[url].pid)
                    seconds = fetch(url + more[0], *more[1:])
                    if turn:
                        # The first warms the page cache.
                        times[url].append(seconds)
                        used[url].append(cpu_of(running[url].pid) - before)
            medians = {url: statistics.median(values) for url, values in times.items()}
            for url in servers:
                print(
                    f"{what} {'ours ' if url == ours else 'nginx'} {chosen.mebibytes / medians[url]:7.0f} MiB/s"
                    f"  cpu {statistics.median(used[url]) * 1024 / chosen.mebibytes:.2f} s/GiB"
                    f"  x{medians[list(servers)[-1]] / medians[url]:.2f}"
                    f"  of {' '.join(f'{value:.3f}' for value in times[url])}"
                )
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
