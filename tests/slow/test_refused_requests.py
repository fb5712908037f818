"""Requests that must be refused by a server that runs: one clear sentence, and nothing changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from typing import Any

import pytest

from chunkfarm.trust.authority import Authority
from chunkfarm.trust.identity import Identity
from tests.slow.farm_case import FarmTestCase
from tests.slow.line_socket import Refused, link_to
from tests.slow.real_farm import RealFarm, hash_of_folder

pytestmark = pytest.mark.slow

TEXT = b"what is stored\n"
DIGEST = hashlib.sha256(TEXT).hexdigest()
OTHER = hashlib.sha256(b"never stored").hexdigest()


class RefusalTestCase(FarmTestCase):
    """One server, one small file, and a look at all of it before and after."""

    def setUp(self) -> None:
        self.farm = self.make_farm("alpha")
        self.alpha = self.farm.server("alpha")
        self.farm.ask("alpha", f"PUT {DIGEST} {len(TEXT)}", TEXT)
        self.farm.ask("alpha", f"COMMIT home/kept {len(TEXT)} 8388608 32", bytes.fromhex(DIGEST))
        self.before = everything(self.farm)

    def unchanged(self) -> None:
        """Nothing of the farm is different, and the server still works."""
        assert everything(self.farm) == self.before
        assert self.farm.ask("alpha", "FETCH home/kept").data == TEXT
        assert "Traceback" not in self.alpha.logged(), self.alpha.tail()

    def refused(self, code: str, line: str, payload: bytes = b"") -> str:
        """The sentence with which a command is refused; the link stays in step."""
        with self.farm.link("alpha") as link:
            try:
                reply = link.ask(line, payload)
            except Refused as error:
                assert error.code == code, error
                assert error.sentence.strip(), error
                assert link.ask("PING").line == "OK", "the link is out of step"
                return error.sentence
        raise AssertionError(f"{line[:60]!r} was answered {reply.line!r}")


def everything(farm: RealFarm) -> dict[str, Any]:
    """What bad input must not change."""
    chunks = farm.server("alpha").data / "chunks"
    return {
        "files": farm.ask("alpha", "LIST").rows,
        "servers": [row["id"] for row in farm.rows("alpha")],
        "chunks": hash_of_folder(chunks),
        "config": farm.config_path.read_bytes(),
        "secrets": hash_of_folder(
            farm.directory, but=("*.log", "*.sqlite*", "history.jsonl", "room", "chunks/*", "*.chunk", "*.pack")
        ),
    }


class LineProtocolTests(RefusalTestCase):
    def test_commands_that_are_refused(self) -> None:
        """Each bad command gets its code and a sentence, the link goes on, and nothing changes."""
        assert "NONSENSE" in self.refused("unknown", "NONSENSE 1 2 3")
        self.refused("mismatch", f"PUT {OTHER} {len(TEXT)}", TEXT)
        self.refused("syntax", f"PUT abc {len(TEXT)}", TEXT)
        self.refused("syntax", f"PUT {OTHER} 0")
        self.refused("missing", f"COMMIT home/new {len(TEXT)} 8388608 32", bytes.fromhex(OTHER))
        self.refused("missing", f"COMMIT home/new {8388608 + 15} 8388608 64", bytes.fromhex(OTHER + DIGEST))
        self.refused("mismatch", f"COMMIT home/new {len(TEXT)} 8388608 64", bytes.fromhex(DIGEST + DIGEST))
        self.refused("mismatch", f"COMMIT home/new {len(TEXT) + 1} 8388608 32", bytes.fromhex(DIGEST))
        self.refused("syntax", f"COMMIT home/new {len(TEXT)} 5 32", bytes.fromhex(DIGEST))
        for name in ("nobucket", "home/", "-/health", "home/../../etc/passwd", "home/%00", "home/" + "x" * 1100):
            self.refused("syntax", f"COMMIT {name} 0 8388608 0")
        self.refused("notfound", "FETCH home/absent")
        self.refused("notfound", f"GET {OTHER}")
        self.refused("syntax", "FETCH home/kept 0 1000")
        self.refused("syntax", "FETCH home/kept -1")
        self.refused("notfound", "REMOVE home/absent")
        self.refused("syntax", "SET farm chunksize=huge")
        self.refused("syntax", "SET farm bogus=1")
        self.refused("notfound", "SET nobody name=x")
        self.unchanged()

    def test_a_length_that_cannot_be(self) -> None:
        """A length that is no number, or is too long, is refused, and ends the link."""
        for line in (f"PUT {OTHER} many", f"PUT {OTHER} {10**12}", "COMMIT home/new 1 8388608 99999999999"):
            with self.farm.link("alpha") as link:
                with self.assertRaises(Refused) as refused:
                    link.ask(line)
                assert refused.exception.code in ("syntax", "limit"), refused.exception
                assert link.rest() == b""
        self.unchanged()

    def test_a_line_that_is_too_long(self) -> None:
        """A line of more than 16 KiB is refused, and ends the link."""
        with self.farm.link("alpha") as link:
            with self.assertRaises(Refused) as refused:
                link.ask("STAT " + "x" * 20_000)
            assert refused.exception.code == "limit"
            assert link.rest() == b""
        self.unchanged()

    def test_without_a_key(self) -> None:
        """Without AUTH nothing is told or taken but what is for anybody."""
        with link_to(self.alpha.client) as link:
            assert link.hello().state == "serving"
            for line in ("LIST", "SERVERS", "WHO", "STATUS", "STAT home/kept", "FETCH home/kept", f"HAVE {DIGEST}",
                         "REMOVE home/kept", "SET farm replicas=1", "WATCH", f"GET {DIGEST}"):  # fmt: skip
                with self.assertRaises(Refused) as refused:
                    link.ask(line)
                assert refused.exception.code == "auth", (line, refused.exception)
            with self.assertRaises(Refused) as refused:
                link.ask("COMMIT home/new 0 8388608 0")
            assert refused.exception.code == "auth"
        self.unchanged()

    def test_with_a_wrong_key(self) -> None:
        """A wrong key is refused with the same sentence whatever is wrong, and the third ends the link."""
        key_id, secret = self.farm.key()
        said = set()
        with link_to(self.alpha.client) as link:
            for wrong in (f"{key_id} {secret[:-1]}x", f"nobody {secret}", f"{key_id} x"):
                with self.assertRaises(Refused) as refused:
                    link.ask(f"AUTH {wrong}")
                said.add(str(refused.exception))
            assert link.rest() == b""
        assert len(said) == 1 and said.pop().startswith("ERR auth ")
        assert secret not in self.alpha.logged()
        self.unchanged()

    def test_http_on_the_client_port(self) -> None:
        """A line that looks like HTTP ends the link without being obeyed."""
        key_id, secret = self.farm.key()
        with link_to(self.alpha.client) as link:
            link.send(f"POST / HTTP/1.1\r\nHost: x\r\n\r\nAUTH {key_id} {secret}\nREMOVE home/kept\n".encode())
            with contextlib.suppress(ConnectionResetError):
                link.rest()
        self.unchanged()


class CommandLineTests(RefusalTestCase):
    def test_exit_status_and_sentence(self) -> None:
        """The command ends with the status that its help promises, and one line that says why."""
        (self.farm.directory / "file").write_bytes(TEXT)
        (self.farm.directory / "key").write_text("nobody " + "x" * 43 + "\n")
        (self.farm.directory / "key").chmod(0o600)
        (self.farm.directory / "open").write_text("nobody " + "x" * 43 + "\n")
        (self.farm.directory / "open").chmod(0o644)
        for status, arguments in (
            (3, ["get", "home/absent", "out"]),
            (3, ["stat", "home/absent"]),
            (3, ["rm", "home/absent"]),
            (2, ["get", "nobucket"]),
            (2, ["put", "file", "-/x"]),
            (2, ["bogus"]),
            (1, ["put", "nofile", "home/x"]),
            (4, ["--key", "key", "ls"]),
            (4, ["--key", "open", "ls"]),
            (4, ["--key", "nokey", "ls"]),
            (1, ["--config", "noconfig.ini", "ls"]),
            (1, ["set", "farm", "chunksize=huge"]),
        ):
            done = self.farm.cli(*arguments)
            assert done.returncode == status, (arguments, done)
            assert "Traceback" not in done.stderr, done.stderr
            if status != 2:
                assert done.stderr.startswith("chunkfarm: ") and len(done.stderr.splitlines()) == 1, done.stderr
        assert not (self.farm.directory / "out").exists()
        for made in ("file", "key", "open"):
            (self.farm.directory / made).unlink()
        self.unchanged()

    def test_nobody_answers(self) -> None:
        """With no server up, the command gives up after its timeout with status 5, and names each address."""
        self.farm.kill9("alpha")
        done = self.farm.cli("--timeout", "2", "ls")
        assert done.returncode == 5, done
        assert f"127.0.0.1:{self.alpha.client}" in done.stderr and "refused" in done.stderr


class FilePortTests(RefusalTestCase):
    def status(self, path: str, *arguments: str, netrc: bool = True) -> int:
        """The HTTP status that curl gets."""
        done = self.farm.curl(
            "-o", "said", "-w", "%{http_code}", *arguments, f"{self.alpha.url}{path}", "--path-as-is", netrc=netrc
        )
        (self.farm.directory / "said").unlink(missing_ok=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def test_requests_that_are_refused(self) -> None:
        """Each bad request gets its status, and nothing changes."""
        (self.farm.directory / "file").write_bytes(TEXT)
        assert self.status("/home/kept", netrc=False) == 401
        assert self.status("/home/kept", "-u", "nobody:wrong", netrc=False) == 401
        assert self.status("/home/kept", "-u", f"{self.farm.key()[0]}:wrong", netrc=False) == 401
        assert self.status("/home/kept", "-H", "Authorization: Bearer wrong", netrc=False) == 401
        assert self.status("/home/new", "-T", "file", netrc=False) == 401
        assert self.status("/home/kept", "-X", "DELETE", netrc=False) == 401
        assert self.status("/home/kept", "-r", "15-") == 416
        assert self.status("/home/kept", "-r", "1000-2000") == 416
        assert self.status("/home/absent") == 404
        assert self.status("/home/absent", "-X", "DELETE") == 404
        assert self.status("/home/kept", "-X", "BREW") in (405, 501)
        assert self.status("/home/../etc/passwd", "-T", "file") == 400
        assert self.status("/nobucket", "-T", "file") in (400, 405, 501)
        assert self.status("/home/kept", "-T", "file", "-H", "If-None-Match: *") == 412
        assert self.status("/home/kept", "-T", "file", "-H", 'If-Match: "0123"') == 412
        # The key of a person is not a farm certificate.
        assert self.status(f"/-/chunks/{DIGEST}") in (401, 403)
        assert self.status(f"/-/chunks/{OTHER}", "-T", "file") in (401, 403)
        (self.farm.directory / "file").unlink()
        self.unchanged()


class PeerPortTests(RefusalTestCase):
    def box(self, command: str, context: ssl.SSLContext | None = None, **values: str) -> dict[str, str]:
        """What the peer port answers to one AMP command, empty if it ends the link."""
        if context is None:
            context = unchecked()
        with link_to(self.alpha.peer) as link, context.wrap_socket(link.socket) as tls:
            tls.sendall(amp(_ask="1", _command=command, **values))
            try:
                return read_box(tls)
            except (OSError, EOFError):
                return {}

    def strangers_are_refused(self, context: ssl.SSLContext | None) -> None:
        told = json.loads(self.box("Probe", context, server="0" * 32, stamp="1", farm="")["answer"])
        assert told["state"] == "serving", "anybody may ask who is there"
        row = json.dumps({"id": "0" * 32, "name": "evil"})
        for command, values in (
            ("Report", {"report": "{}"}),
            ("PutServer", {"row": row}),
            ("GetServer", {"server": told["server"]}),
            ("GetTable", {"request": "{}"}),
            ("PutTable", {"block": "TABLE 0 revision=1\nEND\n"}),
            ("Transact", {"request": "{}"}),
            ("Read", {"request": "{}"}),
            ("Consensus", {"payload": "{}"}),
            ("Renew", {"request": "x"}),
            ("Authenticate", {"key": "x", "proof": "x"}),
        ):
            answer = self.box(command, context, **values)
            assert answer.get("_error_code") == "BAD_REQUEST", (command, answer)
            assert "certificate of this farm" in answer["_error_description"], answer
        join = self.box("Join", context, version="1", farm="", proof="x" * 32, request="x", row=row)
        assert join.get("_error_code") == "JOIN_REFUSED" and "join key" in join["_error_description"], join

    def test_without_a_certificate(self) -> None:
        """A link that shows no certificate may ask who is there and to join, and nothing else."""
        self.strangers_are_refused(None)
        self.unchanged()

    def test_with_a_certificate_of_another_ca(self) -> None:
        """A certificate for this very server, but from another CA, proves nothing."""
        hello = self.farm.hello("alpha")
        assert hello is not None
        now = 1_700_000_000_000
        identity = Identity.provisional(hello.fields["server"], now)
        identity = identity.signed_by(Authority.create("f" * 32, now), ["127.0.0.1"], now)
        pem = self.farm.directory / "forged.pem"
        pem.write_bytes(identity.key_pem + identity.certificate_pem + identity.ca_pem)
        context = unchecked()
        context.load_cert_chain(pem)
        pem.unlink()
        self.strangers_are_refused(context)
        self.unchanged()

    def test_without_tls(self) -> None:
        """Bytes that are no TLS end the link."""
        with link_to(self.alpha.peer) as link:
            link.send(amp(_ask="1", _command="Probe", server="0" * 32, stamp="1", farm=""))
            with contextlib.suppress(ConnectionResetError):
                assert b"answer" not in link.rest()
        self.unchanged()

    def test_by_an_old_protocol(self) -> None:
        """TLS 1.2 is refused on the peer port, since a join proof needs 1.3."""
        context = unchecked()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with link_to(self.alpha.peer) as link, self.assertRaises(OSError):
            context.wrap_socket(link.socket)
        self.unchanged()

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
    def test_handshakes_of_openssl(self) -> None:
        """On every port OpenSSL's own client gets in with what docs/security.md names, and with nothing weaker."""
        everything_weak = ("-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")
        for port, oldest in (
            (self.alpha.files, "-tls1_2"),
            (self.alpha.peer, "-tls1_3"),
            (self.behind_starttls(), "-tls1_2"),
        ):
            for good in ((oldest,), ("-tls1_3", "-groups", "P-384"), ("-tls1_3", "-groups", "X25519")):
                assert shakes_hands(port, *good), (port, good)
            for bad in (
                ("-tls1_1", *everything_weak),
                (
                    "-tls1_2",
                    "-cipher",
                    "AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA:DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0",
                ),
                ("-tls1_2", "-sigalgs", "ECDSA+SHA224:ECDSA+SHA1", *everything_weak),
                ("-tls1_3", "-groups", "ffdhe2048"),
                ("-tls1_3", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"),
            ):
                assert not shakes_hands(port, *bad), (port, bad)
        self.unchanged()

    def behind_starttls(self) -> int:
        """A port that leads to the client port behind its STARTTLS, which `openssl s_client` does not know."""
        door = socket.create_server(("127.0.0.1", 0))

        def pass_on(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    visitor, server = door.accept()[0], socket.create_connection(("127.0.0.1", self.alpha.client))
                    with visitor, server:
                        server.sendall(b"STARTTLS\n")
                        assert server.recv(100).startswith(b"OK")
                        back = threading.Thread(target=pass_on, args=(server, visitor))
                        back.start()
                        pass_on(visitor, server)
                        back.join()

        serving = threading.Thread(target=serve)
        serving.start()

        def close() -> None:
            door.shutdown(socket.SHUT_RDWR)
            serving.join()
            door.close()

        self.addCleanup(close)
        return int(door.getsockname()[1])


def shakes_hands(port: int, *arguments: str) -> bool:
    """Whether `openssl s_client` has a cipher after its handshake."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
        input=b"", capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert b"New, " in done.stdout, done
    return b"Cipher is (NONE)" not in done.stdout


def unchecked() -> ssl.SSLContext:
    """A client that takes whatever certificate the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def amp(**values: str) -> bytes:
    """One AMP box: keys and values with their lengths, then an empty key."""
    box = b""
    for word in (word for pair in values.items() for word in pair):
        box += struct.pack("!H", len(word)) + word.encode()
    return box + b"\0\0"


def read_box(tls: ssl.SSLSocket) -> dict[str, str]:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = tls.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    box: dict[str, str] = {}
    while length := struct.unpack("!H", exactly(2))[0]:
        key = exactly(length).decode()
        box[key] = exactly(struct.unpack("!H", exactly(2))[0]).decode()
    return box
