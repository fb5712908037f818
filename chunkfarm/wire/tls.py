"""The words of TLS that transports and those who use them share."""

from __future__ import annotations

from typing import Protocol

from OpenSSL import SSL
from twisted.internet.error import ConnectionLost

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a TLS handshake: a few round trips of a slow link, and no more memory for a silent peer."""


class PeerEnded(ConnectionLost):
    """The machine on the other side ended the connection, by end of file or reset: not silence, and not this side."""

    MESSAGE = "The other side ended the connection without a word"


class TLSFailed(ConnectionLost):
    """TLS with the peer failed; the text says how."""

    MESSAGE = "TLS failed"


class HandshakeTimedOut(TLSFailed):
    """The peer did not finish the TLS handshake in time."""


class ContextSource(Protocol):
    """What chooses the TLS context: asked anew for every connection, so a certificate can be replaced.

    It may have a `server_name` (bytes or None), which a client then asks for (SNI). A context should have
    SSL_MODE_ENABLE_PARTIAL_WRITE cleared, which pyOpenSSL sets: with it one call of `send` writes one record
    of 16 KiB and no more. Everything works with it, at more cost.
    """

    def getContext(self) -> SSL.Context: ...


def name_to_ask_for(source: ContextSource, host: str | None = None) -> bytes | None:
    """The server name that a client of `source` sends: the one it has, or that of the host it connects to."""
    name: bytes | None = getattr(source, "server_name", None)
    if name is None and host is not None:
        try:
            return host.encode("idna")
        except UnicodeError:
            return None
    return name


def explain(error: SSL.Error) -> str:
    """OpenSSL's reasons in words."""
    if isinstance(error, SSL.SysCallError):
        return "the peer closed the connection in the middle"
    reasons = error.args[0] if error.args else ()
    words = [str(reason[-1]) for reason in reasons if reason] if isinstance(reasons, list | tuple) else []
    return ", ".join(words) or "for no reason that OpenSSL tells"
