"""CA and ROTATE: the farm's CA for other tools, and changing it."""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from chunkfarm.errors import Waiting
from chunkfarm.model import timestamp
from chunkfarm.ports.client.session import Answer, Request, Session, block, ok
from chunkfarm.trust.authority import fingerprint_of, parse_certificate
from chunkfarm.wire.lines import Sentence, format_fields


async def show(session: Session, request: Request) -> Answer:
    told = session.backend.authorities()
    if not told.signs:
        raise Waiting("this server does not know the farm's CA yet")
    header: list[tuple[str, object]] = [("step", told.step or "none")]
    if told.waits_for:
        header.append(("waitsfor", ",".join(told.waits_for)))
    if told.problem:
        header.append(("because", Sentence(told.problem)))
    rows = [_row(role, parse_certificate(pem.encode())) for role, pem in (("signs", told.signs), *told.others)]
    return block("CA", rows, format_fields(header))


async def rotate(session: Session, request: Request) -> Answer:
    await session.backend.rotate()
    return ok("ROTATE")


def _row(role: str, certificate: x509.Certificate) -> str:
    der = certificate.public_bytes(serialization.Encoding.DER)
    return "CERTIFICATE " + format_fields(
        [
            ("role", role),
            ("fingerprint", fingerprint_of(certificate)),
            ("until", timestamp(int(certificate.not_valid_after_utc.timestamp()) * 1000)),
            ("der", base64.b64encode(der).decode()),
        ]
    )
