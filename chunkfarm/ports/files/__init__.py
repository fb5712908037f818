"""The file port: HTTP/1.1 over TLS.

What it answers, which docs/protocol.md tells in more words. Names are percent-encoded UTF-8; `<bucket>` comes from
the names, no bucket is ever made.

    GET, HEAD  /<bucket>/<path>      the bytes of a file; Range (one range), If-Match, If-None-Match,
                                     If-Modified-Since, If-Unmodified-Since, If-Range        200 206 304 412 416
    PUT        /<bucket>/<path>      store it; Content-Type is kept, Expect: 100-continue is answered when the
                                     key, the name and the room are good; the body may be chunked; conditions
                                     as above; answers a receipt (JSON)                      201 200 412 507
    DELETE     /<bucket>/<path>      forget it; conditions as above                          204 404 412
    GET, HEAD  /, /<bucket>[/<prefix>/]
                                     a listing: JSON for `Accept: application/json` or `?format=json`, else a
                                     page for people. `?prefix=` narrows it, `?limit=` bounds it, `?after=`
                                     takes the `next` of the answer before, `?delimiter=/` folds folders (the
                                     page always does)                                       200
    GET, HEAD  /-/health             what this server does and waits for; no key needed      200 503
    GET, HEAD, PUT  /-/chunks/<digest>
    POST       /-/chunks/have        between servers only, known by their farm certificate; `have` takes raw
                                     digests one after the other and answers, for each, four bytes: the length of
                                     the chunk (big-endian), 0 if it is not there; `hold` is the same and keeps what it
                                     answers for; `keep`, `verify`, `verified` and `look` are told of in
                                     docs/protocol.md

A key stands in `Authorization`: Basic (key id and secret) or Bearer (`<key id>.<secret>`). Reading and
listing take the role read, PUT and DELETE the role write.

An error is one line of text, `<code> <sentence>`, with the codes of the line protocol. Until the server
serves, everything but `/-/health` answers 503 with the reason. If the bytes of an answer cannot be had in
the middle of it, the connection is reset: its Content-Length then tells the client that it was cut short.

PUT and DELETE may be repeated: a repeated PUT replaces the file by the same bytes, a repeated DELETE answers
404. Requests may be pipelined; they are answered one after the other. After an error in a head the
connection is closed, and so it is when an answer was given before the body of its request had come.

Nothing is kept between requests of a connection but who was asking, for at most a minute.
"""

from chunkfarm.ports.files.factory import FileFactory

__all__ = ["FileFactory"]
