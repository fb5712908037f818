"""What the ports need of a server, as one typed protocol: tests give a small fake, `farm` the real thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from chunkfarm.membership import Standing
from chunkfarm.metrics import Metrics
from chunkfarm.model import Drain, FarmOptions, Principal, Server
from chunkfarm.state import ServerState
from chunkfarm.table.interface import ITable

if TYPE_CHECKING:
    from chunkfarm.by_hand import Outlook
    from chunkfarm.catalog import Catalog
    from chunkfarm.chronicle import Chronicle
    from chunkfarm.chunks.caretaker import Caretaker
    from chunkfarm.chunks.store import ChunkStore
    from chunkfarm.chunks.transfer import Transfer
    from chunkfarm.exports.maker import Progress
    from chunkfarm.forgetting import ForgetOutlook
    from chunkfarm.keyring import Keyring
    from chunkfarm.rotation import Authorities


class Backend(Protocol):
    """The parts of a server behind its ports. Until the state is `serving`, only `state` may be touched."""

    @property
    def state(self) -> ServerState: ...

    @property
    def table(self) -> ITable: ...

    @property
    def holds_table(self) -> bool:
        """Whether the rows are here, so that other servers may watch them, and admins be known while nobody leads."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def store(self) -> ChunkStore: ...

    @property
    def transfer(self) -> Transfer: ...

    @property
    def caretaker(self) -> Caretaker: ...

    def keep(self, digests: Sequence[bytes], revision: int) -> Deferred[Sequence[int]]:
        """Which of these chunks this server owns, has and keeps; see `chunks.keeping`."""

    def servers(self) -> tuple[Server, ...]:
        """The server table as this server knows it: live ones first, oldest first."""

    def options(self) -> FarmOptions:
        """The farm's options as this server knows them."""

    def succession(self) -> tuple[Standing, ...]:
        """The line of succession, and why."""

    def authenticate(self, key_id: str, secret: str) -> Deferred[Principal]:
        """Fails with `AuthenticationFailed`, or `Waiting` when nobody who holds keys can be asked."""

    @property
    def chronicle(self) -> Chronicle: ...

    @property
    def now(self) -> int:
        """This server's wall clock, ms since 1970."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def keyring(self) -> Keyring: ...

    def invite(self, seconds: float) -> Deferred[tuple[str, int]]:
        """A code with which one server may join, good for so long, and when it runs out (ms)."""

    @property
    def keys_revision(self) -> int:
        """Of the last change of any key that this server knows of."""

    def confirm(self, key_id: str, proof: bytes) -> Deferred[Principal]:
        """As `authenticate`, with the SHA-256 of the secret."""

    def failed_attempt(self, address: str) -> float:
        """Somebody there showed a wrong key; seconds to wait before that is answered."""

    def is_master(self, server_id: str) -> bool:
        """Whether that server is one of the masters now."""

    def look_at_takeover(self) -> Deferred[Outlook]:
        """Who was found with which journal, and whether this server may take over; changes nothing."""

    def take_over(self, farm_name: str) -> Deferred[Outlook]:
        """Go on with this server alone; fails with `PreconditionFailed` if it must not, or the name is wrong."""

    def drain(self, server: str, anyway: bool) -> Deferred[Server]:
        """Empty a server, by id or name; fails with `NotFound`, or `PreconditionFailed` if its chunks cannot go."""

    def end_drain(self, server: str) -> Deferred[Server]:
        """Empty it no more; fails with `NotFound`."""

    def drains(self) -> tuple[tuple[Server, Drain | None], ...]:
        """The servers that are emptied, and how far they are, as far as this server has heard."""

    def export(self, number: int = 0) -> Progress:
        """Have an export of the table made; with a number, how the one is that was begun under it.

        Raises `ReadOnly` if this server does not hold the table, and `NotFound` for a number that is not known.
        """

    def authorities(self) -> Authorities:
        """The farm's CA, and how far the farm is with changing it."""

    def rotate(self) -> Deferred[None]:
        """Have the CA changed."""

    def look_at_forgetting(self, server: str) -> Deferred[ForgetOutlook]:
        """What would be lost if a server (id or name) were forgotten; changes nothing. Fails with `NotFound`."""

    def forget(self, server: str, farm_name: str) -> Deferred[Server]:
        """Take a server out for good; fails with `PreconditionFailed` if it is not down, or the name is wrong."""

    def barred(self, server_id: str) -> str:
        """Why that server is none of this farm although its certificate says so; empty if it is."""

    def peer_of(self, certificate: Any) -> str | None:
        """The server id that a TLS peer certificate proves, or None."""

    def set_server(self, server: str, fields: Mapping[str, str]) -> Deferred[Server]:
        """Change editable fields of a server's row, by id or name; fails with `NotFound` or `InvalidRequest`."""

    def set_table(self, block: bytes) -> Deferred[int]:
        """Put the editable fields of all rows, as SERVERS shows them; fires with how many rows were changed.

        Fails with `PreconditionFailed` if the table is not at the revision of the block, and as `set_server`.
        """

    def set_farm(self, fields: Mapping[str, str]) -> Deferred[FarmOptions]:
        """Change farm options; fails with `InvalidRequest`."""

    def status(self) -> Deferred[list[tuple[str, str]]]:
        """What STATUS tells, as (name, value) pairs."""
