r"""The client port: a line protocol for people, scripts, the `chunkfarm` command and other servers.

This text is the protocol; `chunkfarm.links.lines` is a client of it. docs/protocol.md tells the same with what
a stranger needs besides: the check of the certificate, an example, the other two ports.

Lines
=====

TCP, port 4100 by default. Text is UTF-8. A line ends with LF or CRLF (the server writes CRLF) and has at
most 16 KiB. Words are divided by spaces; capitals do not matter in a command's name. In a word, spaces,
quotation marks, percent signs and control characters are percent-encoded (`home/a%20b.txt`), and only they need
be. An empty line is nothing. The server is silent until spoken to.

Each command has one answer, in the order of the commands:

    OK ...                                          done
    ERR <code> <sentence>                           not done, and nothing was changed
    DATA <length> ..., then <length> raw bytes      (nothing after the bytes: the next answer follows)
    <WORD> <count> ..., <count> lines, END          a block

Fields are `name=word`, or `name="a sentence"` in which spaces stay. New fields may be added at the end of
any line; skip those you do not know. A client need not wait for an answer before it gives the next command
(*pipelining*): up to 64 are taken in, then the server stops reading for a while.

Codes: `syntax` (the request breaks these rules), `auth` (say AUTH, or the key is wrong), `denied` (not with this
key, or not unencrypted), `notfound`, `unknown` (no such command), `conflict`, `missing` (a COMMIT names chunks that
the farm does not hold in enough copies), `mismatch` (bytes are not what was announced, or chunks are not as long as
COMMIT says), `limit`, `full` (no room), `readonly` (no writes now), `busy` (again later), `waiting` (not serving yet,
or leaving), `later` (not in this version), `internal` (a fault of the server). After `readonly`, `busy` and `waiting`
try another server.

Getting in
==========

    HELLO               -> OK chunkfarm/1 farm=<id|-> name= state= server=<id> revision= chunksize=<bytes>
    HELP [command]      -> HELP <count>, lines, END
    QUIT                -> OK, and the link ends
    STARTTLS            -> OK, then the TLS handshake (1.2 or 1.3); the server sends the farm's CA in its chain
    PING                -> OK
    AUTH <key id> <secret>  -> OK role=read|write|admin

`state` is starting, founding, waiting, serving, readonly or leaving. In `waiting`, and only then, the OK line of
HELLO is followed by a block that says for what:

    WAIT <count>
    PEER <host>:<peer port> error="refused" since=<timestamp> tries=<n>
    CURE <sentence>
    END

A server that takes part in nothing any more, because the farm went on without it, says why in the field `because`.

Everything but HELLO, HELP, PING, QUIT and STARTTLS is answered `ERR waiting` unless the state is serving or
readonly; a server that is waiting and has the table itself answers AUTH, STATUS, HISTORY and TAKEOVER too. From another
machine an unencrypted link may say HELLO, HELP, QUIT and STARTTLS only (`ERR denied`). From the machine itself
(127.0.0.1, ::1) STARTTLS is not needed; AUTH is, for all that is below.

Send nothing between STARTTLS and its OK: bytes that come along with it end the link without a word. What AUTH
proved before STARTTLS counts no more after it. A wrong AUTH is answered a second later, always with the same
sentence; the third ends the link. A line that looks like HTTP ends the link at once.

A server that shows a certificate of this farm in the handshake needs no AUTH for SERVERS, for WATCH of `servers/`
and `farm/`, and for SET of its own row.

Servers
=======

    SERVERS             -> TABLE <count> revision=<n>, rows, END
    SERVER <id|name>    -> OK SERVER id=...
    WHO                 -> WHO <count>, rows, END
    HISTORY [since] [after] [limit] -> HISTORY <count> server= name= now=<timestamp> [more], rows, END
    STATUS              -> STATUS <count>, lines name=value, END
    SET <id|name|farm> <field>=<value> ...  -> OK SERVER id=... or OK FARM chunksize=...          (admin)
    TABLE <length>, the answer to SERVERS   -> OK changed=<n>                                     (admin)

A row of SERVERS, live servers first, oldest first:

    SERVER id= name= joined=<timestamp> seniority=<revision> host= client=<port> peer=<port> files=<port>
        state=up|down|leaving|draining role=first|master|server weight= zone= free=<bytes> used=<bytes> version=

(on one line), and of WHO, in the order in which servers succeed each other:

    rank=1 role=first|master|server id= name= state= because="the most senior live master"

HISTORY tells what this one server saw of who joined, led, left and came back (the others saw it too, or did not: ask
each), by its own clock, which now shows `now`:

    NOTE number=<n> at=<timestamp> kind= server=<id> name= [term=<n>] [mark=] [because="..."]

with greater numbers than `after`, not before the timestamp `since`; at most 1,000, and `more` says that others follow.
Servers that saw the same thing tell the same kind, server and mark. What has no mark, this server alone can know.

and, to empty a server so that it can be switched off:

    DRAIN                           -> DRAINS <count>, rows, END                                           (admin)
    DRAIN <id|name> [anyway|off]    -> OK and its row                                                      (admin)

    DRAIN name= id= state=draining chunks= left= bytes= rate= seconds= drained=yes|no paused="..."

It goes on serving, and its copies count while it is there. `left`, `bytes` and `seconds` are what is left. With
`drained=yes` nothing on it is needed any more: all its chunks were read whole on their new owners. `off` ends it. It is
`conflict` if no other server stores chunks, and, unless `anyway` is said, if they could not keep as many copies or
have no room.

To take a server out for good that is down:

    FORGET <id|name>                -> FORGET <count> may=yes|no [because="..."] ..., rows, END            (admin)
    FORGET <id|name> <farm name>    -> OK FORGET name= id=                                                 (admin)

The first only looks, and says what would be lost (nobody else who answers has it), and what would have too few copies:

    FORGET 1 may=yes name= id= state=down farm= done=yes|no files= chunks= lostfiles= lostchunks= lostbytes= shortfiles=
        shortchunks= shortbytes= [silent=<name>,<name>]
    LOST name=<file> chunks= bytes=
    END

With `done=no` not all files were looked at yet: ask again. The second removes its row, bars its id, and makes the join
key anew.

And, where most masters are lost for good:

    TAKEOVER                        -> TAKEOVER <count> may=yes|no [because="..."], rows, END              (admin)
    TAKEOVER <farm name>            -> TAKEOVER <count> line=<id>, rows, END                               (admin)

The first only looks; the second lets this server go on alone. `conflict` says what stands in the way: another name, a
first that commits, a longer journal elsewhere, or none here. Rows, of all servers in the table and in `config.ini`:

    SEEN name= address=<host>:<peer port> id= state= term=<n or -> index=<n or -> longest=yes|no here=yes|no
    MISSED name= address=<host>:<peer port> error="refused"

TABLE takes what SERVERS answered, from TABLE to END, with the fields that SET can set changed in any of its rows
(`master=yes|no`, which is not shown, may be added), and sets them all or none. It is `conflict` if a row has changed
since the revision in its first line. Every server has a row in it; any other difference is `syntax`.

Files
=====

A name is `bucket/path`, up to 1,024 bytes. Sizes are bytes; a timestamp is `2026-11-22T10:00:00.123Z`.

    LIST [prefix] [after] [limit]   -> FILES <count> revision=<n> [stale=<n>] [more], rows, END           (read)
    STAT <name>                     -> OK FILE name= ...                                                   (read)
    FETCH <name> [offset] [length]  -> DATA <length>, the bytes                                            (read)
    EXPLAIN <name> [from] [limit]   -> EXPLAIN <count> name= size= chunksize= chunks= wanted= revision=
                                                [stale=<n>] [more], rows, END                              (read)
    CHECK <name> [from] [limit] [quick] -> CHECK <count>, header and rows as those of EXPLAIN, END         (read)
    REMOVE <name>                   -> OK                                                                  (write)

`-` stands for a word left out. A row: `FILE name= size= modified= etag= type="..." chunksize= chunks= revision=`.
Names are in the order of their bytes. `more` says that others follow: ask again with the last name as `after`. A
LIST shows at most 1,000. `stale=<revision>` says that nobody who knows the last state answers, and that this is how
things were at that revision; a file that was not there then is `busy`, not `notfound`, for it may have come since. A
range must lie within the file. If bytes cannot be delivered after DATA was said, the link ends early: ask another
server for the rest, and compare the etag, which changes with the content: it is the first 32 hexadecimal digits of
SHA-256 over `<size> <chunk size> ` and the raw digests of the chunks in order.

EXPLAIN asks all servers which chunks of the file they hold; who does not answer counts as holding none. It shows
at most 1,000 chunks, from number `from` (0 is the first); `more` says that others follow. Rows:

    MANIFEST digest= copies=<n> holders=<id>,<id> verified=<time>,-    with chunk 0, for more than 128 digests
    CHUNK number= length= digest= copies=<n> holders=<id>,<id> verified=<time>,-
    HOLDER id= name= state= held=<chunks> only=<chunks> bytes=<bytes> verified=<time>

HOLDER rows come last, one for each server: how many of the chunks shown it holds, how many of them nobody else that
answered does, and how many bytes of the file are in those. `verified` tells for each holder when it last read its copy
whole and found it right, or wrote it, by its own clock; `-` if that is not known. For a server it is the oldest.

CHECK makes the holders read and compare their copies first (not if the fourth word is `quick`), 64 MiB of the file at
a time; each row ends with `damaged=<id>,<id>`, and damaged copies are put aside and count no more. `wanted` is no more
than there are servers that may own chunks. Instead of HOLDER rows there is `SILENT id= name= state= owns=yes|no` for
each server that is down or did not answer; while it owns chunks they are not copied elsewhere. What is found wrong is
repaired in any case.

REMOVE is not idempotent in its answer: the second one is `notfound`. If the link ends before the answer, the file
may or may not be gone.

Chunks
======

A file is written by storing its chunks, in any order, through any servers, and then committing a name:

    HAVE <digest> ...               -> HAVE <count>, rows CHUNK digest= copies=<n> holders=<id>,<id>, END  (read)
    PUT <digest> <length>, the bytes    -> OK <digest> copies=<n> holders=<id>,<id>                        (write)
    GET <digest> [offset] [length]  -> DATA <length>, the bytes                                            (read)
    COMMIT <name> <size> <chunk size> <length>, the raw 32-byte digests in order                           (write)
                                    -> OK name= size= chunks= copies= holders= etag= revision=

A digest is the SHA-256 of the chunk in hexadecimal. The writer chooses the chunk size, from 4 KiB to 64 MiB (HELLO
says the farm's own); every chunk but the last has exactly that size. `<length>` counts the bytes that follow the
line's LF; an empty file has 0 digests. COMMIT takes up to 32 MiB of digests, HAVE up to 240 of them.

The OK of a PUT says that the required copies are on disk; that of a COMMIT, that the file is there for good. PUT
may be repeated at will, over the same link or another: the same bytes are the same chunk. Chunks that were PUT or
that HAVE found stay for a day, so an upload that broke off goes on with what HAVE says. COMMIT may be repeated
too, as long as nobody else writes the same name in between: it sets the name to the same content again. A commit
replaces a file of that name as a whole. `copies` in the receipt is that of the worst chunk, and
`holders` names up to 100 of the servers that hold any of it.

The payload is always taken in, so an error (`mismatch` for a wrong digest, `denied`, ...) leaves the link
in step. The exceptions: a length that is no number, or beyond the limit, ends the link after its ERR, since the server
cannot know where the next command begins. PUT, HAVE and PING may run beside each other; every other command begins
when those before it are done, so a COMMIT behind its PUTs finds them stored.

Watching
========

    WATCH [prefix] [from]           -> OK revision=<n>, then EVENT lines until UNWATCH                     (read)
    UNWATCH                         -> OK (also if nothing was watched); no EVENT follows it

The prefix begins with `servers/`, `farm/` or `files/`; without one it is all three. The changes told are those with a
revision greater than `from`; without it, greater than the revision in the OK. If they are no longer kept, the answer is
`ERR conflict changes before revision <n> are no longer kept; ...`: read everything, then watch from the revision
that was read. One watch a link. Other commands may be given meanwhile: EVENT lines stand between answers, never
inside one. AUTH and STARTTLS end a watch.

    EVENT <revision> PUT SERVER id= ... [more=1] value=<the rest of the line>
    EVENT <revision> PUT FILE name= ... [more=1] value=<the rest of the line>
    EVENT <revision> PUT ROW key= [more=1] value=<the rest of the line>
    EVENT <revision> DEL SERVER id= [more=1]            or DEL FILE name=, or DEL ROW key=
    EVENT <revision> PART value=<the rest of the line>
    EVENT <revision> NONE

The row is as in SERVERS and LIST, or, under `farm/` and where this version does not understand a row, its key. `value`
is the row as it stands in the table, JSON as a rule; control characters, percent signs and bytes that are
no UTF-8 are percent-encoded, spaces and quotation marks are not. `more=1` says that the next event belongs to the same
transaction. A value too long for one line comes in PART lines, which go before the line with its end. NONE, at most
once a second, says that nothing else has happened up to that revision. Changes come in order, without a gap, each once.

A watch that cannot go on ends the link after an ERR line: `limit` if this watcher is too slow (a megabyte waits for
it), `conflict` as above, `waiting` if the server leaves, `busy` if it has lost its own place. Read and watch again.

Limits
======

A link that says nothing for ten minutes (one minute before AUTH) is closed, after an `ERR limit`, unless it watches
or waits for an answer. So is one that sends a payload slower than 1 KiB/s. A server takes 4,096 links, 512 from one
address; beyond that it says `ERR busy` and closes.
"""

from __future__ import annotations

from chunkfarm.ports.client.factory import ClientFactory

__all__ = ["ClientFactory"]
