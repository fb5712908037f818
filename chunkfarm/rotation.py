"""How the farm changes its CA while it runs, as a row and the rules that follow from it. Pure.

The steps, each one transaction of whoever leads, so that any other first can go on from there:

- *trusting*: the next CA stands in the table, its key sealed with a new seal key. Every server begins to believe it,
  and those that may be masters fetch the seal key. Nobody has a certificate of it yet, so a first that does not have
  the new seal key begins anew with others. From here on a certificate of the old CA counts only for the key that stands
  in its server's row: whoever stole the old CA's key can sign for any server, but has the key of none.
- *renewing*: the next CA signs, secret rows are sealed anew, and each server asks for a new certificate.
- *done*: `config.ini` names the new CA. Servers go on introducing it to clients that know the old one.
- *over*: not to clients any more; only to servers that were away.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Protocol

from attrs import asdict, frozen

from chunkfarm.model import Server
from chunkfarm.trust.authority import INTRODUCTION, INTRODUCTIONS_MAX, certificates_in, fingerprint, pem_of
from chunkfarm.trust.private import TrustError

STEPS = ("trusting", "renewing", "done", "over")
INTRODUCED_MS = 24 * 3600 * 1000
"""How long clients with the fingerprint of the old CA are still served: a day to copy a `config.ini` or a `ca.pem`."""


class Told(Protocol):
    """The part of a server's report that this is about."""

    @property
    def ca(self) -> str: ...

    @property
    def ready(self) -> str: ...


@frozen(kw_only=True)
class Rotation:
    """The row under `farm/rotation`. Certificates are PEM."""

    step: str
    ca: str
    """The next CA, or since `renewing` the CA."""
    old: str
    """The one before."""
    introduction: str
    """By what the old one introduces the next, and by what that one was introduced, and so on; empty if the old one's
    key was lost."""
    seal: str
    """The digest of the key that seals from then on."""
    since: int
    """When the step was reached, in ms since 1970."""

    @property
    def is_running(self) -> bool:
        return self.step in ("trusting", "renewing")

    @property
    def fingerprint(self) -> str:
        """Of the next CA."""
        return fingerprint(self.ca.encode())

    def introduction_of(self, ca: str) -> str:
        """What introduces the CA that signs now (PEM) to those who know one before it; empty if nothing does."""
        if ca == self.ca:
            return self.introduction
        known = certificates_in(self.introduction.encode()) if self.introduction and ca == self.old else ()
        return b"".join(map(pem_of, known[INTRODUCTION:])).decode()

    def to_value(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_value(cls, value: bytes) -> Rotation:
        """The reverse of `to_value`; raises `TrustError` for anything else."""
        try:
            item = json.loads(value)
            rotation = cls(
                step=str(item["step"]),
                ca=str(item["ca"]),
                old=str(item["old"]),
                introduction=str(item["introduction"]),
                seal=str(item["seal"]),
                since=int(item["since"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TrustError("the row that says how far the change of the CA is cannot be read") from error
        if rotation.step not in STEPS:
            raise TrustError(f"the change of the CA is at a step that is not known here: {rotation.step[:40]!r}")
        return rotation


@frozen(kw_only=True)
class Authorities:
    """What a server can say of the farm's CA. Certificates are PEM."""

    signs: str
    """The one that signs now; empty on a server that does not know it."""
    rotation: Rotation | None = None
    wanted: bool = False
    """Whether a change is wanted that has not begun yet."""
    waits_for: tuple[str, ...] = ()
    """Servers without which it does not go on; only who leads knows."""
    problem: str = ""

    @property
    def step(self) -> str:
        """How far the farm is, in a word; empty when nothing is to be done."""
        if self.wanted:
            return "wanted"
        return self.rotation.step if self.rotation is not None and self.rotation.is_running else ""

    @property
    def others(self) -> tuple[tuple[str, str], ...]:
        """The role and the certificate of each other one by which a server may be known now."""
        rotation = self.rotation
        if rotation is None or not rotation.is_running:
            return ()
        return (("next", rotation.ca),) if rotation.step == "trusting" else (("before", rotation.old),)

    @property
    def sentence(self) -> str:
        """How far it is, for people; empty when nothing is to be done."""
        if not self.step:
            return ""
        waits = f", waits for {', '.join(self.waits_for)}" if self.waits_for else ""
        return f"{self.step}{waits}{f', {self.problem}' if self.problem else ''}"


def introductions(newest: bytes, before: str) -> str:
    """What introduces a new CA, given by what the one before introduces it, and by what that one was (PEM)."""
    if not newest:
        return ""
    every = certificates_in(newest + before.encode())
    return b"".join(map(pem_of, every[: INTRODUCTION * INTRODUCTIONS_MAX])).decode()


def believed(ca: str, rotation: Rotation | None) -> tuple[str, ...]:
    """The CAs (PEM) that a server believes while it has no rows, given the one that signs now."""
    if rotation is not None and rotation.is_running:
        return tuple(dict.fromkeys((ca, rotation.ca, rotation.old)))
    return (ca,)


def in_force(ca: str, rotation: Rotation | None) -> str:
    """The CA (PEM) whose signature alone is enough between servers; others need the key that stands in the row."""
    return rotation.ca if rotation is not None and rotation.is_running else ca


def without_key(servers: Iterable[Server]) -> tuple[Server, ...]:
    """Servers that are there and whose keys were not noted yet, without which the old CA would be all they have."""
    return tuple(server for server in servers if server.state != "down" and not server.public_key)


def unaware(servers: Iterable[Server], told: Mapping[str, Told]) -> tuple[Server, ...]:
    """Servers that are there and do not tell of their CA although another one is wanted: they are of an older version.

    Such a one would leave the keys out of the rows that it puts anew, if it came to lead.
    """
    return tuple(
        server for server in servers if server.state != "down" and not (server.id in told and told[server.id].ca)
    )


def held_up_by(rotation: Rotation, servers: Iterable[Server], told: Mapping[str, Told]) -> tuple[Server, ...]:
    """The servers that are there and have not done yet what this step asks of them."""
    if not rotation.is_running:
        return ()
    new = rotation.fingerprint

    def has_done(server: Server) -> bool:
        report = told.get(server.id)
        return report is not None and (report.ready if rotation.step == "trusting" else report.ca) == new

    return tuple(server for server in servers if server.state != "down" and not has_done(server))
