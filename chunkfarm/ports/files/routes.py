"""Which answer a request gets: by its path, after looking at who asks and whether this server serves at all."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from chunkfarm import audit
from chunkfarm.errors import AuthenticationFailed, Denied, NotFound, ReadOnly, Waiting
from chunkfarm.metrics import CONTENT_TYPE
from chunkfarm.ports.backend import Backend
from chunkfarm.ports.files.answers import Answer, MethodNotAllowed
from chunkfarm.ports.files.chunks import Chunks
from chunkfarm.ports.files.health import health
from chunkfarm.ports.files.listing import Listings
from chunkfarm.ports.files.objects import Objects
from chunkfarm.ports.files.requests import Request
from chunkfarm.ports.files.uploads import Uploads
from chunkfarm.state import ServerState
from chunkfarm.trust.keys import KeyPair, split_bearer
from chunkfarm.wire.http1 import fields
from chunkfarm.wire.lines import quote

INTERNAL = "/-/"
CHUNKS = "/-/chunks/"


METRICS = fields(("Content-Type", CONTENT_TYPE), ("Cache-Control", "no-store"))


class Routes:
    """The file port without a transport: requests in, answers out. `now_ms` is the wall clock."""

    def __init__(
        self,
        backend: Backend,
        clock: IReactorTime,
        now_ms: Callable[[], int],
        met: Callable[[str], None],
        uploads: Uploads,
    ) -> None:
        """`met` is told of each address from which a server of this farm asks."""
        self._backend = backend
        self._met = met
        self._clock = clock
        self._objects = Objects(backend, now_ms, uploads)
        self._listings = Listings(backend)
        self._chunks = Chunks(backend)

    def answer(self, request: Request) -> Deferred[Answer]:
        """The answer to a request; fails with a `FarmError` that is to be told, or with a fault of ours."""
        return Deferred.fromCoroutine(self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        path, method = request.path, request.method
        if path.startswith(INTERNAL):
            return await self._internal(request)
        if method not in (b"GET", b"HEAD", b"PUT", b"DELETE"):
            raise MethodNotAllowed("files answer GET, HEAD, PUT and DELETE", "GET, HEAD, PUT, DELETE")
        check_serving(self._backend.state)
        reading = method in (b"GET", b"HEAD")
        await self._authorize(request, "read" if reading else "write")
        name = path[1:]
        if "/" not in name or name.endswith("/"):
            if not reading:
                raise MethodNotAllowed("this names no file but a listing, which answers GET and HEAD", "GET, HEAD")
            return await self._listings.get(request, name)
        if reading:
            return await self._objects.get(request, name)
        if self._backend.state.phase == "readonly":
            raise ReadOnly(self._backend.state.because("this server takes no writes now"))
        put = method == b"PUT"
        answer = await (self._objects.put if put else self._objects.delete)(request, name)
        audit.files(request.principal, request.session.address, f"{'PUT' if put else 'DELETE'} {quote(name)}")
        return answer

    async def _internal(self, request: Request) -> Answer:
        path, method = request.path, request.method
        if path == "/-/health":
            if method not in (b"GET", b"HEAD"):
                raise MethodNotAllowed("health answers GET and HEAD", "GET, HEAD")
            return health(self._backend.state)
        check_serving(self._backend.state)
        if path == "/-/metrics":
            if method not in (b"GET", b"HEAD"):
                raise MethodNotAllowed("metrics answer GET and HEAD", "GET, HEAD")
            await self._authorize(request, "read")
            return Answer(200, METRICS, self._backend.metrics.text(await self._backend.status()))
        if path.startswith(CHUNKS):
            peer = request.session.peer(self._backend.peer_of, self._clock.seconds())
            if peer is None:
                raise Denied("chunks are for servers of this farm, which show their certificate")
            if refused := self._backend.barred(peer):
                raise Denied(refused)
            self._met(request.session.address)
            return await self._chunks.answer(request, path[len(CHUNKS) :])
        raise NotFound("there is nothing here")

    async def _authorize(self, request: Request, role: str) -> None:
        """Raise `AuthenticationFailed` or `Denied` unless the request's key is good for `role`."""
        value = request.headers.get(b"authorization")
        if value is None:
            raise AuthenticationFailed("this takes a key: its id as the user name, its secret as the password")
        session, now, revision = request.session, self._clock.seconds(), self._backend.keys_revision
        principal = session.principal(value, now, revision)
        if principal is None:
            try:
                key = credentials(value)
                principal = await self._backend.authenticate(key.id, key.secret)
            except AuthenticationFailed:
                if (pause := self._backend.failed_attempt(session.address)) > 0:
                    await deferLater(self._clock, pause)
                raise
            session.remember(value, principal, now, revision)
        if not principal.may(role):
            raise Denied(f"the key {principal.id} has the role {principal.role}; this takes {role}")
        request.principal = principal


def credentials(value: bytes) -> KeyPair:
    """The key in an Authorization header; raises `AuthenticationFailed`."""
    scheme, _, rest = value.partition(b" ")
    kind = scheme.lower()
    try:
        if kind == b"bearer":
            return split_bearer(rest.strip().decode("ascii"))
        if kind == b"basic":
            key_id, colon, secret = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
            if colon:
                return KeyPair(key_id, secret)
    except (UnicodeDecodeError, binascii.Error):
        raise AuthenticationFailed("the Authorization header is malformed") from None
    raise AuthenticationFailed("the Authorization header is neither Basic nor Bearer")


def check_serving(state: ServerState) -> None:
    """Raise `Waiting` or `ReadOnly` with the reason unless this server serves reads."""
    if state.phase in ("serving", "readonly"):
        return
    if state.phase == "leaving":
        raise ReadOnly("this server is leaving; ask another one")
    raise Waiting(state.because(f"this server is {state.phase}"))
