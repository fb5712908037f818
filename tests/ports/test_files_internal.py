"""`/-/`: health for everybody, chunks for the servers of the farm."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import Full
from chunkfarm.links.interface import HAVE_DIGESTS_MAX, KEEP_DIGESTS_MAX, VERIFY_DIGESTS_MAX
from chunkfarm.model import CHUNK_SIZE_MAX, Address, digest_of
from chunkfarm.ports.files import chunks
from chunkfarm.state import Wait
from tests.ports.fakes import NOW, OTHER_ID, SERVER_ID, MemoryStore
from tests.ports.files_caller import CERTIFICATE, Answered, Caller, request

DATA = bytes(range(256)) * 1000
DIGEST = digest_of(DATA)
CHUNK = f"/-/chunks/{DIGEST.hex()}"


class HealthTests(SynchronousTestCase):
    """`/-/health`."""

    def test_serving(self) -> None:
        """A server that serves, if only reads, is well; nobody needs a key to see it."""
        for phase in ("serving", "readonly"):
            caller = Caller()
            caller.backend.state.change(phase)
            answer = caller.one("GET", "/-/health", key=None)
            assert answer.status == 200
            assert answer.json == {"state": phase, "server": SERVER_ID, "farm": "fa" * 16}

    def test_not_serving(self) -> None:
        """A server that does not serve says what it waits for."""
        caller = Caller()
        caller.backend.state.farm_id = ""
        caller.backend.state.change("waiting", waits=(Wait(Address("10.0.0.3", 4101), "refused", NOW, 4),))
        answer = caller.one("GET", "/-/health", key=None)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        wait = {"address": "10.0.0.3:4101", "error": "refused", "since": "2026-11-22T10:00:00.123Z", "tries": 4}
        assert answer.json == {"state": "waiting", "server": SERVER_ID, "waits": [wait]}

    def test_methods(self) -> None:
        """HEAD is allowed, other methods are not."""
        caller = Caller()
        assert caller.one("HEAD", "/-/health").status == 200
        assert caller.one("PUT", "/-/health").headers["allow"] == "GET, HEAD"

    def test_nothing_else(self) -> None:
        """There is nothing else below `/-/`, with or without a key."""
        for target in ("/-/", "/-/chunks", "/-/metric", "/-/healthy"):
            for key in (None, "admin"):
                assert Caller().one("GET", target, key=key).status == 404


class ChunkTests(SynchronousTestCase):
    """`/-/chunks/`."""

    def make(self) -> Caller:
        caller = Caller()
        caller.backend.peers[CERTIFICATE] = OTHER_ID
        caller.link.certificate = CERTIFICATE
        return caller

    def ask(self, caller: Caller, method: str, target: str, *lines: str, body: bytes = b"") -> Answered:
        return caller.one(method, target, *lines, body=body, key=None)

    def test_only_servers(self) -> None:
        """Without a certificate of the farm there are no chunks, whatever key is shown."""
        for certificate in (None, "of another farm"):
            for method in ("GET", "PUT", "DELETE"):
                caller = self.make()
                caller.link.certificate = certificate
                caller.backend.store.chunks[DIGEST] = DATA
                answer = caller.one(method, CHUNK, key="admin")
                assert answer.status == 403 and answer.text.startswith("denied ")
            assert caller.one("POST", "/-/chunks/have", key="admin").status == 403

    def test_a_server_that_was_forgotten(self) -> None:
        """It gets and stores nothing from the moment on in which this is known, also on a connection that is open."""
        caller = self.make()
        caller.backend.store.chunks[DIGEST] = DATA
        assert self.ask(caller, "GET", CHUNK).status == 200
        caller.backend.forgotten.add(OTHER_ID)
        for method, target in (("GET", CHUNK), ("PUT", CHUNK), ("POST", "/-/chunks/have")):
            assert self.ask(caller, method, target).text == "denied it was forgotten\n"

    def test_put(self) -> None:
        """A chunk is stored under its digest."""
        caller = self.make()
        assert self.ask(caller, "PUT", CHUNK, body=DATA).status == 204
        assert caller.backend.store.chunks == {DIGEST: DATA}

    def test_put_wrong_digest(self) -> None:
        """Bytes that do not have the digest are refused."""
        caller = self.make()
        answer = self.ask(caller, "PUT", CHUNK, body=DATA[1:])
        assert answer.status == 422 and answer.text.startswith("mismatch ") and not caller.backend.store.chunks

    def test_put_full(self) -> None:
        """A server without room says so."""
        caller = self.make()
        caller.backend.store.error = Full("the disk has reached its reserve")
        assert self.ask(caller, "PUT", CHUNK, body=DATA).text == "full the disk has reached its reserve\n"

    def test_put_too_large(self) -> None:
        """More than the largest chunk is refused before it comes, and a length has to be given."""
        caller = self.make()
        caller.send(request("PUT", CHUNK, f"Content-Length: {CHUNK_SIZE_MAX + 1}", key=None, raw=True))
        (answer,) = caller.answers()
        assert answer.status == 413 and not caller.open
        caller = self.make()
        caller.send(request("PUT", CHUNK, "Transfer-Encoding: chunked", key=None, raw=True))
        assert caller.answers()[0].status == 411

    def test_put_too_many(self) -> None:
        """Only so many bytes are held at a time; when a client goes, its share is free again."""
        self.patch(chunks, "BODIES_BYTES_MAX", 2 * len(DATA))
        first = self.make()
        second, third = Caller(first.backend, first.factory), Caller(first.backend, first.factory)
        for caller in (first, second, third):
            caller.link.certificate = CERTIFICATE
            caller.send(request("PUT", CHUNK, f"Content-Length: {len(DATA)}", key=None, raw=True))
        assert [answer.status for answer in third.answers()] == [503]
        first.hang_up()
        fourth = Caller(first.backend, first.factory)
        fourth.link.certificate = CERTIFICATE
        assert self.ask(fourth, "PUT", CHUNK, body=DATA).status == 204
        second.send(DATA)
        assert second.answers()[0].status == 204

    def test_get(self) -> None:
        """A chunk, or a part of it, comes back."""
        caller = self.make()
        caller.backend.store.chunks[DIGEST] = DATA
        answer = self.ask(caller, "GET", CHUNK)
        assert (answer.status, answer.body) == (200, DATA)
        answer = self.ask(caller, "GET", CHUNK, "Range: bytes=100-299")
        assert (answer.status, answer.body) == (206, DATA[100:300])
        assert answer.headers["content-range"] == "bytes 100-299/256000"
        assert self.ask(caller, "GET", CHUNK, "Range: bytes=256000-").status == 416
        answer = self.ask(caller, "HEAD", CHUNK)
        assert (answer.status, answer.headers["content-length"]) == (200, "256000")
        assert all(source.closed for source in caller.backend.store.sources)

    def test_verify_and_look(self) -> None:
        """Chunks are read on demand, and handed to the caretaker; both are asked for with POST."""
        caller = self.make()
        caller.backend.store.chunks[DIGEST] = DATA
        answer = self.ask(caller, "POST", "/-/chunks/verify", body=DIGEST + bytes(32))
        assert (answer.status, answer.body) == (200, len(DATA).to_bytes(4, "big") + bytes(4))
        caller.backend.store.damaged.add(DIGEST)
        assert self.ask(caller, "POST", "/-/chunks/verify", body=DIGEST).body == b"\xff" * 4
        assert self.ask(caller, "POST", "/-/chunks/look", body=DIGEST).status == 204
        assert caller.backend.caretaker.asked == [DIGEST]
        for what, most in (
            ("verify", VERIFY_DIGESTS_MAX),
            ("verified", HAVE_DIGESTS_MAX),
            ("look", HAVE_DIGESTS_MAX),
        ):
            assert self.ask(self.make(), "GET", f"/-/chunks/{what}").headers["allow"] == "POST"
            too_many = self.ask(self.make(), "POST", f"/-/chunks/{what}", body=bytes(32) * (most + 1))
            assert too_many.status == 413
            assert self.ask(self.make(), "POST", f"/-/chunks/{what}", body=b"x").status == 400

    def test_absent(self) -> None:
        """A chunk that is not on this disk is 404."""
        for method in ("GET", "HEAD"):
            assert self.ask(self.make(), method, CHUNK).status == 404

    def test_have(self) -> None:
        """Four bytes for each digest say how long the chunk is that is here, 0 for none."""
        caller = self.make()
        caller.backend.store.chunks[DIGEST] = DATA
        answer = self.ask(caller, "POST", "/-/chunks/have", body=bytes(32) + DIGEST + bytes(32))
        assert (answer.status, answer.body) == (200, bytes(4) + len(DATA).to_bytes(4, "big") + bytes(4))
        assert self.ask(caller, "POST", "/-/chunks/have").body == b""

    def test_hold(self) -> None:
        """The same for whoever relies on it: the store is asked to keep what it answers for."""
        caller = self.make()
        caller.backend.store.chunks[DIGEST] = DATA
        answer = self.ask(caller, "POST", "/-/chunks/hold", body=bytes(32) + DIGEST)
        assert (answer.status, answer.body) == (200, bytes(4) + len(DATA).to_bytes(4, "big"))
        assert caller.backend.store.kept == [bytes(32), DIGEST]
        assert self.ask(caller, "POST", "/-/chunks/have", body=DIGEST).status == 200
        assert len(caller.backend.store.kept) == 2

    def test_keep(self) -> None:
        """Which chunks this server owns and keeps, by rows of that revision; it says so if its rows are older."""
        caller = self.make()
        caller.backend.store.chunks[DIGEST] = DATA
        answer = self.ask(caller, "POST", "/-/chunks/keep/7", body=bytes(32) + DIGEST)
        assert (answer.status, answer.body) == (200, bytes(4) + len(DATA).to_bytes(4, "big"))
        assert self.ask(caller, "POST", "/-/chunks/keep/8", body=DIGEST).text.startswith("busy ")
        assert self.ask(self.make(), "GET", "/-/chunks/keep/7").headers["allow"] == "POST"
        for bad in ("keep", "keep/", "keep/x", "keep/-1"):
            assert self.ask(self.make(), "POST", f"/-/chunks/{bad}", body=DIGEST).status == 400
        too_many = self.ask(self.make(), "POST", "/-/chunks/keep/7", body=bytes(32) * (KEEP_DIGESTS_MAX + 1))
        assert too_many.status == 413

    def test_have_limits(self) -> None:
        """Whole digests, and not too many of them."""
        caller = self.make()
        most = bytes(32 * HAVE_DIGESTS_MAX)
        for what in ("have", "hold"):
            assert self.ask(caller, "POST", f"/-/chunks/{what}", body=most).body == bytes(4 * HAVE_DIGESTS_MAX)
            assert self.ask(caller, "POST", f"/-/chunks/{what}", body=bytes(33)).status == 400
            assert self.ask(caller, "POST", f"/-/chunks/{what}", body=most + bytes(32)).status == 413
            assert self.ask(self.make(), "GET", f"/-/chunks/{what}").headers["allow"] == "POST"
            caller = self.make()
        caller.send(request("POST", "/-/chunks/have", "Transfer-Encoding: chunked", key=None, raw=True))
        caller.send(b"%x\r\n" % (len(most) + 1) + most + b"\0\r\n0\r\n\r\n")
        assert caller.answers()[0].status == 413

    def test_refused(self) -> None:
        """What is no chunk, and what cannot be done with one."""
        caller = self.make()
        for bad in ("x", DIGEST.hex().upper(), DIGEST.hex()[1:], DIGEST.hex() + "0", ""):
            assert self.ask(caller, "GET", f"/-/chunks/{bad}").status == 400
        assert self.ask(caller, "DELETE", CHUNK).headers["allow"] == "GET, HEAD, PUT"
        assert self.ask(caller, "GET", "/-/chunks/have").headers["allow"] == "POST"

    def test_not_serving(self) -> None:
        """A server that only starts takes and gives no chunks; one without a majority does."""
        for phase, status in (("starting", 503), ("leaving", 503), ("readonly", 204)):
            caller = self.make()
            caller.backend.state.change(phase)
            assert self.ask(caller, "PUT", CHUNK, body=DATA).status == status

    def test_peer_is_remembered(self) -> None:
        """A certificate is not checked anew for every chunk, but it is after a minute."""
        caller = self.make()
        self.ask(caller, "HEAD", CHUNK)
        caller.backend.peers.clear()
        assert self.ask(caller, "HEAD", CHUNK).status == 404
        caller.clock.advance(30)
        assert caller.one("GET", "/-/health").status == 200
        caller.clock.advance(31)
        assert self.ask(caller, "HEAD", CHUNK).status == 403

    def test_gone_while_storing(self) -> None:
        """A server that is gone while its chunk is written leaves nothing waiting."""
        caller = self.make()
        waits: Deferred[bytes] = Deferred()
        self.patch(MemoryStore, "put", lambda *arguments, **options: waits)
        caller.send(request("PUT", CHUNK, body=DATA, key=None))
        caller.hang_up()
        assert caller.link.value() == b"" and not caller.factory.connections


class MetricsTests(SynchronousTestCase):
    """`/-/metrics`, for Prometheus."""

    def test_metrics(self) -> None:
        """It takes a key that may read, and tells what was answered before."""
        assert Caller().one("GET", "/-/metrics", key=None).status == 401
        caller = Caller()
        caller.one("GET", "/home/none", key="reader")
        answer = caller.one("GET", "/-/metrics", key="reader")
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'chunkfarm_requests_total{operation="GET",outcome="404",port="files"} 1.0' in answer.text
        assert caller.one("PUT", "/-/metrics", key="admin").status == 405

    def test_words_of_strangers(self) -> None:
        """What anybody may write as a method is not remembered."""
        caller = Caller()
        caller.one("GET", "/-/metrics", key=None)
        caller.one("PROPFIND", "/home/a", key=None)
        told = caller.one("GET", "/-/metrics", key="reader").text
        assert 'operation="other"' in told and "PROPFIND" not in told
