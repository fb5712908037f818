"""Files over HTTP: GET, HEAD, PUT and DELETE, with keys, ranges and conditions."""

from __future__ import annotations

import base64
from typing import Any
from unittest.mock import patch

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.errors import Full, ReadOnly
from chunkfarm.model import Address
from chunkfarm.state import Wait
from chunkfarm.wire.http1 import CHUNKS_AT_ONCE
from chunkfarm.wire.http1_rules import format_date
from tests.ports.fakes import NOW, OTHER_ID, SERVER_ID
from tests.ports.files_caller import Caller, basic, request

DATE = format_date(NOW // 1000)
CONTENT = bytes(range(256)) * 40


class ReadTests(SynchronousTestCase):
    """GET and HEAD of a file of 10,240 bytes."""

    def make(self) -> Caller:
        caller = Caller()
        self.file = caller.backend.catalog.add("home/a.bin", CONTENT, "text/plain")
        return caller

    def test_get(self) -> None:
        """GET gives the bytes, and says what they are."""
        answer = self.make().one("GET", "/home/a.bin", key="reader")
        assert (answer.status, answer.body) == (200, CONTENT)
        assert answer.headers == {
            "server": "chunkfarm",
            "date": DATE,
            "etag": f'"{self.file.etag}"',
            "last-modified": DATE,
            "content-type": "text/plain",
            "accept-ranges": "bytes",
            "x-content-type-options": "nosniff",
            "content-length": "10240",
        }

    def test_head(self) -> None:
        """HEAD gives the same head without the bytes, whatever Range says, and reads none."""
        caller = self.make()
        expected = caller.one("GET", "/home/a.bin").headers
        caller.backend.catalog.sources.clear()
        answer = caller.one("HEAD", "/home/a.bin", "Range: bytes=0-1")
        assert (answer.status, answer.headers) == (200, expected)
        assert not caller.backend.catalog.sources

    def test_names(self) -> None:
        """Any name that may be stored can be asked for."""
        caller = self.make()
        caller.backend.catalog.add("home/a b/ä?#+%", b"x")
        assert caller.one("GET", "/home/a%20b/%C3%A4%3F%23+%25").body == b"x"
        assert caller.one("GET", "https://farm/home/a.bin?version=1").status == 200

    def test_bad_names(self) -> None:
        """A path that can be no name is refused with a sentence, and the connection goes on."""
        caller = self.make()
        for target in ("/-x/a", "/home//a", "/home/a%C2%85", "/ho me/a".replace(" ", "%20"), "/home/" + "x" * 1025):
            answer = caller.one("GET", target)
            assert answer.status == 400 and answer.text.startswith("syntax "), target
        assert caller.open

    def test_absent(self) -> None:
        """A file that is not there is 404."""
        answer = self.make().one("GET", "/home/b.bin")
        assert (answer.status, answer.text) == (404, "notfound there is no file 'home/b.bin'\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"

    def test_empty(self) -> None:
        """An empty file has an empty body."""
        caller = self.make()
        caller.backend.catalog.add("home/empty", b"")
        answer = caller.one("GET", "/home/empty", "Range: bytes=-5")
        assert (answer.status, answer.body) == (200, b"")
        assert caller.one("GET", "/home/empty", "Range: bytes=0-").headers["content-range"] == "bytes */0"

    def test_range(self) -> None:
        """One range is answered with that part."""
        caller = self.make()
        for value, start, end in (
            ("0-0", 0, 1),
            ("100-199", 100, 200),
            ("10000-", 10000, 10240),
            ("-40", 10200, 10240),
        ):
            answer = caller.one("GET", "/home/a.bin", f"Range: bytes={value}")
            assert (answer.status, answer.body) == (206, CONTENT[start:end])
            assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10240"
        assert caller.one("GET", "/home/a.bin", "Range: bytes=-99999").body == CONTENT

    def test_range_behind_the_end(self) -> None:
        """A range behind the end is 416, with the size."""
        answer = self.make().one("GET", "/home/a.bin", "Range: bytes=10240-")
        assert (answer.status, answer.headers["content-range"]) == (416, "bytes */10240")

    def test_many_ranges(self) -> None:
        """Several ranges are not answered with many small parts but with the whole."""
        answer = self.make().one("GET", "/home/a.bin", "Range: bytes=" + ",".join(["0-9"] * 1000))
        assert (answer.status, answer.body) == (200, CONTENT)

    def test_if_range(self) -> None:
        """A part is only sent of the version that the client has."""
        caller = self.make()
        answer = caller.one("GET", "/home/a.bin", "Range: bytes=0-1", f'If-Range: "{self.file.etag}"')
        assert answer.status == 206
        for other in ('"other"', DATE):
            assert caller.one("GET", "/home/a.bin", "Range: bytes=0-1", f"If-Range: {other}").status == 200

    def test_conditions(self) -> None:
        """A client that has the file is spared it; one that wants another version is told."""
        caller = self.make()
        answer = caller.one("GET", "/home/a.bin", f'If-None-Match: "{self.file.etag}"')
        assert (answer.status, answer.headers["etag"]) == (304, f'"{self.file.etag}"')
        assert caller.one("GET", "/home/a.bin", f"If-Modified-Since: {DATE}").status == 304
        assert caller.one("GET", "/home/a.bin", 'If-Match: "other"').status == 412
        assert caller.one("HEAD", "/home/a.bin", 'If-None-Match: "other"').status == 200
        assert caller.one("GET", "/home/a.bin", "If-None-Match: unquoted").status == 400

    def test_stored_page_cannot_act(self) -> None:
        """A page or picture with scripts that somebody stored runs without the key of whoever looks at it."""
        caller = self.make()
        for kind, sandboxed in (
            ("text/html", True),
            ("TEXT/HTML;charset=utf-8", True),
            ("image/svg+xml; a=b", True),
            ("application/xhtml+xml", True),
            ("text/xml", True),
            # XML by another name to some browsers, and pages one behind the other to others.
            ("text/xsl", True),
            ("multipart/x-mixed-replace; boundary=a", True),
            ("image/png", False),
            ("application/pdf", False),
        ):
            caller.backend.catalog.add("home/page", b"x", kind)
            answer = caller.one("GET", "/home/page")
            assert (answer.headers.get("content-security-policy") == "sandbox") is sandboxed, kind
            assert answer.headers["content-type"] == kind

    def test_odd_content_type(self) -> None:
        """A stored type that could break a header is not sent."""
        caller = self.make()
        caller.backend.catalog.add("home/odd", b"x", "a/b\r\nSet-Cookie: x")
        assert caller.one("GET", "/home/odd").headers["content-type"] == "application/octet-stream"

    def test_stale(self) -> None:
        """Without a majority the last known state is served, and the answer says so."""
        caller = self.make()
        caller.backend.catalog.stale = 17
        assert caller.one("GET", "/home/a.bin").headers["warning"] == '110 chunkfarm "as of revision 17"'

    def test_large(self) -> None:
        """A file of many pieces arrives whole."""
        caller = self.make()
        data = CONTENT * 100
        caller.backend.catalog.add("home/large", data, chunk_size=1 << 20)
        caller.send(request("GET", "/home/large"))
        (answer,) = caller.answers()
        assert answer.body == data and caller.backend.catalog.sources[-1].closed

    def test_slow_client(self) -> None:
        """While the client takes nothing, the file is not read on; afterwards all of it arrives."""
        caller = self.make()
        data = CONTENT * 100
        caller.backend.catalog.add("home/large", data)
        link: Any = caller.link
        link.write = pausing(caller, 2)
        caller.send(request("GET", "/home/large"))
        got = len(caller.link.value())
        assert got < 3 * 65536 and not caller.backend.catalog.sources[0].closed
        del link.write
        link.producer.resumeProducing()
        assert caller.answers()[0].body == data

    def test_bytes_fail_in_the_middle(self) -> None:
        """If nobody has the rest of the bytes, the client sees a cut connection, never an end that looks right."""
        caller = self.make()
        caller.backend.catalog.add("home/large", CONTENT * 100)
        caller.backend.catalog.fails_at = 200_000
        caller.send(request("GET", "/home/large"))
        head, _, body = caller.link.value().partition(b"\r\n\r\n")
        assert b"Content-Length: 1024000" in head and body == (CONTENT * 100)[:200_000]
        assert caller.link.aborted and caller.backend.catalog.sources[0].closed

    def test_bytes_fail_at_once(self) -> None:
        """If not even the first byte can be had, the answer says why."""
        caller = self.make()
        caller.backend.catalog.fails_at = 0
        answer = caller.one("GET", "/home/a.bin")
        assert (answer.status, answer.text) == (404, "notfound no holder of the chunk answers\n")
        assert caller.open

    def test_too_few_bytes(self) -> None:
        """A source that ends early resets the connection, and is logged as a fault."""
        caller = self.make()
        caller.backend.catalog.files["home/a.bin"] = evolve(self.file, size=20_000)
        caller.backend.catalog.piece = 1000
        caller.send(request("GET", "/home/a.bin"))
        assert caller.link.aborted
        assert len(self.flushLoggedErrors()) == 1

    def test_client_goes_away(self) -> None:
        """When the client is gone, the file is closed."""
        caller = self.make()
        caller.backend.catalog.add("home/large", CONTENT * 100)
        link: Any = caller.link
        link.write = pausing(caller, 2)
        caller.send(request("GET", "/home/large"))
        caller.hang_up()
        assert caller.backend.catalog.sources[0].closed and not caller.factory.connections

    def test_client_goes_away_before_the_answer(self) -> None:
        """When the client is gone before there is an answer, nothing is sent and nothing is left."""
        caller = self.make()
        waits: Deferred[None] = Deferred()
        caller.backend.catalog.waits = waits
        caller.send(request("GET", "/home/a.bin"))
        caller.hang_up()
        waits.callback(None)
        assert caller.link.value() == b""


def pausing(caller: Caller, after: int) -> object:
    """A `write` that tells the producer to pause, as a full transport does, once it was called `after` times."""
    count = 0

    def write(data: bytes) -> None:
        nonlocal count
        count += 1
        type(caller.link).write(caller.link, data)
        if count > after and caller.link.producer is not None:
            caller.link.producer.pauseProducing()

    return write


class WriteTests(SynchronousTestCase):
    """PUT and DELETE."""

    def make(self) -> Caller:
        return Caller()

    def test_put(self) -> None:
        """A new file is 201 and a receipt; one that was there is 200."""
        caller = self.make()
        answer = caller.one("PUT", "/home/a.bin", "Content-Type: image/png", body=CONTENT, key="writer")
        file = caller.backend.catalog.files["home/a.bin"]
        assert answer.status == 201 and answer.headers["etag"] == f'"{file.etag}"'
        assert answer.json == {
            "name": "home/a.bin",
            "size": 10240,
            "etag": file.etag,
            "copies": 2,
            "holders": [SERVER_ID, OTHER_ID],
        }
        assert caller.backend.catalog.content("home/a.bin") == CONTENT and file.content_type == "image/png"
        assert caller.one("PUT", "/home/a.bin", body=b"new").status == 200
        assert caller.backend.catalog.content("home/a.bin") == b"new"

    def test_pieces(self) -> None:
        """It does not matter how the bytes of a body come."""
        caller = self.make()
        data = request("PUT", "/home/a.bin", body=CONTENT)
        for start in range(0, len(data), 777):
            caller.send(data[start : start + 777])
        assert caller.answers()[0].status == 201
        assert caller.backend.catalog.content("home/a.bin") == CONTENT

    def test_chunked(self) -> None:
        """A client that does not know the length yet sends chunks."""
        caller = self.make()
        caller.send(request("PUT", "/home/a.bin", "Transfer-Encoding: chunked", raw=True))
        caller.send(b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n")
        assert caller.answers()[0].status == 201
        assert caller.backend.catalog.content("home/a.bin") == b"abcde"

    def test_very_many_chunks_at_once(self) -> None:
        """A body of a chunk a byte is taken a part in each turn of the reactor, so that others have theirs."""
        caller = self.make()
        content = bytes(number % 251 for number in range(5 * CHUNKS_AT_ONCE))
        encoded = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
        caller.send(request("PUT", "/home/a.bin", "Transfer-Encoding: chunked", raw=True), encoded)
        assert len(caller.protocol._input) - caller.protocol._offset > len(encoded) - 7 * CHUNKS_AT_ONCE
        assert caller.link.producerState == "paused", "no more is read meanwhile"
        with patch.object(caller.clock, "callLater", wraps=caller.clock.callLater) as later:
            caller.clock.advance(0)
        assert later.call_count >= 4
        assert caller.answers()[0].status == 201
        assert caller.backend.catalog.content("home/a.bin") == content
        caller.send(request("PUT", "/home/a.bin", "Transfer-Encoding: chunked", raw=True), encoded)
        caller.protocol.connectionLost()
        assert not [call for call in caller.clock.getDelayedCalls() if call.getTime() == caller.clock.seconds()]

    def test_malformed_chunks(self) -> None:
        """A malformed chunk ends the upload and the connection; nothing is stored."""
        caller = self.make()
        caller.send(request("PUT", "/home/a.bin", "Transfer-Encoding: chunked", raw=True), b"3\r\nabcd\r\n")
        (answer,) = caller.answers()
        assert answer.status == 400 and answer.headers["connection"] == "close" and not caller.open
        assert caller.backend.catalog.uploads[0].aborted and not caller.backend.catalog.files

    def test_empty(self) -> None:
        """An empty file can be stored, but not by leaving the length out."""
        caller = self.make()
        assert caller.one("PUT", "/home/empty").status == 201
        assert caller.backend.catalog.files["home/empty"].size == 0
        assert caller.one("PUT", "/home/other", raw=True).status == 411

    def test_content_type(self) -> None:
        """Without a type the name's ending gives it; what is no type is refused."""
        caller = self.make()
        for name, expected in (("a.png", "image/png"), ("a", "application/octet-stream"), ("a.html", "text/html")):
            caller.one("PUT", f"/home/{name}", body=b"x")
            assert caller.backend.catalog.files[f"home/{name}"].content_type == expected
        caller.one("PUT", "/home/a", 'Content-Type: text/plain; charset="utf-8"', body=b"x")
        assert caller.backend.catalog.files["home/a"].content_type == 'text/plain; charset="utf-8"'
        for bad in ("nothing", "a/b/c", "a/ä", "a/" + "b" * 255):
            assert Caller().one("PUT", "/home/a", f"Content-Type: {bad}", body=b"x").status == 400, bad

    def test_not_kept(self) -> None:
        """What would be lost or misread is refused: a part of a file, an encoding."""
        caller = self.make()
        assert caller.one("PUT", "/home/a", "Content-Range: bytes 0-1/9", body=b"xy").status == 400
        assert caller.one("PUT", "/home/a", "Content-Encoding: gzip", body=b"xy").status == 501
        assert caller.one("PUT", "/home/a", "Content-Encoding: identity", body=b"xy").status == 201

    def test_expect(self) -> None:
        """A client that asks first is told to go on once everything is known to be good."""
        caller = self.make()
        caller.send(request("PUT", "/home/a", "Expect: 100-continue", "Content-Length: 3", raw=True))
        assert [answer.status for answer in caller.answers()] == [100]
        caller.send(b"abc")
        assert [answer.status for answer in caller.answers()] == [201]
        assert caller.open

    def test_expect_not_waited_for(self) -> None:
        """A client that asks and does not wait for the answer gets none but the last."""
        caller = self.make()
        caller.send(request("PUT", "/home/a", "Expect: 100-continue", body=b"abc"))
        assert [answer.status for answer in caller.answers()] == [201]

    def test_expect_refused(self) -> None:
        """A client that asks first is told no before it sends a byte, and the connection ends."""
        for lines, target, key, status in (
            ((), "/home/a", "reader", 403),
            ((), "/home/a", None, 401),
            ((), "/home//a", "writer", 400),
            (('If-Match: "x"',), "/home/a", "writer", 412),
            (("Content-Range: bytes 0-2/3",), "/home/a", "writer", 400),
        ):
            caller = self.make()
            expect = "Expect: 100-continue"
            caller.send(request("PUT", target, expect, "Content-Length: 3", *lines, raw=True, key=key))
            (answer,) = caller.answers()
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert not caller.open and not caller.backend.catalog.uploads

    def test_no_room(self) -> None:
        """When no server takes chunks any more, an upload is refused before it starts."""
        caller = self.make()
        caller.backend.rows = [evolve(row, full=True) for row in caller.backend.rows]
        caller.send(request("PUT", "/home/a", "Expect: 100-continue", "Content-Length: 3", raw=True))
        (answer,) = caller.answers()
        assert answer.status == 507 and answer.text.startswith("full ")

    def test_store_fails(self) -> None:
        """A server that runs full in the middle says so, and nothing is committed."""
        caller = self.make()
        caller.send(request("PUT", "/home/a", "Content-Length: 6", raw=True), b"abc")
        caller.backend.catalog.uploads[0].error = Full("no server has room")
        caller.send(b"def")
        (answer,) = caller.answers()
        assert answer.status == 507 and caller.backend.catalog.uploads[0].aborted
        assert caller.open and not caller.backend.catalog.files

    def test_store_fails_early(self) -> None:
        """When the upload has failed, the client is told so before it sends the rest."""
        caller = self.make()
        caller.send(request("PUT", "/home/a", "Content-Length: 1000000", raw=True), b"abc")
        caller.backend.catalog.uploads[0].failure = Failure(Full("no server has room"))
        caller.send(b"def")
        (answer,) = caller.answers()
        assert (answer.status, answer.headers["connection"]) == (507, "close") and not caller.open
        assert caller.backend.catalog.uploads[0].written == [3] and caller.backend.catalog.uploads[0].aborted

    def test_back_pressure(self) -> None:
        """While the disks are busy, no more is read from the client."""
        caller = self.make()
        caller.send(request("PUT", "/home/a", "Content-Length: 9", raw=True), b"abc")
        upload = caller.backend.catalog.uploads[0]
        upload.on_pause()
        assert not caller.reading
        caller.send(b"def")
        assert upload.written == [3]
        upload.on_resume()
        assert caller.reading and upload.written == [3, 3]
        caller.send(b"ghi")
        assert caller.answers()[0].status == 201 and caller.backend.catalog.content("home/a") == b"abcdefghi"

    def test_body_before_it_is_wanted(self) -> None:
        """A body that came with its head waits, and nothing more is read, until it is known to be acceptable."""
        caller = self.make()
        waits: Deferred[None] = Deferred()
        caller.backend.catalog.waits = waits
        caller.send(request("PUT", "/home/a", "If-None-Match: *", body=b"abc"))
        assert not caller.reading and not caller.backend.catalog.uploads
        caller.backend.catalog.waits = None
        waits.callback(None)
        assert caller.answers()[0].status == 201 and caller.reading

    def test_client_goes_away(self) -> None:
        """An upload whose client is gone is given up."""
        caller = self.make()
        caller.send(request("PUT", "/home/a", "Content-Length: 9", raw=True), b"abc")
        caller.hang_up()
        assert caller.backend.catalog.uploads[0].aborted and not caller.backend.catalog.files

    def test_conditions(self) -> None:
        """A PUT may ask that nothing is there, or that this version is."""
        caller = self.make()
        assert caller.one("PUT", "/home/a", "If-None-Match: *", body=b"1").status == 201
        assert caller.one("PUT", "/home/a", "If-None-Match: *", body=b"2").status == 412
        etag = caller.backend.catalog.files["home/a"].etag
        assert caller.one("PUT", "/home/a", 'If-Match: "x"', body=b"3").status == 412
        assert caller.one("PUT", "/home/a", f'If-Match: "{etag}"', body=b"4").status == 200
        old = format_date(NOW // 1000 - 1)
        assert caller.one("PUT", "/home/a", f"If-Unmodified-Since: {old}", body=b"5").status == 412
        assert caller.one("PUT", "/home/a", f"If-Unmodified-Since: {DATE}", body=b"6").status == 200
        assert caller.backend.catalog.content("home/a") == b"6"

    def test_condition_held_to_the_end(self) -> None:
        """A file that changes during the upload is not overwritten by a conditional PUT."""
        for line in ("If-None-Match: *", f"If-Unmodified-Since: {DATE}"):
            caller = self.make()
            if "None" not in line:
                caller.backend.catalog.add("home/a", b"old")
            caller.send(request("PUT", "/home/a", line, "Content-Length: 4", raw=True), b"ab")
            caller.backend.catalog.add("home/a", b"somebody else's")
            caller.send(b"cd")
            assert caller.answers()[0].status == 412
            assert caller.backend.catalog.content("home/a") == b"somebody else's"

    def test_delete(self) -> None:
        """DELETE is 204, and 404 when there is nothing to forget."""
        caller = self.make()
        caller.backend.catalog.add("home/a", b"x")
        assert caller.one("DELETE", "/home/a").status == 204
        assert caller.one("DELETE", "/home/a").status == 404

    def test_conditional_delete(self) -> None:
        """DELETE may ask that this version is there."""
        caller = self.make()
        etag = caller.backend.catalog.add("home/a", b"x").etag
        assert caller.one("DELETE", "/home/a", 'If-Match: "x"').status == 412
        assert caller.one("DELETE", "/home/a", f'If-Match: "{etag}"').status == 204
        assert ("remove", "home/a", (etag,)) in caller.backend.catalog.calls

    def test_no_majority(self) -> None:
        """Without a majority a write is 503, with a time to come back."""
        caller = self.make()
        caller.backend.catalog.error = ReadOnly("no majority of the masters answers")
        answer = caller.one("DELETE", "/home/a")
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.text == "readonly no majority of the masters answers\n"

    def test_other_methods(self) -> None:
        """Other methods are 405, and the answer says which there are."""
        caller = self.make()
        for method in ("POST", "OPTIONS", "PATCH", "PROPFIND"):
            answer = caller.one(method, "/home/a")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, PUT, DELETE")
        for target in ("/", "/home", "/home/", "/home/a/"):
            answer = caller.one("PUT", target, body=b"x")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


class KeyTests(SynchronousTestCase):
    """Who may do what."""

    def make(self) -> Caller:
        caller = Caller()
        caller.backend.catalog.add("home/a", b"x")
        return caller

    def test_no_key(self) -> None:
        """Without a key there is only the question for one."""
        for method, target in (("GET", "/home/a"), ("GET", "/"), ("PUT", "/home/a"), ("DELETE", "/home/b")):
            answer = self.make().one(method, target, key=None)
            assert answer.status == 401 and answer.text.startswith("auth ")
            assert answer.headers["www-authenticate"] == 'Basic realm="chunkfarm", Bearer'

    def test_roles(self) -> None:
        """A reader reads, a writer also writes."""
        for key, method, status in (
            ("reader", "GET", 200),
            ("reader", "HEAD", 200),
            ("reader", "DELETE", 403),
            ("reader", "PUT", 403),
            ("writer", "PUT", 200),
            ("writer", "GET", 200),
            ("admin", "DELETE", 204),
        ):
            assert self.make().one(method, "/home/a", key=key).status == status, (key, method)

    def test_bearer(self) -> None:
        """A key may also come as a bearer token."""
        assert self.make().one("GET", "/home/a", "Authorization: Bearer reader.secret", key=None).status == 200
        assert self.make().one("GET", "/home/a", "Authorization: bearer reader.wrong", key=None).status == 401

    def test_bad_credentials(self) -> None:
        """Whatever is wrong with a key, the answer is 401."""
        colon = base64.b64encode(b"readersecret").decode()
        for value in (
            basic("reader", "wrong")[15:],
            basic("nobody")[15:],
            "Basic",
            "Basic !!!",
            f"Basic {colon}",
            "Basic " + base64.b64encode(b"\xff:\xff").decode(),
            "Bearer",
            "Bearer x",
            "Digest x",
            "\xff",
        ):
            assert self.make().one("GET", "/home/a", f"Authorization: {value}", key=None).status == 401, value

    def test_bad_credentials_wait(self) -> None:
        """A key that is none, whatever is wrong with it, is counted and answered after the pause."""
        for value in ("Basic !!!", "Basic", "Bearer x", "Digest x", basic("nobody")[15:]):
            caller = self.make()
            caller.backend.pause = 1.0
            assert caller.ask("GET", "/home/a", f"Authorization: {value}", key=None) == [], value
            assert caller.backend.failed == ["10.0.0.9"]
            caller.clock.advance(1)
            assert [answer.status for answer in caller.answers()] == [401]
        caller = self.make()
        caller.backend.pause = 1.0
        assert caller.one("GET", "/home/a", key=None).status == 401 and caller.backend.failed == []

    def test_remembered(self) -> None:
        """The same key on the same connection is not asked for again for a minute; another one is."""
        caller = self.make()
        for _ in range(3):
            caller.one("GET", "/home/a", key="reader")
        assert caller.backend.authentications == ["reader"]
        assert caller.one("GET", "/home/a", basic("reader", "wrong"), key=None).status == 401
        caller.one("GET", "/home/a", key="writer")
        assert caller.backend.authentications == ["reader", "reader", "writer"]
        caller.clock.advance(59)
        caller.one("GET", "/home/a", key="writer")
        assert len(caller.backend.authentications) == 3
        caller.clock.advance(2)
        caller.one("GET", "/home/a", key="writer")
        assert len(caller.backend.authentications) == 4

    def test_role_still_counts(self) -> None:
        """A remembered reader is still no writer."""
        caller = self.make()
        assert caller.one("GET", "/home/a", key="reader").status == 200
        assert caller.one("DELETE", "/home/a", key="reader").status == 403


class PhaseTests(SynchronousTestCase):
    """What is answered while the server does not serve."""

    def make(self, phase: str) -> Caller:
        caller = Caller()
        caller.backend.catalog.add("home/a", b"x")
        waits = (Wait(Address("10.0.0.3", 4101), "refused", NOW, 4),) if phase == "waiting" else ()
        caller.backend.state.change(phase, waits=waits)
        return caller

    def test_not_serving(self) -> None:
        """A server that is not ready says what it waits for, and when to come back; it looks at no key."""
        for phase in ("starting", "founding", "waiting"):
            caller = self.make(phase)
            answer = caller.one("GET", "/home/a", key=None)
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert answer.text.startswith(f"waiting this server is {phase}")
        assert "it waits for 10.0.0.3:4101 (refused)" in answer.text

    def test_leaving(self) -> None:
        """A server that leaves sends its clients to another one."""
        assert self.make("leaving").one("GET", "/home/a").text.startswith("readonly this server is leaving")

    def test_readonly(self) -> None:
        """A server without a majority still reads, and refuses writes before their bytes come."""
        caller = self.make("readonly")
        assert caller.one("GET", "/home/a").status == 200
        assert caller.one("DELETE", "/home/a").status == 503
        caller.send(request("PUT", "/home/b", "Expect: 100-continue", "Content-Length: 3", raw=True))
        assert [answer.status for answer in caller.answers()] == [503]

    def test_readonly_says_the_cure(self) -> None:
        """The refusal names whom the server misses, and what a person can do."""
        caller = self.make("readonly")
        wait = Wait(Address("10.0.0.3", 4101), "refused", 0, 1)
        caller.backend.state.change("readonly", waits=(wait,), cures=("start it again", "add one"))
        told = caller.one("DELETE", "/home/a").text
        assert "it waits for 10.0.0.3:4101 (refused). Cure: start it again, or add one" in told
