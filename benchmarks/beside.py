"""What our servers are measured beside: nginx, with TLS, the same kind of key, and WebDAV for PUT."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_temp_path {folder}/www/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        root {folder}/www;
        location /put {{ dav_methods PUT DELETE; create_full_put_path on; }}
    }}
}}
"""
START_SECONDS = 10.0


class Nginx:
    """One nginx with one worker; it keeps no hash of what is put, and does not wait for the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The temporary bodies lie on the file system of the root, so that a PUT ends with a rename.
        (folder / "www" / "put").mkdir(parents=True)
        (folder / "www" / "body").mkdir()
        for path in (folder, folder / "www", folder / "www" / "put", folder / "www" / "body"):
            # nginx gives up root, and its worker must still read and write.
            path.chmod(0o777)
        make_certificate(folder)
        self.port = free_port()
        (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=self.port))
        command = [_find(), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        self._process = subprocess.Popen(command)
        self._wait()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """The first process and its worker."""
        return [self._process.pid, *children_of(self._process.pid)]

    def close(self) -> None:
        """End it; the folder is left to whoever made it."""
        self._process.terminate()
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "error.log").read_text())


def end_properly() -> None:
    """Let SIGTERM, of `timeout` say, end this process as an error would: the servers that it started end first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def installed() -> bool:
    """Whether there is an nginx to measure beside."""
    return bool(_find())


def _find() -> str:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or ""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if status.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(status.parent.name))
        except OSError:
            # It ended meanwhile.
            continue
    return found


def cpu_of(pids: Iterable[int]) -> float:
    """Seconds of processor time that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
