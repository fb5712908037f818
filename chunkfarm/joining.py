"""A server that is not the first proves its right to join, and receives its certificate and its row."""

from __future__ import annotations

import json
from typing import Any, cast

from attrs import evolve, field, frozen
from twisted.internet.defer import CancelledError

from chunkfarm.errors import FarmError
from chunkfarm.finding import server_hint
from chunkfarm.founding import join_file
from chunkfarm.links import commands
from chunkfarm.links.peers import LinkFailed, call_on, reason_of
from chunkfarm.model import Address, Server
from chunkfarm.parts import Parts
from chunkfarm.trust.authority import usable_names
from chunkfarm.trust.invitation import Invitation
from chunkfarm.trust.private import NoSuchFile, TrustError
from chunkfarm.trust.proof import JOINER, MEMBER, check_proof, exporter_of, proof, read_join_key
from chunkfarm.trust.seal import SealKey
from chunkfarm.trust.verify import Untrusted, chain_of, check_chain

REDIRECTS_MAX = 8
"""Servers asked in a row for the one that leads: more means that they do not agree yet."""
JOIN_TIMEOUT = 20.0
"""Seconds for the call back, the signature and the commit together."""


class CannotJoin(FarmError):
    """The farm refused this server, or cannot be trusted by it; waiting would not help."""


class JoinLater(Exception):
    """The farm cannot take this server in now; the text says why."""


@frozen
class Shown:
    """What this server proves that it knows: the farm's join key, or the secret of a code."""

    key: bytes = field(repr=False)
    name: str
    invite: str = ""


async def join(
    parts: Parts,
    address: Address,
    version: int = commands.PROTOCOL_VERSION,
    invitation: Invitation | None = None,
) -> Server:
    """Join the farm of which a server listens at `address`; returns our row.

    `version` is what that server speaks: the newer of two speaks the older one's. Raises `CannotJoin` for what a
    person must mend and `JoinLater` for what time may.
    """
    if invitation is not None:
        return await _join_following(parts, address, Shown(invitation.secret, "its code", invitation.id), version)
    path = join_file(parts.config_file.path)
    try:
        key = await parts.run_in_thread(read_join_key, path)
    except NoSuchFile:
        raise CannotJoin(
            f"{path} is missing: copy farm.join from beside the config.ini of a server of this farm (mode 0600), or "
            "start this server with --join and a code of `chunkfarm invite`"
        ) from None
    except TrustError as error:
        raise CannotJoin(str(error)) from None
    return await _join_following(parts, address, Shown(key, f"the join key of {path}"), version)


async def _join_following(parts: Parts, address: Address, shown: Shown, version: int) -> Server:
    """Join where the one that leads is said to be."""
    for _ in range(REDIRECTS_MAX):
        try:
            return await _join_at(parts, address, shown, version)
        except commands.NotFirst as error:
            try:
                told = server_hint(json.loads(str(error)))
            except (ValueError, RecursionError):
                raise JoinLater(f"{address} does not lead the farm, and does not say who does") from None
            address = Address(told["host"], told["peer"])
    raise JoinLater("the servers do not agree on who leads yet")


async def _join_at(parts: Parts, address: Address, shown: Shown, version: int) -> Server:
    try:
        link = await parts.peers.open(address)
    except CancelledError:
        raise
    except Exception as error:
        raise JoinLater(f"{address}: {reason_of(error)}") from None
    try:
        exporter = exporter_of(link.transport)
        _check_authority(parts, link.transport, address)
        if parts.config.server.host is None:
            # The address that reached the farm is one that the farm can reach, too.
            parts.host = cast(Any, link.transport).getHost().host
        identity = parts.contexts.identity
        assert identity is not None
        request = identity.signing_request(usable_names(parts.certificate_names()))
        arguments = {
            "version": commands.version_for(version),
            "farm": parts.recorded_farm,
            "proof": proof(shown.key, JOINER, exporter),
            "request": request,
            "row": parts.own_row().to_value().decode(),
            **({"invite": shown.invite} if shown.invite else {}),
        }
        call = call_on(link, commands.Join, arguments)
        box = await parts.peers.limit(call, JOIN_TIMEOUT, f"Join at {address}")
        if not check_proof(shown.key, MEMBER, exporter, box["proof"]):
            raise CannotJoin(f"{address} does not know {shown.name}")
        return await _accept(parts, box)
    except commands.JoinRefused as error:
        raise CannotJoin(f"{address} does not let this server join: {error}") from None
    except TrustError as error:
        raise CannotJoin(f"{address}: {error}") from None
    except (commands.NotNow, commands.BadRequest, LinkFailed) as error:
        raise JoinLater(f"{address}: {error}") from None
    finally:
        link.close()


def _check_authority(parts: Parts, transport: Any, address: Address) -> None:
    """If `config.ini` names the CA, nobody else's server gets so far as to see a proof."""
    expected = parts.config.farm.ca
    if not expected:
        return
    try:
        check_chain(chain_of(transport), expected, None, None)
    except Untrusted as error:
        raise CannotJoin(f"{address} is not of the farm that {parts.config_file.path} names: {error}") from None


async def _accept(parts: Parts, box: dict[str, Any]) -> Server:
    """Keep what the farm gave: certificate, CA, sealing key, farm id."""
    identity = parts.contexts.identity
    assert identity is not None
    identity = identity.certified(box["certificate"], box["ca"])
    if parts.config.farm.ca:
        try:
            # The farm may change its CA just now: then the one that is named here introduces the other.
            given = (identity.certificate, *identity.introductions, *identity.believed)
            check_chain(given, parts.config.farm.ca, None, None)
        except Untrusted:
            raise TrustError(f"it gave another CA than {parts.config_file.path} names") from None
    directory = parts.data.path
    if box["seal"]:
        parts.seal = SealKey(box["seal"])
        await parts.run_in_thread(parts.seal.save, directory)
    parts.journal.farm_id = str(box["farm"])
    await parts.run_in_thread(identity.save, directory)
    parts.contexts.replace(identity)
    parts.state.farm_id = str(box["farm"])
    parts.config = evolve(parts.config, farm=evolve(parts.config.farm, id=str(box["farm"]), ca=identity.ca_fingerprint))
    return Server.from_value(box["row"].encode())
